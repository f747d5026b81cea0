"""The faithfulness certificate: does a prediction depend on what a mask hides, or a heat map ranks as irrelevant?"""

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.metric_info import MetricInfo
from common.transfer import on_device
from datasets.types import Batch, DatasetInfo
from metrics.maps.as_masks import PredictMasked, keep_largest
from metrics.maps.per_image import MAP_METRICS, Columns, MapMetric, count_flags, weighted_mean
from metrics.maps.removal import cell_grid, enlarge, on_grid
from metrics.types import Explanation

FILLS = ("noise", "zeros", "other")
"""What overwrites the hidden part: a fixed image of normal noise, 0 (both after normalisation), another image."""
MOVEMENT = ("logit_change", "probability_change", "total_variation", "flipped")
"""Columns of `movement`."""


def movement(before: Tensor, after: Tensor, label: Tensor) -> Tensor:
    """How much logits [B, C] changed: [B, 4] float64, columns as `MOVEMENT`.

    Largest |change of a logit|; |change of p(label)|; half the sum of |changes of p|; whether the predicted class
    changed (0 or 1). inf, 1, 1, 1 where a logit is or becomes nan.
    """
    before, after = before.double(), after.double()
    change = (after - before).abs().amax(1)
    shift = (after.softmax(1) - before.softmax(1)).abs()
    at_label = shift.gather(1, label[:, None]).squeeze(1)
    flipped = (after.argmax(1) != before.argmax(1)).double()
    moved = torch.stack([change, at_label, shift.sum(1) / 2, flipped], 1)
    worst = on_device([torch.inf, 1, 1, 1], moved.device, moved.dtype)
    return torch.where(change.isnan()[:, None], worst, moved)


def overwritten(images: Tensor, visible: Tensor, other: Tensor) -> dict[str, Tensor]:
    """By `FILLS`: images [B, 3, H, W], the pixels outside visible [B, H, W] bool overwritten. `other`: as images."""
    noise = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(0)).to(images, non_blocking=True)
    fills = {"noise": noise, "zeros": images.new_zeros(()), "other": other}
    return {name: torch.where(visible[:, None], images, fills[name]) for name in FILLS}


class Predecessors:
    """Returns the image before each image of the data, whatever the batch size; for the first, itself upside down."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 3, H, W]."""
        first = images[:1].flip((-2, -1)) if self.last is None else self.last
        self.last = images[-1:].clone()
        return torch.cat([first, images[:-1]])


