"""The index file of the data set `folder`: one line per image."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from datasets.config import DataConfig
from datasets.formats.own_table import read_own_table
from datasets.formats.tables import IndexRow, leaves_folder

INDEX_FILES = ("index.csv", "index.tsv")
COLUMNS, OPTIONAL = ("path", "label", "split"), ("group", "place", "mask", "box")
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Name of a split, in lower case, as a folder or in the index -> the split."""
BETWEEN_BOXES = "|"


@dataclass(frozen=True)
class Entry:
    """One image."""

    path: Path
    split: str
    """Of the index or the folder that it is in; `val` may be held out of "train"."""
    labels: tuple[str, ...]
    """One, except for multi-label data."""
    group: str | None = None
    mask: Path | None = None
    boxes: np.ndarray | None = None
    """[N, 4] xyxy, pixels."""


def find_index(config: DataConfig, root: Path) -> Path | None:
    """The file data.index, else index.csv or index.tsv in `root`; None if there is none."""
    if config.index:
        path = Path(config.index).expanduser()
        if not path.is_file():
            raise UserError(f"data.index: no file {path}; correct the path")
        return path
    return next((root / name for name in INDEX_FILES if (root / name).is_file()), None)


def read_index(path: Path, root: Path, config: DataConfig) -> tuple[list[Entry], dict[str, str]]:
    """The images of all splits, and where each split that is there comes from, as "index.csv, split train".

    Paths are relative to `root`, those of images to data.image_folder in it. Raises UserError naming file and line.
    """
    base = root / config.image_folder
    entries, lines = [], dict[Path, int]()
    for row in read_own_table(path, COLUMNS, OPTIONAL):
        image = base / _file(row, "path")
        if image in lines:  # it could be in two splits
            raise row.error(f"{row.cells['path']} is already in line {lines[image]}; keep one of the two")
        lines[image] = row.line
        mask = root / _file(row, "mask") if "mask" in row.cells else None
        boxes = _boxes(row) if "box" in row.cells else None
        labels = _labels(row, config.label_separator)
        entries.append(Entry(image, _split(row), labels, _group(row, labels), mask, boxes))
    splits = {entry.split for entry in entries}
    return entries, {split: f"{path.name}, split {split}" for split in sorted(splits)}


def _file(row: IndexRow, column: str) -> Path:
    """A path that stays below the folder it is relative to; written with / or, on Windows, with backslashes."""
    cell = row.cells[column].replace("\\", "/")
    if not cell:
        raise row.error(f"column {column} is empty; every image needs one")
    if leaves_folder(cell):
        raise row.error(f"column {column} is {cell!r}; write a path relative to data.root, without ..")
    return Path(os.path.normpath(cell))


def _split(row: IndexRow) -> str:
    name = row.cells["split"]
    if name.lower() not in SPLIT_NAMES:
        raise row.error(f"column split is {name!r}; it must be train, val or test")
    return SPLIT_NAMES[name.lower()]


def _labels(row: IndexRow, separator: str) -> tuple[str, ...]:
    cell = row.cells["label"]
    labels = tuple(dict.fromkeys(part.strip() for part in cell.split(separator))) if separator else (cell,)
    if not all(labels):
        raise row.error(f"column label is {cell!r}; every image needs a class, if need be one for 'none'")
    return labels


def _group(row: IndexRow, labels: tuple[str, ...]) -> str | None:
    """The column group; without one, class x place."""
    column = next((name for name in ("group", "place") if name in row.cells), None)
    if column is None:
        return None
    if not row.cells[column]:
        raise row.error(f"column {column} is empty; every image needs one")
    return row.cells[column] if column == "group" else f"{' + '.join(labels)}, {row.cells[column]}"


def _boxes(row: IndexRow) -> np.ndarray:
    """[N, 4] from "left top right bottom" in pixels; several are separated by |, an empty cell has none."""
    boxes = []
    for text in filter(str.strip, row.cells["box"].split(BETWEEN_BOXES)):
        try:
            left, top, right, bottom = map(float, text.replace(",", " ").split())
        except ValueError:
            raise row.error(f"box {text.strip()!r} is not four numbers: left top right bottom, pixels") from None
        if not (0 <= left < right < np.inf and 0 <= top < bottom < np.inf):
            raise row.error(f"box {text.strip()!r} has no area or lies outside; write left top right bottom, pixels")
        boxes.append((left, top, right, bottom))
    return np.array(boxes, np.float32).reshape(-1, 4)
