"""Boxes, key points and masks of CUB-200-2011, by the image's relative path.

Each kind is optional (its file or folder may be absent), but must be complete where it is present. Waterbirds has CUB's
birds on other backgrounds under the same relative paths, so both data sets use these annotations.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from datasets.formats.tables import IndexRow, by_id, read_spaced, same_ids

IMAGES = ("id", "path")
BOXES = ("id", "x", "y", "width", "height")
PARTS = ("part_id", "name")
PART_LOCATIONS = ("id", "part_id", "x", "y", "visible")


@dataclass(frozen=True)
class CubAnnotations:
    """Annotations by relative path; None where the data set has none of a kind."""

    source: Path
    boxes: Mapping[str, np.ndarray] | None
    """[1, 4] float32 xyxy, pixels."""
    keypoints: Mapping[str, np.ndarray] | None
    """[P, 3] float32 (x, y, visible), pixels."""
    part_names: tuple[str, ...] | None
    segmentations: Path | None

    def of(self, path: str) -> tuple[np.ndarray | None, np.ndarray | None, Path | None]:
        """Boxes, key points and mask file of an image. Raises UserError if the index has no such image."""
        mask = None if self.segmentations is None else (self.segmentations / path).with_suffix(".png")
        return self._look_up(self.boxes, path), self._look_up(self.keypoints, path), mask

    def _look_up(self, table: Mapping[str, np.ndarray] | None, path: str) -> np.ndarray | None:
        if table is None:
            return None
        if path not in table:
            raise UserError(f"{self.source}: no line for the image {path}; restore the file as published")
        return table[path]


def read_annotations(base: Path) -> CubAnnotations:
    """All annotations in CUB's folder `base`; only the masks where it has no images.txt. Raises UserError."""
    index = base / "images.txt"
    boxes = parts = names = None
    if index.exists():
        paths = {key: row.text("path") for key, row in by_id(read_spaced(index, IMAGES), "id").items()}
        if (base / "bounding_boxes.txt").exists():
            rows = rows_of(paths, index, base / "bounding_boxes.txt", BOXES)
            boxes = {paths[key]: _box(row) for key, row in rows.items()}
        if (base / "parts").is_dir():
            names, parts = _parts(base / "parts", index, paths)
    folder = base / "segmentations"
    return CubAnnotations(index, boxes, parts, names, folder if folder.is_dir() else None)


def rows_of(ids: Iterable[int], index: Path, path: Path, columns: Sequence[str]) -> dict[int, IndexRow]:
    """The rows of `path` by id. Raises UserError unless it has exactly the ids of images.txt (`index`)."""
    rows = by_id(read_spaced(path, columns), "id")
    same_ids(index, ids, path, rows)
    return rows


def _box(row: IndexRow) -> np.ndarray:
    x, y, width, height = (row.number(column) for column in BOXES[1:])
    box = np.array([[x, y, x + width, y + height]], np.float32)
    if (box[:, 2:] <= box[:, :2]).any():
        raise row.error(f"the box is {width:g} wide and {height:g} high; both must be above 0")
    return box


def _parts(folder: Path, index: Path, paths: Mapping[int, str]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Names in the order of their ids, and the locations [P, 3] of every image."""
    named = by_id(read_spaced(folder / "parts.txt", PARTS), "part_id")
    # Part ids may have gaps; row p of the result is the p-th id.
    position = {key: i for i, key in enumerate(sorted(named))}
    path = folder / "part_locs.txt"
    found: dict[int, np.ndarray] = {}
    for row in read_spaced(path, PART_LOCATIONS):
        key, part = row.integer("id"), position[row.integer("part_id", position)]
        # NaN marks a part that has not been read yet.
        points = found.setdefault(key, np.full((len(position), 3), np.nan, np.float32))
        if not np.isnan(points[part, 0]):
            raise row.error(f"part {row.cells['part_id']} of image {key} appears a second time; keep one of the two")
        points[part] = row.number("x"), row.number("y"), row.integer("visible", (0, 1))
    same_ids(index, paths, path, found)
    for key, points in found.items():
        if np.isnan(points).any():
            raise UserError(f"{path}: image {key} has fewer than {len(position)} parts; restore the file as published")
    return tuple(named[key].text("name") for key in position), {paths[key]: each for key, each in found.items()}
