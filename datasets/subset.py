"""A random sample of a split, for evaluations that would take too long on all of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.split import Split
from datasets.types import DatasetInfo, RawDataset, RawSample


@dataclass(frozen=True)
class Subset:
    """The records of `raw` at `indices`, in that order; a RawDataset."""

    raw: RawDataset
    indices: Sequence[int]

    @property
    def info(self) -> DatasetInfo:
        """The info of the whole data set."""
        return self.raw.info

    @property
    def labels(self) -> Sequence[int]:
        """Label of every record."""
        labels = self.raw.labels
        return [labels[i] for i in self.indices]

    @property
    def groups(self) -> Sequence[int] | None:
        """Group of every record, where the data set has groups."""
        groups = self.raw.groups
        return None if groups is None else [groups[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> RawSample:
        """One record."""
        return self.raw.read(self.indices[index])


def subset(split: Split, indices: Sequence[int]) -> Split:
    """The split with the records at `indices` only."""
    return split.over(Subset(split.raw, indices))


def sample_split(split: Split, count: int) -> Split:
    """`count` records of the split, in their order; the whole split if it has no more.

    The sample is fixed: drawn without replacement with seed 0, and a larger sample includes the smaller ones.
    """
    if count >= len(split):
        return split
    chosen = np.sort(np.random.default_rng(0).permutation(len(split))[:count])
    return subset(split, chosen.tolist())
