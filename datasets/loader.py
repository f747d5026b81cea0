"""Batches whose order and augmentation depend on (seed, epoch) alone: never on workers, never on a restart."""

import math
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from common.errors import UserError
from common.processes import Processes, processes
from common.seeds import stable_seed
from datasets.formats.images import UnreadableImageError
from datasets.transforms import Transform
from datasets.types import Batch, DatasetInfo, RawDataset, Sample, collate

Key = tuple[int, int]
"""(epoch, index): what a sample, with its augmentation, is a function of."""


@dataclass(frozen=True)
class Problem:
    """What a worker sends in place of a sample: the image's path ("" if none is to blame) and the line to show."""

    path: str
    message: str


Collate = Callable[[list[Sample | Problem]], Batch | Problem]


class Split(Dataset[Sample]):
    """A raw data set seen through a transform. `split[epoch, index]` is one Sample; `split[index]` that of epoch 0."""

    def __init__(self, raw: RawDataset, transform: Transform, *, train: bool, seed: int) -> None:
        self.raw, self.transform, self.train, self.seed = raw, transform, train, seed

    @property
    def info(self) -> DatasetInfo:
        """What the labels mean."""
        return self.raw.info

    @property
    def labels(self) -> Sequence[int]:
        """Label of every sample, without reading pixels."""
        return self.raw.labels

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, key: Key | int) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return self.transform(self.raw.read(index), stable_seed("augment", self.seed, epoch, index))


class _Guarded(Dataset[Sample | Problem]):
    """A Split that gives a Problem instead of raising: an exception loses its one clear line on leaving a worker."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, key: Key) -> Sample | Problem:
        try:
            return self.split[key]
        except UnreadableImageError as error:
            return Problem(error.path, str(error))
        except UserError as error:
            return Problem("", str(error))


def collate_train(items: list[Sample | Problem]) -> Batch | Problem:
    """A batch without its unreadable images, which it lists; a Problem if none is left or something else is wrong."""
    problems = [item for item in items if isinstance(item, Problem)]
    for problem in problems:
        if not problem.path:
            return problem
    samples = [item for item in items if isinstance(item, Sample)]
    if not samples:
        return Problem(problems[0].path, f"no image of a training batch can be read; first: {problems[0].message}")
    return collate(samples, [problem.path for problem in problems])


def _collate_eval(items: list[Sample | Problem]) -> Batch | Problem:
    """A batch, or the first problem in it: a measured figure must not quietly leave out images."""
    for item in items:
        if isinstance(item, Problem):
            return item
    return collate([item for item in items if isinstance(item, Sample)])


class BatchLoader(DataLoader[Batch]):
    """A DataLoader over ready-made batches of keys that turns a Problem back into a UserError in the main process."""

    def __init__(self, split: Split, batches: list[list[Key]], workers: int, join: Collate) -> None:
        super().__init__(
            _Guarded(split),  # type: ignore[arg-type]  # batches are what comes out, after collation
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=join,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_quiet_worker,
            generator=torch.Generator(),  # else every pass takes one number from the global stream
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator rather than torch's private iterator
        try:
            for item in super().__iter__():
                if isinstance(item, Problem):
                    raise UserError(item.message)
                yield item
        except (RuntimeError, ConnectionError, EOFError) as error:
            raise lost_worker(error) or error from None


def lost_worker(error: Exception) -> UserError | None:
    """What to say of an error that comes of a loading process's death; None for another one.

    A reading that it leaves undone fails in the connection; torch notices it in that, or in a signal at any moment.
    """
    found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(.*)", str(error))
    if not found and not isinstance(error, ConnectionError | EOFError):
        return None
    signal_name = re.search(r"killed by signal: (\w+)", str(error))
    who = f" (pid {found[1]})" if found else ""
    cause = f", killed by {signal_name[1]}" if signal_name else ""
    return UserError(
        f"a loading process{who} died{cause}; it may have run out of memory: lower data.workers or data.batch_size; "
        "all that was saved is whole, --resume=true goes on from there"
    )


def _quiet_worker(worker: int) -> None:
    """One OpenCV thread per loading process, and signals left to the main process, which finishes its step first."""
    import cv2

    # A terminal and a cluster send them to every process of the job.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)


def steps_per_epoch(split: Split, batch_size: int, *, drop_last: bool = True, world_size: int = 1) -> int:
    """Batches per process in one epoch. Raises UserError where there is not even one."""
    share = len(split) / (batch_size * world_size)
    steps = math.floor(share) if drop_last else math.ceil(share)
    if steps < 1:
        processes = f" on {world_size} processes" if world_size > 1 else ""
        raise UserError(
            f"the training split has {len(split)} images, fewer than one batch of {batch_size}{processes}; "
            f"set data.batch_size to at most {max(1, len(split) // world_size)}"
        )
    return steps


def train_loader(
    split: Split, *, batch_size: int, seed: int, epoch: int, start_batch: int = 0, workers: int,
    drop_last: bool = True, rank: int = 0, world_size: int = 1,
) -> BatchLoader:  # fmt: skip
    """Shuffled batches of one epoch, from `start_batch` on: exactly the tail of the whole epoch, for an exact resume.

    `batch_size` is per process; process `rank` of `world_size` gets its slice of every global batch. Unreadable
    images are left out and listed in `Batch.skipped`; iterating raises UserError where a whole batch is unreadable.
    """
    steps = steps_per_epoch(split, batch_size, drop_last=drop_last, world_size=world_size)
    generator = torch.Generator().manual_seed(stable_seed("order", seed, epoch))
    order: list[int] = torch.randperm(len(split), generator=generator).tolist()
    whole = batch_size * world_size
    batches = [
        [(epoch, index) for index in order[step * whole : (step + 1) * whole][rank::world_size]]
        for step in range(start_batch, steps)
    ]
    return BatchLoader(split, batches, workers, collate_train)


class BatchSampler:
    """What every step of training reads: here the whole split once an epoch, shuffled."""

    steps: int
    """Batches in an epoch."""

    def __init__(self, split: Split, batch_size: int, seed: int) -> None:
        """`batch_size`: of each process. `seed`: the training seed. Raises UserError where there is not one batch."""
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.steps = steps_per_epoch(split, batch_size, world_size=processes().world_size)

    def loader(self, epoch: int, start_batch: int, workers: int) -> BatchLoader:
        """Batches of one epoch from `start_batch` on: a function of (seed, epoch) alone, for an exact resume."""
        here = processes()
        return train_loader(
            self.split, batch_size=self.batch_size, seed=self.seed, epoch=epoch, start_batch=start_batch,
            workers=workers, rank=here.rank, world_size=here.world_size,
        )  # fmt: skip


def eval_loader(split: Split, *, batch_size: int, workers: int, rank: int = 0, world_size: int = 1) -> BatchLoader:
    """Every sample exactly once, in order; process `rank` of `world_size` gets its `Processes.block`.

    Iterating raises UserError naming the first unreadable image.
    """
    keys = [(0, index) for index in Processes(rank, world_size).block(len(split))]
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    return BatchLoader(split, batches, workers, _collate_eval)
