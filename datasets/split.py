"""A data set with its transform: network inputs that depend on (seed, epoch, index) only."""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from common.seeds import stable_seed
from datasets.fixed_steps import NormalisedLast
from datasets.image_cache import images_from
from datasets.normalise import Normalisation
from datasets.readers.files import read_bare
from datasets.transforms import Transform
from datasets.types import DatasetInfo, RawDataset, Sample

Key = tuple[int, int]
"""(epoch, index): determines a sample, augmentation included."""


class Split(Dataset[Sample]):
    """A raw data set with a transform. `split[epoch, index]` is one Sample, augmented by (seed, epoch, index).

    In a DataLoader of your own, with `collate_fn=datasets.collate`: `split[index]` is the sample of the epoch that
    `set_epoch` was called with, in all loading processes, also those that live on; 0 before.
    """

    def __init__(
        self, raw: RawDataset, transform: Transform, *, train: bool, seed: int, max_unreadable: float = 1.0
    ) -> None:
        """`seed`: of the augmentation. `max_unreadable`: data.max_unreadable, by default any fraction."""
        self.raw, self.transform, self.train, self.seed = raw, transform, train, seed
        self.max_unreadable = max_unreadable
        self.annotations = True
        """False: samples have no masks, key points, boxes and part labels, and their files are not read."""
        # In shared memory: persistent workers keep the copy of the Split that they were started with.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Augment `split[index]` as in this epoch from now on. Without it every epoch has the same augmentation."""
        self._epoch.fill_(epoch)

    def over(self, raw: RawDataset) -> "Split":
        """Other records with the same transform and settings."""
        other = Split(raw, self.transform, train=self.train, seed=self.seed, max_unreadable=self.max_unreadable)
        other.annotations = self.annotations
        return other

    @property
    def info(self) -> DatasetInfo:
        """What the labels mean."""
        return self.raw.info

    @property
    def labels(self) -> Sequence[int]:
        """Label of every sample, without reading images."""
        return self.raw.labels

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, key: Key | int) -> Sample:
        return self._sample(key, self.transform)

    @property
    def normalisation(self) -> Normalisation | None:
        """Mean and standard deviation of the last step, which `pixels` leaves out.

        None where there is no such step: with a transform of your own, or in a subclass with its own `__getitem__`.
        """
        if type(self).__getitem__ is not Split.__getitem__ or not isinstance(self.transform, NormalisedLast):
            return None
        return self.transform.normalisation

    def pixels(self, key: Key) -> Sample:
        """`split[key]` before it is normalised: `image` [3, H, W] uint8. Only where `normalisation` is not None."""
        assert isinstance(self.transform, NormalisedLast)
        return self._sample(key, self.transform.pixels)

    def _sample(self, key: Key | int, transform: Transform) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (int(self._epoch), key)
        whole = self.annotations or getattr(self.transform, "needs_mask", False)
        with images_from(getattr(self.transform, "image_cache", None)):
            raw = self.raw.read(index) if whole else read_bare(self.raw, index)
        return transform(raw, stable_seed("augment", self.seed, epoch, index))
