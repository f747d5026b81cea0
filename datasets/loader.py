"""Batches whose order and augmentation depend on (seed, epoch) only, not on workers or on a resume."""

import atexit
import logging
import os
import re
import signal
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from common.errors import UserError
from common.processes import Processes, processes
from common.seeds import stable_seed
from datasets.formats.images import UnreadableImageError
from datasets.normalise import constants_of, normalise
from datasets.split import Key, Split
from datasets.types import Batch, Sample, collate

# torch's advice where data.workers exceeds the cores: four lines for every loader
warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
LOADING_SECONDS = 600.0
"""Longest wait for a batch from the loading processes."""


@dataclass(frozen=True)
class Problem:
    """Sent by a worker in place of a sample: path of the unreadable image ("" for any other error) and the message."""

    path: str
    message: str


Collate = Callable[[list[Sample | Problem]], Batch | Problem]


class _Guarded(Dataset[Sample | Problem]):
    """A Split that returns a Problem instead of raising: torch wraps exceptions of workers in a long traceback."""

    def __init__(self, split: Split, pixels: bool) -> None:
        """`pixels`: samples as `Split.pixels` gives them."""
        self.split, self.pixels = split, pixels

    def __getitem__(self, key: Key) -> Sample | Problem:
        try:
            return self.split.pixels(key) if self.pixels else self.split[key]
        except UnreadableImageError as error:
            return Problem(error.path, str(error))
        except UserError as error:
            return Problem("", str(error))


def collate_train(items: list[Sample | Problem]) -> Batch | Problem:
    """A batch of the readable images, the others in `skipped`; a Problem if none is readable or for other errors."""
    problems = [item for item in items if isinstance(item, Problem)]
    if others := [problem for problem in problems if not problem.path]:
        return others[0]
    samples = [item for item in items if isinstance(item, Sample)]
    if not samples:
        return Problem(problems[0].path, f"no image of a training batch can be read; first: {problems[0].message}")
    return _joined(samples, [problem.path for problem in problems])


def _collate_eval(items: list[Sample | Problem]) -> Batch | Problem:
    """A batch, or the first problem in it: an evaluation must not silently leave out images."""
    for item in items:
        if isinstance(item, Problem):
            return item
    return _joined([item for item in items if isinstance(item, Sample)])


def _joined(samples: list[Sample], skipped: Sequence[str] = ()) -> Batch | Problem:
    try:
        return collate(samples, skipped)
    except UserError as error:
        return Problem("", str(error))


_LOADERS: "weakref.WeakSet[BatchLoader]" = weakref.WeakSet()