@MAP_METRICS.register("certificate")
class Certificate(MapMetric):
    """How much the logits change when what a mask hides, or a heat map ranks as irrelevant, is overwritten.

    It is overwritten three times (`FILLS`). A bool map is the mask itself (see `masked_explanation`); of any other map
    the largest patches are kept and the rest counts as irrelevant. Keys, over the images whose map is finite:

    - `certificate/max_logit_change`: largest over images and fills
    - `certificate/holds`: fraction of images where no fill changes a logit by more than the tolerance; never where no
      patch is kept, which any model passes, or a logit is not finite
    - `certificate/probability_change` (of the label), `certificate/total_variation` (of the softmax),
      `certificate/flipped` (fraction of changed predictions): means over images and fills
    - `certificate/keep_ratio`: mean fraction of patches that are kept
    - `count/certificate/images`, `nan_maps` left out, `constant_maps`, which rank nothing and are scored
    """

    shown: ClassVar = {
        "certificate/holds": MetricInfo(headline=120),
        "certificate/probability_change": MetricInfo(headline=130),
        "certificate/flipped": MetricInfo(headline=140),
        "certificate/keep_ratio": MetricInfo(percent=True),
    }

    target: ClassVar[Literal["predicted", "label"]] = "label"

    def __init__(
        self, info: DatasetInfo, patch: int, kept: float | Callable[[Tensor], Tensor], tolerance: float = 0.0
    ) -> None:
        """`patch`: side of a patch in pixels. `kept`: fraction of patches that a map keeps, or a function from images
        [B, 3, H, W] to fractions [B], such as a two-stage model's own. `tolerance` of logits: 0 in fp32 on the CPU,
        1e-3 in half precision. Raises UserError for a fraction outside [0, 1]."""
        super().__init__(info)
        if not callable(kept) and not 0 <= kept <= 1:
            raise UserError(f"metric option kept={kept} must be a fraction in [0, 1]")
        self.patch, self.kept, self.tolerance = patch, kept, tolerance
        moved = (f"{fill}/{name}" for fill in FILLS for name in MOVEMENT)
        self.columns = (*moved, "keep_ratio", "nan_map", "constant_map")
        self.predecessors = Predecessors()

    def reset(self) -> None:
        """Forget everything counted."""
        super().reset()
        self.predecessors = Predecessors()

    def start_after(self, previous: Batch) -> None:
        """It overwrites the first image."""
        self.predecessors(previous.image)

    def rows(self, batch: Batch, explanation: Explanation) -> Tensor:
        """[B, columns]; nan but for the flag where the map is not finite."""
        images, mask = batch.image, self.mask(batch.image, explanation)
        visible = enlarge(mask, (images.shape[2], images.shape[3]))
        changed = overwritten(images, visible, self.predecessors(images))
        # Each in a batch of its own, as the clean images were: only in equal batches are equal logits the same bits.
        moved = [movement(explanation.logits, explanation.predict(changed[fill]), batch.label) for fill in FILLS]
        numbers = torch.cat([*moved, mask.flatten(1).double().mean(1, keepdim=True)], 1)
        return self.with_flags(numbers, explanation.maps)

    def mask(self, images: Tensor, explanation: Explanation) -> Tensor:
        """[B, h, w] bool: the patches that are kept."""
        maps, kept = explanation.maps, self.kept
        if maps.dtype == torch.bool:
            return maps
        cells = on_grid(maps, cell_grid(images, self.patch))
        if callable(kept):
            fraction = explanation.once(("kept", kept), lambda: kept(images))
        else:
            fraction = torch.full((), kept, dtype=torch.float32, device=images.device)
        return keep_largest(cells, (fraction * cells[0].numel()).round().long().expand(len(images)))

    def summarise(self, columns: Columns, weight: np.ndarray) -> dict[str, float]:
        """The values named in the class docstring."""
        by_fill = {name: np.stack([columns[f"{fill}/{name}"] for fill in FILLS]) for name in MOVEMENT}
        change = by_fill["logit_change"].max(0)
        scored = ~np.isnan(change)
        holds = (change <= self.tolerance) & (columns["keep_ratio"] > 0)
        drawn = change[scored & (weight > 0)]
        values = {
            "max_logit_change": drawn.max() if len(drawn) else np.nan,
            "holds": weighted_mean(np.where(scored, holds, np.nan), weight),
            **{name: weighted_mean(by_fill[name].mean(0), weight) for name in MOVEMENT[1:]},
            "keep_ratio": weighted_mean(columns["keep_ratio"], weight),
        }
        results = {f"certificate/{name}": float(value) for name, value in values.items()}
        return results | count_flags("certificate", {"images": scored}, columns, weight)

    def protocol(self) -> dict[str, object]:
        """The settings that reproduce the metrics."""
        return {
            "maps_of": f"{self.target} class",
            "overwritten_with": "one image of normal noise, zeros (both after normalisation), the previous image",
            "kept": "as the model's own mask, per image" if callable(self.kept) else self.kept,
            "patch_pixels": self.patch,
            "tolerance": self.tolerance,
            "nan_maps": "counted, left out",
        }


def masked_explanation(images: Tensor, mask: Tensor, predict: PredictMasked) -> Explanation:
    """The explanation of a two-stage model whose `mask` [B, h, w] bool is held fixed while the pixels change.

    Only for `Certificate`: its `predict` takes these B images with other pixels, not any number of images.
    """
    return Explanation(mask, predict(images, mask), lambda changed: predict(changed, mask))
