"""Boxes in the XML files that ImageNet and PASCAL VOC publish beside their images. The files are not trusted."""

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from common.errors import UserError

LARGEST = 1 << 20
"""Bytes; the published files have a few hundred for each box."""
FARTHEST = 1 << 20
"""Pixels."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class BoxFile:
    """What a box file says."""

    size_hw: tuple[float, float]
    """Of its image: height and width, pixels."""
    names: tuple[str, ...]
    """Class of the object of each box."""
    boxes: np.ndarray
    """[N, 4] float32 xyxy pixels."""


def read_boxes(path: Path, size_hw: tuple[int, int]) -> np.ndarray:
    """[N, 4] float32 xyxy pixels: every box of the file, whatever its class, as published.

    size_hw: the image's height and width, which the file must state. Raises UserError as `read_box_file` does.
    """
    found = read_box_file(path)
    if found.size_hw != size_hw:
        sizes = [f"{width:g} x {height:g}" for height, width in (found.size_hw, size_hw)]
        raise UserError(f"{path} is for an image of {sizes[0]} pixels, not {sizes[1]}; restore both files")
    return found.boxes


def read_box_file(path: Path, first_pixel: int = 0) -> BoxFile:
    """Every object/bndbox of the file. Nothing in the file names another file to read.

    `first_pixel`: what the file calls the first column and row. VOC counts from 1 and its box includes its last pixel,
    so that there a box's edges are (xmin - 1, ymin - 1, xmax, ymax).
    Raises UserError, naming the file, where it is missing, broken, too large, or says what cannot be.
    """
    root = _parse(path)
    width, height = (_number(root, f"size/{side}", path) for side in ("width", "height"))
    objects = [(item, box) for item in root.iterfind("object") for box in item.iterfind("bndbox")]
    corners = np.array([[_number(box, corner, path) for corner in CORNERS] for _, box in objects]).reshape(-1, 4)
    corners[:, :2] -= first_pixel
    boxes = corners.astype(np.float32)
    for x0, y0, x1, y1 in boxes:
        if x1 <= x0 or y1 <= y0:
            raise UserError(f"{path}: a box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) has no area; restore the file")
    names = tuple((item.findtext("name") or "").strip() for item, _ in objects)
    return BoxFile((height, width), names, boxes)


def _parse(path: Path) -> ElementTree.Element:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"cannot read {path} ({type(error).__name__}); restore the file as published") from None
    if len(content) > LARGEST:
        raise UserError(f"{path} has over {LARGEST} bytes, far more than boxes need; restore the file as published")
    try:
        text = content.decode("utf-8-sig")
        # Entities, which can expand without end or fetch other files, need a document type. Published files have none.
        # Zero characters would make the parser take the text for UTF-16, in which one could hide.
        if "<!DOCTYPE" in text or "\0" in text:
            raise UserError(f"{path} holds a document type or zeros, as no box file does; restore it as published")
        return ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise UserError(f"{path} is no XML ({error}); restore the file as published") from None


def _number(element: ElementTree.Element, place: str, path: Path) -> float:
    """The number at a place below the element."""
    text = (element.findtext(place) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= FARTHEST:  # so is nan not
        raise UserError(f"{path}: {place} is {text[:40]!r}, not a number of pixels; restore the file as published")
    return value