class BatchLoader(DataLoader[Batch]):
    """A DataLoader over given batches of keys. Raises UserError in the main process for a Problem or a lost worker.

    With a `device`, workers hand over images of 8 bits where they can, a quarter of the bytes, and batches come on the
    device, normalised there; without one, on the CPU, normalised by the workers. The values are equal to the last bit.

    Its workers live as long as it does: `batches` may be changed between two passes.
    """

    def __init__(
        self, split: Split, batches: list[list[Key]], workers: int, join: Collate, device: torch.device | None = None
    ) -> None:
        self.batches, self.max_unreadable, self.device = batches, split.max_unreadable, device
        last_step = split.normalisation if device else None
        self._constants = None if last_step is None else constants_of(last_step, device)
        _LOADERS.add(self)
        super().__init__(
            _Guarded(split, pixels=last_step is not None),  # type: ignore[arg-type]  # the type of batches, after collation
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=join,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=quiet_worker,
            generator=torch.Generator(),  # else every epoch would draw from the global generator
            timeout=LOADING_SECONDS if workers else 0,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator, not torch's private iterator
        skipped: list[str] = []
        planned = sum(map(len, self.batches))
        try:
            for item in super().__iter__():
                if isinstance(item, Problem):
                    raise UserError(item.message)
                skipped += item.skipped
                say_skipped(item.skipped)
                check_skipped(skipped, planned, self.max_unreadable)
                yield self._on_device(item)
            if skipped:
                logging.getLogger("datasets").warning(f"{len(skipped)} of {planned} images could not be read")
        except (RuntimeError, OSError, EOFError) as error:
            raise self._silent(error) or lost_worker(error) or error from None

    @property
    def loading_processes(self) -> list[Any]:
        """The processes that load images for this one, as `multiprocessing.Process`."""
        return list(getattr(self._iterator, "_workers", ()))

    def _on_device(self, batch: Batch) -> Batch:
        batch = batch if self.device is None else batch.to(self.device)
        return batch if self._constants is None else replace(batch, image=normalise(batch.image, self._constants))

    def _silent(self, error: Exception) -> UserError | None:
        """The UserError for workers that gave no batch in time; None for any other error. Suspended ones go on."""
        if "DataLoader timed out" not in str(error):
            return None
        pids = [worker.pid for worker in self.loading_processes]
        for pid in pids:
            os.kill(pid, signal.SIGCONT)  # else this process waits seconds for each of them before it ends
        return UserError(
            f"the loading processes (pid {', '.join(map(str, pids))}) gave no batch for {self.timeout:.0f} seconds: "
            "they are suspended, or the data cannot be reached; saved checkpoints are intact, continue with "
            "--resume=true"
        )


_NAMED_SKIPPED: set[str] = set()
MOST_NAMED = 10
"""Unreadable images that are named; more are only counted."""


def say_skipped(paths: Sequence[str]) -> None:
    """Log a line for each unreadable image that has not been named, as long as they are few."""
    for path in paths:
        if path not in _NAMED_SKIPPED and len(_NAMED_SKIPPED) < MOST_NAMED:
            _NAMED_SKIPPED.add(path)
            logging.getLogger("datasets").warning(f"cannot read {path}; it is left out of training")


def check_skipped(paths: Sequence[str], planned: int, most: float) -> None:
    """Raise UserError if the unreadable images are more than the fraction `most` of those planned for an epoch."""
    if len(paths) > most * planned:
        raise UserError(
            f"{len(paths)} of the {planned} images of an epoch cannot be read, more than data.max_unreadable={most:g}; "
            f"the first: {paths[0]}; restore them, or raise the limit"
        )


def lost_worker(error: Exception) -> UserError | None:
    """The UserError for an error that was caused by a worker's death or by open files; None for any other error.

    The death shows as a broken connection, or as a RuntimeError that torch raises from its signal handler at any time.
    """
    if re.search("Too many open files|ancdata", str(error)):  # the latter is torch's message for the same
        return UserError("too many open files: raise the limit (ulimit -n 4096), or lower data.workers")
    found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(.*)", str(error))
    if not found and not isinstance(error, ConnectionError | EOFError):
        return None
    signal_name = re.search(r"killed by signal: (\w+)", str(error))
    who = f" (pid {found[1]})" if found else ""
    cause = f", killed by {signal_name[1]}" if signal_name else ""
    return UserError(
        f"a loading process{who} died{cause}, perhaps out of memory: lower data.workers or data.batch_size; "
        "saved checkpoints are intact, continue with --resume=true"
    )


def quiet_worker(worker: int) -> None:
    """Use one OpenCV thread per worker, and leave signals to the main process, which finishes its step first."""
    import cv2

    # Terminals and clusters send these signals to every process of a job.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)


@atexit.register
def _end_workers() -> None:
    """End the loading processes of loaders that still exist when the program ends.

    multiprocessing would send SIGTERM, which they ignore, and wait for them for ever.
    """
    if workers := [worker for loader in _LOADERS for worker in loader.loading_processes if worker.is_alive()]:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else torch raises an error for each one
        for worker in workers:
            worker.kill()


def steps_per_epoch(split: Split, batch_size: int, *, world_size: int = 1) -> int:
    """Batches per process in one epoch, without the last incomplete one. Raises UserError if there are none."""
    steps = len(split) // (batch_size * world_size)
    if steps < 1:
        where = f" on {world_size} processes" if world_size > 1 else ""
        most = max(1, len(split) // world_size)
        raise UserError(
            f"the training split has {len(split)} images, fewer than one batch of {batch_size}{where}; "
            f"set data.batch_size to at most {most}, or data.global_batch to at most {most * world_size}"
        )
    return steps


def train_loader(
    split: Split, *, batch_size: int, seed: int, epoch: int, start_batch: int = 0, workers: int,
    rank: int = 0, world_size: int = 1, device: torch.device | None = None,
) -> BatchLoader:  # fmt: skip
    """The shuffled batches of one epoch, starting at `start_batch`; the same batches as without a restart.

    `batch_size` is per process; process `rank` of `world_size` gets its part of every global batch. Unreadable images
    are left out and listed in `Batch.skipped`; iterating raises UserError if all images of a batch are unreadable.
    `device`: as for BatchLoader.
    """
    steps = steps_per_epoch(split, batch_size, world_size=world_size)
    batches = train_batches(len(split), batch_size, steps, seed, epoch, Processes(rank, world_size))
    return BatchLoader(split, batches[start_batch:], workers, collate_train, device)


def train_batches(count: int, batch_size: int, steps: int, seed: int, epoch: int, here: Processes) -> list[list[Key]]:
    """This process's batches of one epoch: `count` images, shuffled, in `steps` batches of all processes."""
    generator = torch.Generator().manual_seed(stable_seed("order", seed, epoch))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    global_size = batch_size * here.world_size
    # Every world_size-th image, so that 2 processes of 16 images see the batches of 1 process of 32.
    return [
        [(epoch, index) for index in order[step * global_size : (step + 1) * global_size][here.rank :: here.world_size]]
        for step in range(steps)
    ]


class BatchSampler:
    """The training batches of this process: the whole split once per epoch, shuffled."""

    steps: int
    """Batches per epoch and process."""
    _loader: BatchLoader | None = None
    """Used for all epochs, so that its workers are started once."""

    def __init__(self, split: Split, batch_size: int, seed: int, multiple_of: int = 1) -> None:
        """`batch_size` is per process, `seed` the training seed. `multiple_of`: only whole groups of so many batches.

        Raises UserError if there is not even one batch or group.
        """
        self.split, self.batch_size, self.seed = split, batch_size, seed
        groups = steps_per_epoch(split, batch_size * multiple_of, world_size=processes().world_size)
        self.steps = groups * multiple_of

    def loader(self, epoch: int, start_batch: int, workers: int, device: torch.device | None = None) -> BatchLoader:
        """Return the batches of one epoch, starting at `start_batch`; they depend on (seed, epoch) only.

        `device`: as for BatchLoader.
        """
        batches = self.batches(epoch)[start_batch:]
        if self._loader is None or (self._loader.num_workers, self._loader.device) != (workers, device):
            self._loader = BatchLoader(self.split, batches, workers, collate_train, device)
        self._loader.batches[:] = batches
        return self._loader

    def batches(self, epoch: int) -> list[list[Key]]:
        """This process's batches of one epoch."""
        return train_batches(len(self.split), self.batch_size, self.steps, self.seed, epoch, processes())


def eval_loader(
    split: Split, *, batch_size: int, workers: int, rank: int = 0, world_size: int = 1,
    device: torch.device | None = None,
) -> BatchLoader:  # fmt: skip
    """Return every sample exactly once, in order; process `rank` of `world_size` gets its `Processes.block`.

    Iterating raises UserError for the first unreadable image. `device`: as for BatchLoader.
    """
    keys = [(0, i) for i in Processes(rank, world_size).block(len(split))]
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    return BatchLoader(split, batches, workers, _collate_eval, device)
