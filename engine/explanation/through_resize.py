"""The certificate through resizing: how far do pixels beyond a visible patch's edge reach the network's input?

A mask hides pixels of the network's input exactly. The image file is resized to that input, so a visible pixel is a
weighted mean of pixels of the file, some of which lie beyond the edge of its patch. Here everything that the mask hides
is overwritten in the file, which is then resized again; the mask is held fixed.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import maximum_filter1d
from torch import Tensor

from common.processes import gather_blocks, processes
from datasets import Split
from datasets.config import DataConfig
from datasets.fixed_steps import eval_geometry
from datasets.types import Batch, RawSample
from engine.explanation.masked_classifier import MaskedClassifier
from metrics.class_mapping import class_logits
from metrics.maps.certificate import FILLS, movement
from metrics.maps.removal import enlarge
from models.selection import Selection

REACH = {"bilinear": 1.0, "bicubic": 2.0}
"""Pixels to each side that the filter reads; times the factor by which an image shrinks."""
NAMES = ("through_resize", "through_resize_margin")
"""Prefixes of the metrics: everything hidden is overwritten; all but the margin that resizing reads."""


def file_scale(raw: RawSample, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """(scale, offset), each (x, y): input = scale * file + offset, in pixels, of edges rather than of centres."""
    height, width = raw.image.shape[:2]
    whole = replace(raw, boxes=np.array([[0.0, 0.0, width, height]]), box_labels=None, keypoints=None)
    boxes = eval_geometry(whole, config).boxes
    assert boxes is not None
    left, top, right, bottom = boxes[0]
    return np.array([(right - left) / width, (bottom - top) / height]), np.array([left, top])


def shown_pixels(visible: np.ndarray, raw: RawSample, config: DataConfig) -> tuple[np.ndarray, np.ndarray, int]:
    """The pixels of the file [H, W] bool whose centres lie in `visible` [h, w] bool, a mask of the network's input.

    Then the same with a margin, all that the visible pixels of the input are computed from, and the margin's width in
    pixels of the file.
    """
    scale, offset = file_scale(raw, config)
    (height, width), inside = raw.image.shape[:2], []
    for count, limit, factor, shift in zip((width, height), visible.shape[::-1], scale, offset, strict=True):
        inside.append(np.floor((np.arange(count) + 0.5) * factor + shift).astype(int))
        inside[-1][(inside[-1] < 0) | (inside[-1] >= limit)] = -1
    columns, rows = inside
    shown = visible[rows][:, columns] & (rows >= 0)[:, None] & (columns >= 0)
    if (scale == 1).all():  # not resized
        return shown, shown, 0
    margin = math.ceil(REACH[config.interpolation] * max(1.0, *(1 / scale))) + 1
    wider = shown
    for axis in (0, 1):
        wider = maximum_filter1d(wider, 2 * margin + 1, axis, mode="constant", cval=0)
    return shown, wider, margin


@dataclass
class ThroughResize:
    """Measures a two-stage model on the images of a split, in their order; part of `ModelChecks`."""

    split: Split
    own: MaskedClassifier
    rows: list[list[float]] = field(default_factory=list)
    """Of each image, for each of NAMES: largest change of a logit over the fills, fraction of the visible pixels of the
    input that changed; whether a patch is visible; the margin."""

    def __post_init__(self) -> None:
        self.next = processes().block(len(self.split)).start
        self.before = self.split.raw.read(self.next - 1).image if 0 < self.next < len(self.split) else None

    def update(self, batch: Batch, fixed: Selection) -> None:
        """Measure one batch; `fixed`: what stage 1 selects in it."""
        visible = enlarge(fixed.visible, (batch.image.shape[2], batch.image.shape[3])).cpu()
        raws = [self.split.raw.read(self.next + i) for i in range(len(batch))]
        first = raws[0].image[::-1, ::-1] if self.before is None else self.before
        others = [first, *(raw.image for raw in raws[:-1])]
        self.next, self.before = self.next + len(batch), raws[-1].image
        kept = [shown_pixels(mask.numpy(), raw, self.own.shown) for mask, raw in zip(visible, raws, strict=True)]
        columns = []
        for shown in ([each for each, _, _ in kept], [wider for _, wider, _ in kept]):  # as NAMES
            found = [
                self._measured(batch, fixed, visible, [
                    self._input(raw, pixels, fill, other)
                    for raw, pixels, other in zip(raws, shown, others, strict=True)
                ])
                for fill in FILLS
            ]  # fmt: skip
            columns += [torch.stack(values).amax(0) for values in zip(*found, strict=True)]
        columns += [visible.flatten(1).any(1).double(), torch.tensor([float(margin) for *_, margin in kept])]
        self.rows += torch.stack([column.double().cpu() for column in columns], 1).tolist()

    def _input(self, raw: RawSample, shown: np.ndarray, fill: str, other: np.ndarray) -> Tensor:
        """[3, H, W]: the network's input if all but the pixels `shown` [H, W] of the file are overwritten."""
        height, width = shown.shape
        if fill == "noise":
            new = np.random.default_rng(0).integers(0, 256, raw.image.shape, np.uint8)
        elif fill == "zeros":  # after normalisation
            new = np.rint(255 * np.array(self.own.shown.normalisation[0])).astype(np.uint8)
        else:
            new = np.asarray(Image.fromarray(np.ascontiguousarray(other)).resize((width, height)))
        return self.split.transform(replace(raw, image=np.where(shown[..., None], raw.image, new)), 0).image

    def _measured(self, batch: Batch, fixed: Selection, visible: Tensor, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """For each image: the largest change of a logit, and the fraction of its visible pixels that changed."""
        changed = torch.stack(inputs).to(batch.image, non_blocking=True)
        moved = (changed != batch.image).any(1).cpu() & visible
        before, after = (
            class_logits(self.own.predict(images, fixed), self.split.info) for images in (batch.image, changed)
        )
        fraction = moved.flatten(1).sum(1) / visible.flatten(1).sum(1).clamp(min=1)
        return movement(before, after, batch.label)[:, 0], fraction

    def compute(self) -> dict[str, float]:
        """For each of NAMES: `/max_logit_change`, `/holds` (fraction of images without any), `/moved_pixels` (mean
        fraction of visible pixels that changed); and `through_resize_margin/pixels`, the mean margin, of the file.

        Every process must call this.
        """
        table = np.array(gather_blocks(self.rows))
        results = {}
        for number, name in enumerate(NAMES):
            change, moved = table[:, 2 * number], table[:, 2 * number + 1]
            results[f"{name}/max_logit_change"] = float(change.max())
            results[f"{name}/holds"] = float(((change == 0) & (table[:, -2] > 0)).mean())
            results[f"{name}/moved_pixels"] = float(moved.mean())
        return results | {f"{NAMES[1]}/pixels": float(table[:, -1].mean())}

    def protocol(self) -> dict[str, object]:
        """The settings that reproduce the metrics."""
        return {
            "mask": "the model's own, held fixed",
            "overwritten_with": "one image of uniform noise, the mean colour, the previous image; in the file",
            "margin": "pixels of the file that resizing reads for a visible pixel; kept in through_resize_margin",
        }
