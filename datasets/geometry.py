"""Resizing and cropping a record with all its annotations. Nothing is changed in place: a record may be read twice."""

from dataclasses import replace

import numpy as np
from PIL import Image

from datasets.types import RawSample


def resize_to_cover(raw: RawSample, size_hw: tuple[int, int]) -> RawSample:
    """Smallest size of the same aspect that covers (height, width): for a square, the short side becomes its side.

    Bilinear with antialiasing (mask: nearest). The long side is rounded down, as published.
    """
    height, width = raw.image.shape[:2]
    target_h, target_w = size_hw
    if target_h * width >= target_w * height:
        new_h, new_w = target_h, target_h * width // height
    else:
        new_h, new_w = target_w * height // width, target_w
    if (new_h, new_w) == (height, width):
        return raw
    image = Image.fromarray(raw.image).resize((new_w, new_h), Image.Resampling.BILINEAR)
    mask = raw.mask
    if mask is not None:
        grey = Image.fromarray(mask.astype(np.uint8)).resize((new_w, new_h), Image.Resampling.NEAREST)
        mask = np.asarray(grey) > 0
    scale = np.array([new_w / width, new_h / height])
    parts = None if raw.parts is None else np.hstack([raw.parts[:, :2] * scale, raw.parts[:, 2:]])
    boxes = None if raw.boxes is None else raw.boxes * np.tile(scale, 2)
    return replace(raw, image=np.asarray(image), mask=mask, parts=parts, boxes=boxes)


def centre_crop(raw: RawSample, size_hw: tuple[int, int]) -> RawSample:
    """The middle (height, width); origin = round((size - crop) / 2), halves to even, as published."""
    height, width = raw.image.shape[:2]
    top, left = round((height - size_hw[0]) / 2), round((width - size_hw[1]) / 2)
    rows, columns = slice(top, top + size_hw[0]), slice(left, left + size_hw[1])
    parts = None if raw.parts is None else raw.parts - np.array([left, top, 0])
    boxes = None if raw.boxes is None else raw.boxes - np.array([left, top, left, top])
    mask = None if raw.mask is None else raw.mask[rows, columns]
    return replace(raw, image=raw.image[rows, columns], mask=mask, parts=parts, boxes=boxes)


def inside_parts(parts: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Key points [P, 3]; those outside (height, width) become invisible and move to its nearest pixel."""
    height, width = size_hw
    points, limit = parts[:, :2], np.array([width - 1, height - 1])
    inside = ((points > -0.5) & (points < limit + 0.5)).all(1)
    return np.column_stack([np.clip(points, 0, limit), parts[:, 2] * inside])


def inside_boxes(boxes: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Boxes [N, 4] cut to (height, width), so shortened where they stick out; boxes left without area are dropped."""
    height, width = size_hw
    cut = np.clip(boxes, 0, np.array([width, height, width, height]))
    return cut[(cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])]
