"""Bounding boxes from the XML files of ImageNet and PASCAL VOC. The files are not trusted."""

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from common.errors import UserError
from common.files import read_file
from datasets.formats.images import size_advice

LARGEST = 1 << 20
"""Bytes of a file; the published ones have a few hundred per box."""
FARTHEST = 1 << 20
"""Largest coordinate, pixels."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class BoxFile:
    """The boxes of one image."""

    size_hw: tuple[float, float]
    """Height and width of the image, pixels."""
    names: tuple[str, ...]
    """Class name of each box."""
    boxes: np.ndarray
    """[N, 4] float32 xyxy pixels."""


def read_boxes(path: Path, size_hw: tuple[int, int]) -> np.ndarray:
    """[N, 4] float32 xyxy pixels: every box of the file, whatever its class.

    Raises UserError as `read_box_file` does, and where the file states another image size than `size_hw`.
    """
    found = read_box_file(path)
    if found.size_hw != size_hw:
        sizes = [f"{width:g} x {height:g}" for height, width in (found.size_hw, size_hw)]
        advice = size_advice(found.size_hw, size_hw)
        raise UserError(f"{path} is for an image of {sizes[0]} pixels, not {sizes[1]}; {advice}")
    return found.boxes


def read_box_file(path: Path, first_pixel: int = 0) -> BoxFile:
    """Every object/bndbox of the file.

    `first_pixel`: the number of the first column and row. VOC counts from 1 and a box includes its last pixel, so its
    edges are (xmin - 1, ymin - 1, xmax, ymax).
    Raises UserError, naming the file, where it is missing, broken or too large, or a box has no area.
    """
    root = _parse(path)
    width, height = (_number(root, f"size/{side}", path) for side in ("width", "height"))
    objects = [(item, box) for item in root.iterfind("object") for box in item.iterfind("bndbox")]
    corners = np.array([[_number(box, corner, path) for corner in CORNERS] for _, box in objects]).reshape(-1, 4)
    corners[:, :2] -= first_pixel  # xmax, ymax of an inclusive last pixel are edges already
    boxes = corners.astype(np.float32)
    for x0, y0, x1, y1 in boxes:
        if x1 <= x0 or y1 <= y0:
            raise UserError(f"{path}: a box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) has no area; restore the file")
    names = tuple((item.findtext("name") or "").strip() for item, _ in objects)
    return BoxFile((height, width), names, boxes)


def _parse(path: Path) -> ElementTree.Element:
    try:
        content = read_file(path, LARGEST)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); restore the file as published") from None
    try:
        text = content.decode("utf-8-sig")
        # Entities can expand without limit or fetch other files, and need a DOCTYPE; published files have none.
        # NUL characters would make the parser read UTF-16, which could hide a DOCTYPE from this check.
        if "<!DOCTYPE" in text or "\0" in text:
            raise UserError(f"{path} contains a DOCTYPE or NUL characters; restore the file as published")
        return ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise UserError(f"{path} is not valid XML ({error}); restore the file as published") from None


def _number(element: ElementTree.Element, place: str, path: Path) -> float:
    """The number in a child element."""
    text = (element.findtext(place) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= FARTHEST:  # false for NaN too
        raise UserError(f"{path}: {place} is {text[:40]!r}, not a number of pixels; restore the file as published")
    return value
