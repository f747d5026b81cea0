"""Data sets whose records are image files."""

import os
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.errors import UserError
from datasets.config import DataConfig
from datasets.formats.images import read_image, read_mask, size_advice
from datasets.image_cache import stored_image
from datasets.types import SPLITS, DatasetInfo, RawDataset, RawSample

_masks_read: ContextVar[bool] = ContextVar("masks_read", default=True)


def read_bare(raw: RawDataset, index: int) -> RawSample:
    """A record without mask, key points, boxes and part labels; of image files, masks are not even opened."""
    token = _masks_read.set(False)
    try:
        sample = raw.read(index)
    finally:
        _masks_read.reset(token)
    return replace(sample, mask=None, keypoints=None, boxes=None, box_labels=None, part_labels=None)


def masks_are_read() -> bool:
    """False inside `read_bare`: a reader then leaves out masks."""
    return _masks_read.get()


@dataclass(frozen=True)
class Record:
    """One image file and its annotations (see RawSample for shapes and units)."""

    path: Path
    label: int
    group: int | None = None
    mask: Path | None = None
    keypoints: np.ndarray | None = None
    boxes: np.ndarray | None = None
    box_labels: np.ndarray | None = None
    present: np.ndarray | None = None


class FileDataset:
    """A list of records. The files' existence is checked at construction; they are read on demand."""

    rotate = True
    """Rotate images and masks by their EXIF orientation (data.exif=auto). Annotations must fit what this gives."""

    def __init__(self, info: DatasetInfo, records: Sequence[Record], split: str) -> None:
        if not records:
            name = f"the {split} split of data set {info.name!r}"
            raise UserError(f"{name} is empty; check data.root and data.val_fraction")
        check_files([record.path for record in records])
        check_files([record.mask for record in records if record.mask is not None])
        self.info = info
        self.records = records
        self.labels = [record.label for record in records]
        groups = [record.group for record in records if record.group is not None]
        self.groups = groups if len(groups) == len(records) else None

    def __len__(self) -> int:
        return len(self.records)

    def files(self) -> list[Path]:
        """Every file that `read` opens: images and masks."""
        masks = (record.mask for record in self.records if record.mask is not None)
        return [*(record.path for record in self.records), *masks]

    def pixels(self, path: Path) -> np.ndarray:
        """[H, W, 3] uint8 of an image file. Raises UserError where it is unreadable."""
        return read_image(path, rotate=self.rotate)

    def object(self, path: Path) -> np.ndarray:
        """[H, W] bool of a mask file. Raises UserError where it is unreadable."""
        return read_mask(path, rotate=self.rotate)

    def read(self, index: int) -> RawSample:
        """Image, mask and annotations. Raises UserError where a file is unreadable or the sizes differ."""
        record = self.records[index]
        reader = f"{type(self).pixels.__qualname__} {self.rotate}"
        image = stored_image(record.path, reader, lambda: self.pixels(record.path))
        mask = self.object(record.mask) if record.mask is not None and masks_are_read() else None
        if mask is not None:
            check_mask_size(mask, record.mask, image, record.path)
        return RawSample(
            image, record.label, str(record.path), record.group, mask, record.keypoints, record.boxes,
            box_labels=record.box_labels, present=record.present,
        )  # fmt: skip


def check_mask_size(mask: np.ndarray, mask_path: Path | str | None, image: np.ndarray, path: Path | str) -> None:
    """Raise a UserError unless the mask [H, W] has the size of the image [H, W, 3]."""
    if mask.shape != image.shape[:2]:
        sizes = [f"{width} x {height}" for height, width in (mask.shape, image.shape[:2])]
        advice = size_advice(mask.shape, image.shape[:2])
        raise UserError(f"{mask_path} is {sizes[0]} pixels but {path} is {sizes[1]}; {advice}")


def check_split(name: str, split: str) -> None:
    """Raise a UserError on an unknown split."""
    if split not in SPLITS:
        raise UserError(f"data set {name!r} has no split {split!r}; known: {', '.join(SPLITS)}")


def open_root(config: DataConfig, content: str) -> Path:
    """The folder data.root, which should contain `content`. Raises UserError if it is not given or not a folder."""
    if not config.root:
        raise UserError(f"data.root is empty; give the folder that contains {content} (--data.root PATH)")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root: no folder {root}; unpack the data set there or correct the path")
    return root


def find_root(config: DataConfig, marker: str, folders: Sequence[str] = ("CUB_200_2011",)) -> Path:
    """The folder that contains `marker`: data.root itself or one of `folders` in it. Raises UserError."""
    root = open_root(config, marker)
    bases = [root, *(root / folder for folder in folders)]
    for base in bases:
        if (base / marker).exists():
            return base
    raise UserError(f"data.root: neither {' nor '.join(map(str, bases))} contains {marker}; correct the path")


def check_files(paths: Iterable[Path], advice: str = "unpack the images again or correct data.image_folder") -> None:
    """Raise a UserError naming the first missing file. Lists each folder once instead of testing each file."""
    paths = list(paths)
    folders = {folder: _names(folder) for folder in {path.parent for path in paths}}
    if missing := [path for path in paths if path.name not in folders[path.parent]]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]}{more} is missing; {advice}")


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except (OSError, ValueError):  # missing, not readable, or not a valid name
        return frozenset()
