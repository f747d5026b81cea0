"""How well the mask covers the object, and how much of the image it keeps."""

from typing import ClassVar

import torch
from torch import Tensor

from common.errors import UserError
from common.metric_info import MetricInfo
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, mean, ratio
from metrics.registry import METRICS
from metrics.types import Prediction


def patch_overlap(mask: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number of pixels in the intersection, the prediction and the truth, each [B] int64.

    mask [B, h, w] bool on the patch grid or at pixels: each cell stands for its block of pixels. truth [B, H, W] bool.
    Raises ValueError unless H, W are multiples of h, w.
    """
    (_, h, w), (b, height, width) = mask.shape, truth.shape
    if height % h or width % w:
        raise ValueError(f"a true mask of {height}x{width} pixels is not a multiple of the {h}x{w} grid of the mask")
    true_per_patch = truth.reshape(b, h, height // h, w, width // w).sum(dim=(2, 4))
    patch_area = (height // h) * (width // w)
    return (true_per_patch * mask).sum(dim=(1, 2)), mask.sum(dim=(1, 2)) * patch_area, true_per_patch.sum(dim=(1, 2))


@METRICS.register("mask")
class MaskOverlap(ExactMetric):
    """Keys, all in [0, 1] except the count. Always:

    - `keep_ratio`: mean over images of the fraction of patches that stage 2 saw
    - `empty_ratio`: fraction of images where stage 1 kept nothing (`Prediction.empty`; without it, an empty mask)

    Where stage 2 saw some pixels of a patch only (`Prediction.pixels`):

    - `keep_ratio_pixels`: mean over images of the fraction of pixels that it saw

    Where the batches have true masks, with the pixels that stage 2 saw (all pixels of its patches unless it saw some):

    - `mask_iou`, `mask_dice`: mean over images of the IoU and Dice. Images whose true mask is empty are left out
      here: there is no object to find, and either convention (0 or 1) would measure the fraction of such images
    - `mask_iou_dataset`: intersection and union summed over all images, then divided
    - `count/masks`: images with a non-empty true mask
    """

    shown: ClassVar = {
        "mask_iou": MetricInfo(percent=True, headline=80, panel="mask", better="higher"),
        "mask_dice": MetricInfo(percent=True, headline=90, better="higher"),
        "keep_ratio": MetricInfo(percent=True, headline=100, panel="mask"),
        "keep_ratio_pixels": MetricInfo(percent=True, headline=101),
        "empty_ratio": MetricInfo(percent=True, panel="mask", better="lower"),
    }
    kept: list[Tensor]
    kept_pixels: list[Tensor]
    iou: list[Tensor]
    dice: list[Tensor]
    empty: Tensor
    images: Tensor
    sums: Tensor

    def __init__(self, info: DatasetInfo) -> None:
        super().__init__()
        for name in ("empty", "images"):
            self.add_counter(name)
        self.add_counter("sums", 2)  # intersection, union
        for name in ("kept", "kept_pixels", "iou", "dice"):
            self.add_values(name)

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch. Raises UserError where the prediction has no mask."""
        if prediction.mask is None:
            raise UserError("metric 'mask': this model has no patch mask; drop it from --metrics")
        mask = prediction.mask.detach() > 0
        kept = mask.sum(dim=(1, 2))
        self.kept.append(kept.to(torch.float64) / mask[0].numel())
        self.empty += (kept == 0 if prediction.empty is None else prediction.empty).sum()
        self.images += len(mask)
        if prediction.pixels is not None:
            self.kept_pixels.append(prediction.pixels.flatten(1).double().mean(1))
        if batch.mask is None:
            return
        both, predicted, true = patch_overlap(mask if prediction.pixels is None else prediction.pixels, batch.mask)
        union = predicted + true - both
        self.sums += torch.stack([both.sum(), union.sum()])
        # An empty true mask gives nan here and is dropped in compute: filtering now would need a host sync.
        some = torch.where(true > 0, 1.0, torch.nan).to(torch.float64)
        self.iou.append(some * both / union.clamp(min=1))
        self.dice.append(some * 2 * both / (predicted + true).clamp(min=1))

    def compute(self) -> dict[str, float]:
        """The values named in the class docstring."""
        results = {
            "keep_ratio": mean(self.values("kept").tolist()),
            "empty_ratio": ratio(int(self.empty), int(self.images)),
        }
        if self.values("kept_pixels").numel():
            results["keep_ratio_pixels"] = mean(self.values("kept_pixels").tolist())
        iou, dice = self.values("iou"), self.values("dice")
        if iou.numel():
            results["mask_iou"] = mean(iou.tolist())
            results["mask_dice"] = mean(dice.tolist())
            results["mask_iou_dataset"] = ratio(*self.sums.tolist())
            results["count/masks"] = float((~iou.isnan()).sum())
        return results
