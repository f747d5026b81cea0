"""Pointing game, and the fraction of a map's energy that lies inside the object. Neither needs a threshold."""

from typing import ClassVar

import numpy as np
import torch
from skimage.morphology import isotropic_dilation
from torch import Tensor

from common.errors import UserError
from common.maps import to_pixels
from common.metric_info import MetricInfo
from datasets.types import Batch, DatasetInfo
from metrics.maps.boxes import TRUTHS, true_objects
from metrics.maps.per_image import MAP_METRICS, Columns, MapMetric, count_flags, weighted_mean
from metrics.maps.pixels import each, silent_maps
from metrics.types import Explanation

SCORES = ("hit", "energy", "chance")


@MAP_METRICS.register("pointing")
class Pointing(MapMetric):
    """Means over all images, of the label's map; for each of `boxes` and `mask` that the data set has:

    - `pointing/<truth>/hit`: fraction of images whose largest value lies in the object, or within `tolerance` pixels of
      it (Zhang et al.); with several largest pixels, the fraction of them that does
    - `pointing/<truth>/energy`: fraction of the sum of the positive values that lies in the object (Wang et al. stretch
      the map to [0, 1] first, so that its smallest value has no weight)
    - `pointing/<truth>/chance`: the object's fraction of the image, the expected value of both for a random map
      (without tolerance)

    Images without a true object are left out. Maps that are not finite, or constant, get 0.

    Option: `tolerance` in pixels of the input; the game has been published with 0 and with 15.
    """

    target = "label"
    shown: ClassVar = {
        "pointing/mask/hit": MetricInfo(headline=50),
        "pointing/mask/energy": MetricInfo(headline=60),
    }

    def __init__(self, info: DatasetInfo, *, tolerance: float = 0.0) -> None:
        """Raises UserError for a negative tolerance."""
        super().__init__(info)
        if not tolerance >= 0:
            raise UserError(f"metric option tolerance={tolerance} must be 0 or more pixels")
        self.tolerance = tolerance
        scores = (f"{truth}/{score}" for truth in TRUTHS for score in SCORES)
        self.columns = (*scores, "nan_map", "constant_map")

    def rows(self, batch: Batch, explanation: Explanation) -> Tensor:
        """[B, columns]: scores of each truth, nan where the image has none."""
        objects = true_objects(batch, explanation, "pointing")
        failed, constant = silent_maps(explanation.maps)
        # Before enlarging, which would turn a constant map into rounding noise with a peak.
        silent = (failed | constant)[:, None, None]
        wide = torch.where(silent, 0, explanation.maps.double())
        pixels = to_pixels(wide, (batch.image.shape[2], batch.image.shape[3]))
        peaks = (pixels == pixels.amax(dim=(1, 2), keepdim=True)) & ~silent
        values = {"nan_map": failed, "constant_map": constant}
        for name, truth in objects.items():
            there = truth.flatten(1).any(dim=1)
            scores = (
                each(fraction_inside, peaks.double(), self.near(truth)),
                each(fraction_inside, pixels.clamp(min=0), truth),
                truth.flatten(1).sum(dim=1).double() / truth[0].numel(),
            )
            for score, value in zip(SCORES, scores, strict=True):
                values[f"{name}/{score}"] = torch.where(there, value, torch.nan)
        return self.table_of(values)

    def near(self, truth: Tensor) -> Tensor:
        """[B, H, W] bool: pixels within the tolerance of truth [B, H, W] bool."""
        if not self.tolerance:
            return truth
        grown = [isotropic_dilation(mask, self.tolerance) for mask in truth.cpu().numpy()]
        return torch.from_numpy(np.stack(grown)).to(truth.device, non_blocking=True)

    def summarise(self, columns: Columns, weight: np.ndarray) -> dict[str, float]:
        """The values named in the class docstring."""
        present = [truth for truth in TRUTHS if not np.isnan(columns[f"{truth}/hit"]).all()]
        names = [f"{truth}/{score}" for truth in present for score in SCORES]
        results = {f"pointing/{name}": weighted_mean(columns[name], weight) for name in names}
        flags = {f"with_{truth}": ~np.isnan(columns[f"{truth}/hit"]) for truth in present}
        return results | count_flags("pointing", {"images": np.ones_like(weight)} | flags, columns, weight)

    def protocol(self) -> dict[str, object]:
        """The settings that reproduce the metrics."""
        return {
            "maps_of": "label class",
            "images": "all",
            "maps": "enlarged bilinearly, corners not aligned; energy: values above 0",
            "tolerance_pixels": self.tolerance,
            "ties": "the fraction of the largest pixels that hit",
            "boxes": "pixels whose centres a true box encloses",
            "nan_maps": "counted, scored 0, as constant maps are",
        }


def fraction_inside(mass: Tensor, inside: Tensor) -> Tensor:
    """Fraction of the sum of mass [H, W] float64 >= 0 that lies in inside [H, W] bool; 0 if the sum is 0. Scalar."""
    total = mass.sum()
    return torch.where(total > 0, (mass * inside).sum() / total, 0)
