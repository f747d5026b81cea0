"""Boxes in the XML files that ImageNet and PASCAL VOC publish beside their pictures. The files are not trusted."""

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from common.errors import UserError

LARGEST = 1 << 20
"""Bytes; the published files have a few hundred for each box."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_boxes(path: Path, size_hw: tuple[int, int]) -> np.ndarray:
    """[N, 4] float32 xyxy pixels: every object/bndbox of the file, whatever its class, as published.

    size_hw: the picture's height and width, which the file must state. Nothing in the file names another file to read.
    Raises UserError, naming the file, where it is missing, broken, too large, or says what cannot be.
    """
    root = _parse(path)
    width, height = (_number(root, f"size/{side}", path) for side in ("width", "height"))
    if (height, width) != size_hw:
        pixels = f"{size_hw[1]} x {size_hw[0]}"
        raise UserError(f"{path} is for a picture of {width:g} x {height:g} pixels, not {pixels}; restore both files")
    boxes = [[_number(box, corner, path) for corner in CORNERS] for box in root.iterfind("object/bndbox")]
    for x0, y0, x1, y1 in boxes:
        if x1 <= x0 or y1 <= y0:
            raise UserError(f"{path}: a box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) has no area; restore the file")
    return np.array(boxes, np.float32).reshape(-1, 4)


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
    """The finite number at a place below the element."""
    text = (element.findtext(place) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}: {place} is {text[:40]!r}, not a number; restore the file as published")
    return value
