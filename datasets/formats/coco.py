"""COCO's JSON format, and part annotations in it; polygons are drawn by pycocotools."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from common.errors import UserError
from common.files import parse_json, read_file
from datasets.formats.tables import leaves_folder

BACKGROUND = 0.1
"""Score of the background at every pixel; a part's mask scores 1."""
LARGEST = 1 << 29
"""Bytes of a file."""
FAR = 8
"""Largest coordinate of a polygon point, in units of the image's longer side."""


@dataclass(frozen=True)
class Annotation:
    """One part of one image."""

    number: int
    category: int
    outlines: list[np.ndarray] | dict[str, Any]
    """Polygons, each [2 n] float64 (x, y, x, y ...), or run lengths in one of COCO's two formats."""


@dataclass(frozen=True)
class CocoImage:
    """One image of a file: its name, its size and its annotations."""

    name: str
    size_hw: tuple[int, int]
    annotations: tuple[Annotation, ...]


def read_coco(path: Path) -> tuple[list[CocoImage], tuple[str, ...]]:
    """The images with annotations, in the file's order, and the category names, in the order of their ids from 0.

    Annotations with area 0 and crowds are skipped; images without any annotation are dropped. Raises UserError, naming
    the file, where it is missing or not in this format.
    """
    with load_coco(path) as content:
        names = {int(item["id"]): str(item["name"]) for item in content["categories"]}
        kept: dict[int, list[Annotation]] = {int(item["id"]): [] for item in content["images"]}
        for item in content["annotations"]:
            if item["area"] > 0 and not item.get("iscrowd"):
                kept[item["image_id"]].append(_annotation(item))
        strange = [item["id"] for item in content["annotations"] if item["category_id"] not in names]
        images = [
            CocoImage(str(item["file_name"]), (int(item["height"]), int(item["width"])), tuple(kept[item["id"]]))
            for item in content["images"]
        ]
        if outside := next((image.name for image in images if leaves_folder(image.name)), None):
            raise ValueError(f"file_name leaves its folder or is no path: {outside!r}")
    if strange:
        raise UserError(f"{path}: annotation {strange[0]} has an unknown category; restore the file")
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{path}: the categories' ids are {sorted(names)[:50]}, not 0, 1, 2, ...; number them from 0")
    return [image for image in images if image.annotations], tuple(names[i] for i in range(len(names)))


def part_labels(image: CocoImage, path: Path) -> np.ndarray:
    """[H, W] int16: the category at every pixel, -1 = background.

    The category with the most masks at the pixel; ties go to the lower id. Raises UserError, naming the annotation
    file `path`, for masks that cannot be decoded.
    """
    sums: dict[int, np.ndarray] = {}
    for item in image.annotations:
        drawn = _draw(item, image.size_hw, path).astype(np.float32)
        sums[item.category] = sums.get(item.category, 0) + drawn
    ids = sorted(sums)
    # Overlapping masks of one part add up, so layers hold counts; argmax takes the first of equal layers.
    layers = np.stack([np.full(image.size_hw, BACKGROUND, np.float32), *(sums[i] for i in ids)])
    return np.array([-1, *ids], np.int16)[layers.argmax(axis=0)]


def _annotation(item: Mapping[str, Any]) -> Annotation:
    """Polygons become arrays: as Python lists those of the whole data set would take a gigabyte.

    Raises ValueError for an invalid polygon.
    """
    outlines = item["segmentation"]
    if not isinstance(outlines, dict):
        outlines = [_polygon(outline, item) for outline in outlines]
        if not outlines:
            raise ValueError(f"annotation {item['id']} has no outline")
    return Annotation(int(item["id"]), int(item["category_id"]), outlines)


def _polygon(outline: Sequence[float], item: Mapping[str, Any]) -> np.ndarray:
    """The polygon's points; the published files have some of four numbers, which stand for the annotation's box."""
    points = np.array(outline, np.float64)
    if points.shape == (4,):
        x, y, width, height = map(float, item["bbox"])
        return np.array([x, y, x + width, y, x + width, y + height, x, y + height])
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise ValueError(f"an outline of annotation {item['id']} is not a list of points x, y, x, y ...")
    return points


def _draw(annotation: Annotation, size_hw: tuple[int, int], path: Path) -> np.ndarray:
    """[H, W] bool or uint8, 0 or 1: the polygons filled, or the run lengths decoded."""
    try:
        return _decode(annotation.outlines, size_hw)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        problem = f"annotation {annotation.number} cannot be decoded ({what})"
        raise UserError(f"{path}: {problem}; restore the file") from None


def _decode(outlines: list[np.ndarray] | dict[str, Any], size_hw: tuple[int, int]) -> np.ndarray:
    """[H, W] bool or uint8. Raises ValueError for input on which pycocotools would write out of bounds."""
    if isinstance(outlines, list):
        if any(np.abs(outline).max() > FAR * max(size_hw) for outline in outlines):
            raise ValueError("a point lies far outside the image")
        return np.asarray(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outlines, *size_hw))))
    if tuple(outlines["size"]) != size_hw:
        raise ValueError(f"its size is {outlines['size']}")
    counts = outlines["counts"]
    if isinstance(counts, str):
        counts = _run_lengths(counts)
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != size_hw[0] * size_hw[1]:
        raise ValueError("the run lengths do not fill the image")
    values = np.arange(len(counts)) % 2 == 1  # background first; runs go down the columns
    return np.repeat(values, counts).reshape(size_hw[::-1]).T


def _run_lengths(text: str) -> list[int]:
    """Run lengths from COCO's compressed text; pycocotools checks neither where a number ends nor what they add up to.

    A character is 48 plus six bits: five of a signed number, lowest first, and whether more follow. From the fourth run
    on, a number is the difference to the run before the last.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("its text is not made of run lengths")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                number -= 1 << shift
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    if shift:
        raise ValueError("its text ends within a run length")
    return counts


@contextlib.contextmanager
def load_coco(path: Path) -> Iterator[Any]:
    """The content of a JSON file, for a `with` block that reads it as COCO's format.

    Raises UserError, naming the file, where it is missing or not JSON, or where the block fails on it.
    """
    try:
        content = parse_json(read_file(path, LARGEST))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; unpack the published archive there, or correct data.root") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path} ({type(error).__name__}: {error}); restore the file") from None
    try:
        yield content
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{path} is not in COCO's format ({what}); restore the file as published") from None
