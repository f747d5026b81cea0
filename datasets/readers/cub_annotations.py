"""The images of CUB-200-2011 and their boxes, key points and masks, by the image's relative path; those of NABirds too.

Each kind of annotation is optional (its file or folder may be absent), but must be complete where it is present.
Waterbirds has CUB's birds on other backgrounds under the same relative paths, so both data sets use these annotations.
images.txt decides which images there are: rows of other images in the other files are left out, and one line says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from datasets.formats.number_table import NumberTable, TextIds, check_ids, id_text
from datasets.formats.tables import IndexRow, by_id, by_text, read_spaced

IMAGES = ("id", "path")
BOXES = ("id", "x", "y", "width", "height")
PARTS = ("part_id", "name")
PART_LOCATIONS = ("id", "part_id", "x", "y", "visible")
INDEX, BOX_FILE, PART_FILE, LOCATION_FILE = "images.txt", "bounding_boxes.txt", "parts/parts.txt", "parts/part_locs.txt"


@dataclass(frozen=True)
class CubAnnotations:
    """Images and annotations; None where the data set has none of a kind."""

    source: Path
    """The file images.txt."""
    ids: np.ndarray
    """[N] int64, in the order of the file; of `text_ids` their numbers."""
    text_ids: TextIds | None
    """Where the files have ids that are no numbers."""
    position: Mapping[str, int]
    """Relative path -> position of the image in the arrays."""
    boxes: np.ndarray | None
    """[N, 1, 4] float32 xyxy, pixels."""
    keypoints: np.ndarray | None
    """[N, P, 3] float32 (x, y, visible), pixels."""
    part_names: tuple[str, ...] | None
    left_out: Mapping[str, int]
    """File -> number of its rows that belong to images which images.txt does not list."""

    def of(self, path: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Boxes [1, 4] and key points [P, 3] of an image. Raises UserError if the index has no such image."""
        if self.boxes is None and self.keypoints is None:
            return None, None
        if path not in self.position:
            raise UserError(f"{self.source}: no line for the image {path}; restore the file as published")
        i = self.position[path]
        return None if self.boxes is None else self.boxes[i], None if self.keypoints is None else self.keypoints[i]


def read_annotations(base: Path, *, text_ids: bool = False) -> CubAnnotations:
    """Images and annotations in CUB's folder `base`; none where it has no images.txt. Raises UserError.

    `text_ids`: the ids of images are texts. Read once, and shared between splits and data sets, until a file changes.
    """
    names = (INDEX, BOX_FILE, PART_FILE, LOCATION_FILE, "parts")
    return _read(base, tuple(_identity(base / name) for name in names), text_ids)


def mask_folder(base: Path) -> Path | None:
    """The folder of the masks, which have their images' relative paths with the suffix .png; None if absent."""
    folder = base / "segmentations"
    return folder if folder.is_dir() else None


def _identity(path: Path) -> tuple[int, ...] | None:
    """What differs between a file and its replacement; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=2)
def _read(base: Path, identities: tuple[tuple[int, ...] | None, ...], text_ids: bool) -> CubAnnotations:
    index = base / INDEX
    if not index.exists():
        return CubAnnotations(index, np.zeros(0, np.int64), None, {}, None, None, None, {})
    rows: Mapping[Any, IndexRow] = (by_text if text_ids else by_id)(read_spaced(index, IMAGES), "id")
    texts = TextIds(rows) if text_ids else None
    ids = np.array([texts.number(key) for key in rows] if texts else list(rows), np.int64)
    position = {row.file("path"): i for i, row in enumerate(by_text(rows.values(), "path").values())}
    boxes = keypoints = names = None
    left_out = {}
    if (base / BOX_FILE).exists():
        boxes, left_out[BOX_FILE] = _boxes(base / BOX_FILE, index, ids, texts)
    if (base / "parts").is_dir():
        names, keypoints, left_out[LOCATION_FILE] = _parts(base, index, ids, texts)
    return CubAnnotations(index, ids, texts, position, boxes, keypoints, names, left_out)


def _boxes(path: Path, index: Path, ids: np.ndarray, texts: TextIds | None) -> tuple[np.ndarray, int]:
    """[N, 1, 4] xyxy, and the number of rows of other images."""
    table = NumberTable(path, BOXES, texts)
    corners = table.numbers(*BOXES[1:])
    flat = (corners[:, 2:] <= 0).any(axis=1)
    if flat.any():
        i = int(flat.argmax())
        raise table.row(i).error(f"the box is {corners[i, 2]:g} wide and {corners[i, 3]:g} high; both must be above 0")
    corners[:, 2:] += corners[:, :2]
    rows, other = table.positions(ids, index)
    return corners[rows].astype(np.float32)[:, None], other


def _parts(base: Path, index: Path, ids: np.ndarray, texts: TextIds | None) -> tuple[tuple[str, ...], np.ndarray, int]:
    """Names in the order of their ids, the locations [N, P, 3], and the number of rows of other images."""
    named = by_id(read_spaced(base / PART_FILE, PARTS), "part_id")
    part_ids = np.array(sorted(named), np.int64)  # may have gaps; row p of the result is the p-th id
    table = NumberTable(base / LOCATION_FILE, PART_LOCATIONS, texts)
    image, part = table.integers("id"), table.integers("part_id", named.keys())
    table.integers("visible", (0, 1))
    check_ids(ids, index, image, table.path, texts)
    listed = np.flatnonzero(np.isin(image, ids))
    order = np.argsort(ids)
    cells = order[np.searchsorted(ids, image[listed], sorter=order)] * len(part_ids)
    cells += np.searchsorted(part_ids, part[listed])
    found, first = np.unique(cells, return_index=True)
    if len(found) < len(cells):
        row = table.row(int(listed[np.setdiff1d(np.arange(len(cells)), first)[0]]))
        raise row.error(
            f"part {row.cells['part_id']} of image {row.cells['id']} appears a second time; keep one of the two"
        )
    points = np.full((len(ids), len(part_ids), 3), np.nan, np.float32)
    points.reshape(-1, 3)[cells] = table.numbers("x", "y", "visible")[listed]
    lacking = np.isnan(points).any(axis=(1, 2))
    if lacking.any():
        image_id = id_text(ids[lacking.argmax()], texts)
        raise UserError(
            f"{table.path}: image {image_id} has fewer than {len(part_ids)} parts; restore the file as published"
        )
    return tuple(named[key].text("name") for key in part_ids), points, len(image) - len(listed)
