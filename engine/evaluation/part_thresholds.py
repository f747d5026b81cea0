"""Part-logit thresholds: quantiles of the match between each part and its patches over a data set."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from datasets.types import Batch
from engine.evaluation.predict import evaluation_mode
from models.part_discovery import draw_noise
from models.two_stage import TwoStageModel

CUTS_NOTHING = torch.finfo(torch.float32).min
"""Threshold of a part that claims no patch: no dot product is below the smallest float32. (JSON has no -infinity.)"""


@dataclass(frozen=True)
class PartThresholds:
    """Thresholds of K parts for several quantiles."""

    values: dict[float, list[float]]
    """Quantile q -> the part logit that a fraction q of each part's patches lies below; CUTS_NOTHING for no patches."""
    patches: list[int]
    """How many patches each part claims."""

    def files(self) -> dict[str, dict[str, float]]:
        """File name -> {"0": t, ...}, as published; the name for q = 0.05 is 0.95.json."""
        return {
            threshold_file(quantile): {str(part): value for part, value in enumerate(values)}
            for quantile, values in self.values.items()
        }


def threshold_file(quantile: float) -> str:
    """The published file name: the fraction of patches that stays."""
    return f"{round(1 - quantile, 12)}.json"


def check_quantiles(quantiles: list[float]) -> None:
    """Raise UserError unless all lie between 0 and 1 and differ."""
    if not all(0 < quantile < 1 for quantile in quantiles):
        raise UserError(f"--quantiles lie between 0 and 1, both excluded; got {_listed(quantiles)}")
    if len({threshold_file(quantile) for quantile in quantiles}) < len(quantiles):
        raise UserError(f"--quantiles names one twice: {_listed(quantiles)}")


def part_logits(model: TwoStageModel, images: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of every patch: the dot product with the prototype of its strongest part, and that part (K = background).

    images [B, 3, H, W] -> float32 [B * N], int64 [B * N]. The dot product is what `Intervention.thresholds` is compared
    with.
    """
    stage, parts = model.stage_1, model.model_config.parts
    with torch.autocast(images.device.type, dtype=precision, enabled=precision != torch.float32):
        tokens = stage.tokens(images)
    noise = draw_noise(parts, tokens.shape[:2], tokens.device, stage.training)
    part_BN = stage.parts(tokens, noise).maps.argmax(-1)
    _, dots_BNK1 = stage.parts.logits(tokens.float())
    return dots_BNK1.gather(-1, part_BN[..., None]).flatten(), part_BN.flatten()


def measure_thresholds(
    model: TwoStageModel,
    batches: Iterable[Batch],
    device: torch.device,
    quantiles: list[float],
    precision: torch.dtype = torch.float32,
    advance: Callable[[int], None] = lambda images: None,
) -> PartThresholds:
    """Exact quantiles from one pass of stage 1 over `batches`; `advance` is called with each batch's number of images.

    Keeps 5 bytes of each patch in main memory: 7 MB for 1,000 images of 1,369 patches.
    """
    logits, parts = [], []
    with evaluation_mode(model, device, seed=0):
        for batch in batches:
            logit, part = part_logits(model, batch.image.to(device), precision)
            logits.append(logit.cpu())
            parts.append(part.to("cpu", torch.uint8 if model.model_config.parts.num_parts < 256 else torch.int32))
            advance(len(batch))
    all_logits, all_parts = torch.cat(logits).numpy(), torch.cat(parts).numpy()
    by_part = [all_logits[all_parts == k].astype(np.float64) for k in range(model.model_config.parts.num_parts)]
    values = {q: [float(np.quantile(own, q)) if len(own) else CUTS_NOTHING for own in by_part] for q in quantiles}
    return PartThresholds(values, [len(own) for own in by_part])


def _listed(quantiles: list[float]) -> str:
    return " ".join(f"{quantile:g}" for quantile in quantiles)
