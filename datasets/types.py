"""What a data set yields, and what a batch of it is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "val", "test")
"""The names of a data set's splits; a split's number in the published index files is its position here."""


UNLABELLED = -1
"""The label of an image whose label is not to be used."""


@dataclass(frozen=True)
class DatasetInfo:
    """What the labels of a data set mean."""

    name: str
    class_names: tuple[str, ...]
    group_names: tuple[str, ...] | None = None
    """Name of each group id, or None where the data set has no groups."""
    minority_groups: tuple[int, ...] | None = None
    """Groups whose smallest accuracy is the paper's worst-group figure; None: the smallest class accuracy is."""
    part_names: tuple[str, ...] | None = None
    """Name of each key point of `keypoints`, or of each part of `part_labels`."""
    group_fractions: tuple[float, ...] | None = None
    """Share of each group in the published training split; None where unknown."""
    class_of_output: tuple[int, ...] | None = None
    """For each of a model's outputs the class it counts for, -1 = none; None: the outputs are the classes."""
    split_origin: str = "published"
    """Where this split's records come from, in words: "published", or how they were held out."""
    multi_label: bool = False
    """An image may show several classes: its records have `present`."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def num_outputs(self) -> int:
        """How many outputs a model needs to answer for this data set."""
        return self.num_classes if self.class_of_output is None else len(self.class_of_output)


@dataclass(frozen=True)
class RawSample:
    """One record as read from disk: pixels and annotations in the image's own coordinates."""

    image: np.ndarray
    """[H, W, 3] uint8 RGB."""
    label: int
    path: str
    group: int | None = None
    mask: np.ndarray | None = None
    """[H, W] bool, the object."""
    keypoints: np.ndarray | None = None
    """[P, 3] float (x, y, visible), pixels."""
    boxes: np.ndarray | None = None
    """[N, 4] float, xyxy pixels."""
    box_labels: np.ndarray | None = None
    """[N] int, the class of the object in each box; None: that of the record."""
    part_labels: np.ndarray | None = None
    """[H, W] int16: index of the part at each pixel, -1 = none."""
    present: np.ndarray | None = None
    """[C] bool: every class in the image, where it may show several; `label` is one of them, see the reader."""


class RawDataset(Protocol):
    """One split of a data set: a length, labels without reading pixels, and records by index.

    `read` raises `common.errors.UserError` naming the file when an image cannot be read.
    """

    @property
    def info(self) -> DatasetInfo: ...

    @property
    def labels(self) -> Sequence[int]: ...

    @property
    def groups(self) -> Sequence[int] | None: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> RawSample: ...


@dataclass(frozen=True)
class Sample:
    """One network input with its annotations, transformed together."""

    image: Tensor
    """[3, H, W] float32, normalised."""
    label: int
    path: str
    group: int | None = None
    mask: Tensor | None = None
    """[H, W] bool."""
    keypoints: Tensor | None = None
    """[P, 3] float32 (x, y, visible), pixels of the transformed image."""
    boxes: Tensor | None = None
    """[N, 4] float32 xyxy, pixels of the transformed image."""
    box_labels: Tensor | None = None
    """[N] int64, the class of each box; None in training, and where all are of `label`."""
    part_labels: Tensor | None = None
    """[H, W] int64, the part at every pixel, -1 = none."""
    frame: Tensor | None = None
    """[4] float32 (x, y, width, height), pixels: what key points are measured in (`geometry.frame_of`)."""
    present: Tensor | None = None
    """[C] bool."""


@dataclass(frozen=True)
class Batch:
    """Samples side by side. A field is None where the data set has no such annotation."""

    image: Tensor
    """[B, 3, H, W] float32."""
    label: Tensor
    """[B] int64."""
    paths: tuple[str, ...]
    group: Tensor | None = None
    """[B] int64."""
    mask: Tensor | None = None
    """[B, H, W] bool."""
    keypoints: Tensor | None = None
    """[B, P, 3] float32."""
    boxes: tuple[Tensor, ...] | None = None
    """B tensors [N_i, 4]."""
    box_labels: tuple[Tensor, ...] | None = None
    """B tensors [N_i] int64."""
    part_labels: Tensor | None = None
    """[B, H, W] int64."""
    frame: Tensor | None = None
    """[B, 4] float32."""
    present: Tensor | None = None
    """[B, C] bool."""
    skipped: tuple[str, ...] = ()
    """Paths of the unreadable images left out of this training batch."""
    unlabelled: int = 0
    """How many of the images, the last ones, have no label."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def targets(self) -> Tensor:
        """What a classifier is to say: `present` where images may show several classes, else `label`."""
        return self.label if self.present is None else self.present

    def with_labels(self) -> "Batch":
        """The images that have a label; ValueError where none has."""
        count = len(self) - self.unlabelled
        if count < 1:
            raise ValueError("no image of this batch has a label")
        kept: dict[str, Any] = {
            name: value[:count]
            for name, value in vars(self).items()
            if isinstance(value, Tensor | tuple) and name != "skipped"
        }
        return replace(self, **kept, unlabelled=0)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with every tensor on `device` (asynchronously from pinned memory)."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; a DataLoader with pin_memory=True calls this."""
        pinned: dict[str, Any] = {
            name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **pinned)


def collate(samples: Sequence[Sample], skipped: Sequence[str] = ()) -> Batch:
    """Stack samples of one data set into a Batch. Raises ValueError on an empty list."""
    if not samples:
        raise ValueError("cannot collate an empty list of samples")

    def stack(name: str) -> Tensor | None:
        values = [getattr(sample, name) for sample in samples]
        return None if values[0] is None else torch.stack(values)

    groups = [sample.group for sample in samples]
    boxes = tuple(sample.boxes for sample in samples if sample.boxes is not None)
    box_labels = tuple(sample.box_labels for sample in samples if sample.box_labels is not None)
    return Batch(
        image=torch.stack([sample.image for sample in samples]),
        label=torch.tensor([sample.label for sample in samples]),
        paths=tuple(sample.path for sample in samples),
        group=None if groups[0] is None else torch.tensor(groups),
        mask=stack("mask"),
        keypoints=stack("keypoints"),
        boxes=boxes or None,
        box_labels=box_labels or None,
        part_labels=stack("part_labels"),
        frame=stack("frame"),
        present=stack("present"),
        skipped=tuple(skipped),
        unlabelled=sum(sample.label == UNLABELLED for sample in samples),
    )
