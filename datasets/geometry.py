"""Resize and crop a record with all its annotations. Nothing is changed in place: a record may be read twice.

This is done with PIL, as in the published code, and not with albumentations, where the results differ: OpenCV does not
antialias when it shrinks with bilinear or bicubic interpolation (fine textures differ by over 100 grey levels), its
centre crop rounds down, coordinates are rounded to float32, and boxes are always clipped, which loses `frame_of`.
"""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.config import DataConfig
from datasets.types import RawSample

BILINEAR = Image.Resampling.BILINEAR
RESAMPLING = {"bilinear": BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SQUASH_FROM = 384
"""Side in pixels from which on ImageNet's evaluation resizes the whole image instead of cropping it."""


def resize_to_cover(raw: RawSample, size_hw: tuple[int, int], resampling: Image.Resampling = BILINEAR) -> RawSample:
    """Resize to the smallest size of the same aspect ratio that covers (height, width).

    Antialiased (mask, part labels: nearest). The long side is rounded down, as in torchvision.
    """
    height, width = raw.image.shape[:2]
    target_h, target_w = size_hw
    if target_h * width >= target_w * height:
        new_h, new_w = target_h, target_h * width // height
    else:
        new_h, new_w = target_w * height // width, target_w
    return resize(raw, (new_h, new_w), resampling)


def resize(raw: RawSample, size_hw: tuple[int, int], resampling: Image.Resampling = BILINEAR) -> RawSample:
    """Resize to (height, width), whatever the aspect ratio. Antialiased (mask, part labels: nearest)."""
    (height, width), (new_h, new_w) = raw.image.shape[:2], size_hw
    if (new_h, new_w) == (height, width):
        return raw
    if raw.image.strides == (0, 0, 0):  # the same colour everywhere
        image = np.broadcast_to(raw.image[:1, :1], (new_h, new_w, 3))
    else:
        image = np.asarray(Image.fromarray(raw.image).resize((new_w, new_h), resampling))
    mask = None if raw.mask is None else _nearest(raw.mask, size_hw).astype(bool)
    part_labels = None if raw.part_labels is None else _nearest(raw.part_labels, size_hw).astype(np.int16)
    scale = np.array([new_w / width, new_h / height])
    keypoints = None if raw.keypoints is None else np.hstack([raw.keypoints[:, :2] * scale, raw.keypoints[:, 2:]])
    boxes = None if raw.boxes is None else raw.boxes * np.tile(scale, 2)
    return replace(raw, image=image, mask=mask, keypoints=keypoints, boxes=boxes, part_labels=part_labels)


def _nearest(values: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Integers [H, W] resized to (height, width), int32."""
    return np.asarray(Image.fromarray(values.astype(np.int32)).resize(size_hw[::-1], Image.Resampling.NEAREST))


def centre_crop(raw: RawSample, size_hw: tuple[int, int]) -> RawSample:
    """Crop the centre (height, width); origin = round((size - crop) / 2), halves to even, as in torchvision."""
    height, width = raw.image.shape[:2]
    top, left = round((height - size_hw[0]) / 2), round((width - size_hw[1]) / 2)
    rows, columns = slice(top, top + size_hw[0]), slice(left, left + size_hw[1])
    keypoints = None if raw.keypoints is None else raw.keypoints - np.array([left, top, 0])
    boxes = None if raw.boxes is None else raw.boxes - np.array([left, top, left, top])
    mask = None if raw.mask is None else raw.mask[rows, columns]
    labels = None if raw.part_labels is None else raw.part_labels[rows, columns]
    return replace(raw, image=raw.image[rows, columns], mask=mask, keypoints=keypoints, boxes=boxes, part_labels=labels)


def evaluation_view(raw: RawSample, size_hw: tuple[int, int], config: DataConfig) -> RawSample:
    """Resize and crop to (height, width) by data.evaluation, data.interpolation and data.crop, none of them auto."""
    resampling = RESAMPLING[config.interpolation]
    if config.evaluation == "imagenet" and min(size_hw) >= SQUASH_FROM:
        return resize(raw, size_hw, resampling)
    height, width = (int(side / config.crop) for side in size_hw)  # rounded down, as in timm
    to_size = resize if config.evaluation == "squash" else resize_to_cover
    return centre_crop(to_size(raw, (height, width), resampling), size_hw)


def inside_keypoints(keypoints: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Key points [P, 3]; those outside (height, width) become invisible and move to the nearest pixel inside."""
    height, width = size_hw
    points, limit = keypoints[:, :2], np.array([width - 1, height - 1])
    # Pixel 0 has its centre at 0, so it reaches from -0.5 to 0.5.
    inside = ((points > -0.5) & (points < limit + 0.5)).all(1)
    return np.column_stack([np.clip(points, 0, limit), keypoints[:, 2] * inside])


def inside_boxes(boxes: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Boxes [N, 4 or more] clipped to (height, width); boxes without any area left are dropped.

    Columns after the fourth are kept unchanged.
    """
    height, width = size_hw
    cut = np.column_stack([np.clip(boxes[:, :4], 0, np.array([width, height, width, height])), boxes[:, 4:]])
    return cut[(cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])]


def labels_inside(raw: RawSample) -> Tensor | None:
    """[N] int64, the classes of the boxes that `inside_boxes` keeps; None for a record without box labels."""
    if raw.boxes is None or raw.box_labels is None:
        return None
    labelled = np.column_stack([raw.boxes, raw.box_labels])
    return torch.from_numpy(inside_boxes(labelled, raw.image.shape[:2])[:, 4].astype(np.int64))


def frame_of(raw: RawSample) -> Tensor | None:
    """[4] float32 (x, y, width, height): the first box of a record with key points, by which they are normalised.

    As published, the corner moves to the nearest pixel of the image and the size stays, even if the box extends
    beyond the image. None for a record without key points or boxes.
    """
    if raw.keypoints is None or raw.boxes is None or not len(raw.boxes):
        return None
    height, width = raw.image.shape[:2]
    left, top, right, bottom = raw.boxes[0]
    corner = np.clip([left, top], 0, [width - 1, height - 1])
    return torch.tensor([*corner, right - left, bottom - top], dtype=torch.float32)
