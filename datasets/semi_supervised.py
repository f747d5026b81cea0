"""Training with few labels (ATCON, section 4): which images keep their labels, and the batches of each step."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from common.errors import UserError
from common.processes import processes
from common.seeds import stable_seed
from datasets.config import SemiConfig
from datasets.loader import BatchSampler, steps_per_epoch
from datasets.readers.files import FileDataset
from datasets.split import Key, Split
from datasets.subset import subset
from datasets.types import UNLABELLED, DatasetInfo, RawDataset, RawSample


class PartlyLabelled:
    """A RawDataset: the records of `labelled`, then those of `unlabelled` without their labels."""

    groups = None

    def __init__(self, labelled: RawDataset, unlabelled: RawDataset) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled
        self.labels = [*labelled.labels, *[UNLABELLED] * len(unlabelled)]

    @property
    def info(self) -> DatasetInfo:
        """What the labels mean."""
        return self.labelled.info

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> RawSample:
        """Return one record."""
        if index < len(self.labelled):
            return self.labelled.read(index)
        record = self.unlabelled.read(index - len(self.labelled))
        present = None if record.present is None else np.zeros_like(record.present)
        return replace(record, label=UNLABELLED, present=present)


def split_labels(split: Split, config: SemiConfig, seed: int) -> tuple[Split, Split]:
    """Return the images of a training split that keep their labels, and the unlabelled images.

    `seed`: data.seed. Raises UserError if no unlabelled images are left for a mode that needs them, or if a class
    has too few images.
    """
    everything = range(len(split))
    few = _choose(split.raw, config, seed) if config.images_per_class else list(everything)
    rest = few if config.unlabelled == "labelled" else sorted(set(everything) - set(few))
    if config.unlabelled_size:
        order = np.random.default_rng(stable_seed("unlabelled", seed)).permutation(len(rest))
        rest = sorted(rest[i] for i in order[: config.unlabelled_size])
    if not rest and config.mode != "supervised":
        raise UserError(
            "data.semi.unlabelled: every training image keeps its label; set data.semi.images_per_class or "
            "data.semi.unlabelled=labelled"
        )
    return subset(split, few), subset(split, rest)


class SemiSupervisedSampler(BatchSampler):
    """Labelled and unlabelled batches, in the order and number that `data.semi.mode` defines (docs/atcon.md)."""

    def __init__(self, labelled: Split, unlabelled: Split, batch_size: int, config: SemiConfig, seed: int) -> None:
        """`batch_size` (labelled) and `config.batch_size` (unlabelled) are per process; `seed` is the training seed.

        Raises UserError if there are fewer images of either kind than processes, or not even one batch.
        """
        self.config, self.seed = config, seed
        self.sizes = len(labelled), len(unlabelled)
        count = processes().world_size
        self.batch_sizes = min(batch_size, len(labelled) // count), min(config.batch_size, len(unlabelled) // count)
        if not all(self.batch_sizes):
            raise UserError(
                f"data.semi: {self.sizes[0]} labelled and {self.sizes[1]} unlabelled images are too few for "
                f"{count} processes; use fewer, or raise data.semi.images_per_class and data.semi.unlabelled_size"
            )
        self.split = labelled.over(PartlyLabelled(labelled.raw, unlabelled.raw))
        # Published: one pass over both kinds, the labelled images counted alpha times.
        passes = (config.alpha * self.sizes[0] / batch_size + self.sizes[1] / config.batch_size) / count
        self.steps = {
            "unsupervised": lambda: steps_per_epoch(unlabelled, config.batch_size, world_size=count),
            "alternating": lambda: max(1, int(passes)),
            "combining": lambda: steps_per_epoch(labelled, batch_size, world_size=count),
        }[config.mode]()

    def batches(self, epoch: int) -> list[list[Key]]:
        """This process's batches of one epoch; in a batch with both kinds the labelled images come first."""
        labelled, unlabelled = self._endless(epoch, 0), self._endless(epoch, 1)
        if self.config.mode == "unsupervised":
            return list(itertools.islice(unlabelled, self.steps))
        if self.config.mode == "combining":
            return [next(labelled) + next(unlabelled) for _ in range(self.steps)]
        weight = self.config.alpha * self.sizes[0]
        generator = torch.Generator().manual_seed(stable_seed("kind", self.seed, epoch))
        with_labels = torch.rand(self.steps, generator=generator) < weight / (weight + self.sizes[1])
        return [next(labelled if known else unlabelled) for known in with_labels.tolist()]

    def _endless(self, epoch: int, kind: int) -> Iterator[list[Key]]:
        """This process's batches of one kind (0: labelled), endlessly; every pass has a new order and augmentation."""
        here, size, first = processes(), self.sizes[kind], self.sizes[0] if kind else 0
        batch = self.batch_sizes[kind] * here.world_size
        for number in itertools.count():
            # The first pass of an epoch uses the plain keys (epoch, index); later ones need keys of their own.
            turn = epoch if number == 0 else stable_seed("pass", epoch, number)
            generator = torch.Generator().manual_seed(stable_seed("order", self.seed, turn, kind))
            order = (torch.randperm(size, generator=generator) + first).tolist()
            for start in range(0, size - batch + 1, batch):
                yield [(turn, index) for index in order[start : start + batch][here.rank :: here.world_size]]


def _choose(raw: RawDataset, config: SemiConfig, seed: int) -> list[int]:
    """Go through the images in random order and take each one unless one of its classes already has enough."""
    most, counts = config.images_per_class, [0] * raw.info.num_classes
    classes, taken = _classes(raw), []
    for index in np.random.default_rng(stable_seed("labelled", seed)).permutation(len(raw)).tolist():
        shown = classes[index]
        if any(counts[c] >= most for c in shown) or (config.fully_balanced and len(shown) != 1):
            continue
        taken.append(index)
        for c in shown:
            counts[c] += 1
    # Images of several classes may make it impossible to fill every class; only the other cases are an error.
    lacking = [name for name, count in zip(raw.info.class_names, counts, strict=True) if count < most]
    if lacking and (config.fully_balanced or not raw.info.multi_label):
        names = ", ".join(lacking[:5])
        raise UserError(f"data.semi.images_per_class: there are fewer than {most} images of {names}; lower it")
    return sorted(taken)


def _classes(raw: RawDataset) -> list[list[int]]:
    """The classes of every image, without reading images."""
    if not raw.info.multi_label:
        return [[label] for label in raw.labels]
    if not isinstance(raw, FileDataset):
        problem = f"{raw.info.name} does not list the classes of its images"
        raise UserError(f"data.semi.images_per_class: {problem}; set it to 0")
    return [[r.label] if r.present is None else np.flatnonzero(r.present).tolist() for r in raw.records]
