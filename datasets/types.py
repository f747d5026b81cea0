"""Records, samples and batches, and what the labels of a data set mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError, printable
from datasets.config import SPLITS as SPLITS

UNLABELLED = -1
"""Label of an image that is used without its label."""


@dataclass(frozen=True)
class DatasetInfo:
    """What the labels of a data set mean."""

    name: str
    class_names: tuple[str, ...]
    class_keys: tuple[str, ...] | None = field(default=None, kw_only=True)
    """What identifies each class where names may be reworded or shared (ImageNet: WordNet ids); None: the names."""
    group_names: tuple[str, ...] | None = None
    """Name of each group id; None if the data set has no groups."""
    minority_groups: tuple[int, ...] | None = None
    """Groups over which the paper's worst-group accuracy is the minimum; None: it is the minimum over classes."""
    part_names: tuple[str, ...] | None = None
    """Name of each key point of `keypoints`, or of each part of `part_labels`."""
    group_fractions: tuple[float, ...] | None = None
    """Fraction of each group in the published training split; None if unknown."""
    class_of_output: tuple[int, ...] | None = None
    """The class that each model output belongs to, -1 = none; None: outputs and classes are the same."""
    split_origin: str = "published"
    """Origin of this split, as text: "published", or how it was held out."""
    multi_label: bool = False
    """Images may show several classes: records have `present`."""

    def __post_init__(self) -> None:
        """Escape control characters in the names, which come from folders and files and are printed and written."""
        for name in ("class_names", "group_names", "part_names"):
            if (names := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(map(printable, names)))

    @property
    def keys(self) -> tuple[str, ...]:
        """What identifies each class."""
        return self.class_keys or self.class_names

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def num_outputs(self) -> int:
        """Number of outputs a model needs for this data set."""
        return self.num_classes if self.class_of_output is None else len(self.class_of_output)


@dataclass(frozen=True)
class RawSample:
    """One record as read from disk, with annotations in the coordinates of the original image."""

    image: np.ndarray
    """[H, W, 3] uint8 RGB. In a Split with `data.image_cache` an object of this shape, and an array by `np.asarray`."""
    label: int
    path: str
    group: int | None = None
    mask: np.ndarray | None = None
    """[H, W] bool, True on the object."""
    keypoints: np.ndarray | None = None
    """[P, 3] float (x, y, visible), pixels."""
    boxes: np.ndarray | None = None
    """[N, 4] float, xyxy pixels."""
    box_labels: np.ndarray | None = None
    """[N] int, the class of the object in each box; None: the label of the record."""
    part_labels: np.ndarray | None = None
    """[H, W] int16, the part at each pixel, -1 = none."""
    present: np.ndarray | None = None
    """[C] bool, the classes in the image if it may show several; `label` is one of them, see the reader."""


class RawDataset(Protocol):
    """One split of a data set: its length, labels without reading images, and records by index.

    `read` raises UserError naming the file if an image cannot be read.
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
    """[N] int64, the class of each box; None in training, and if all boxes have the class `label`."""
    part_labels: Tensor | None = None
    """[H, W] int64, the part at each pixel, -1 = none."""
    frame: Tensor | None = None
    """[4] float32 (x, y, width, height), pixels: box that normalises key points (`frame_of`)."""
    present: Tensor | None = None
    """[C] bool."""


@dataclass(frozen=True)
class Batch:
    """Stacked samples. A field is None if the data set does not have this annotation."""

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
    """Number of images without a label; they are the last ones of the batch."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def targets(self) -> Tensor:
        """Targets of a classifier: `present` [B, C] bool for multi-label data sets, else `label` [B] int64."""
        return self.label if self.present is None else self.present

    def with_labels(self) -> "Batch":
        """The labelled part of the batch. Raises ValueError if there is none."""
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
        """A copy of the batch with every tensor on `device` (asynchronous from pinned memory)."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """A copy of the batch in page-locked memory; called by a DataLoader with pin_memory=True."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


def collate(samples: Sequence[Sample], skipped: Sequence[str] = ()) -> Batch:
    """Stack samples of one data set into a Batch; the `collate_fn` of a DataLoader over a Split.

    Raises ValueError on an empty list, and UserError where some samples have an annotation that others do not have.
    """
    if not samples:
        raise ValueError("cannot collate an empty list of samples")

    def values(name: str) -> list[Any]:
        """Of every sample; empty if none has one."""
        found = [getattr(sample, name) for sample in samples]
        lacking = [sample.path for sample, value in zip(samples, found, strict=True) if value is None]
        if lacking and len(lacking) < len(samples):
            raise UserError(f"{lacking[0]} has no {name}, which other images have; give it for all images or for none")
        return [] if lacking else found

    def stack(name: str) -> Tensor | None:
        return torch.stack(found) if (found := values(name)) else None

    return Batch(
        image=torch.stack([sample.image for sample in samples]),
        label=torch.tensor([sample.label for sample in samples]),
        paths=tuple(sample.path for sample in samples),
        group=torch.tensor(groups) if (groups := values("group")) else None,
        mask=stack("mask"),
        keypoints=stack("keypoints"),
        boxes=tuple(values("boxes")) or None,
        box_labels=tuple(values("box_labels")) or None,
        part_labels=stack("part_labels"),
        frame=stack("frame"),
        present=stack("present"),
        skipped=tuple(skipped),
        unlabelled=sum(sample.label == UNLABELLED for sample in samples),
    )
