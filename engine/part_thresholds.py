"""How strongly the patches of each part match it over a data set: quantiles that serve as part-logit thresholds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import UserError
from datasets.types import Batch
from engine.evaluation import evaluation_mode
from engine.quantiles import ExactQuantiles
from models.backbone import patch_tokens
from models.part_discovery import draw_noise
from models.two_stage import TwoStageModel

CUTS_NOTHING = torch.finfo(torch.float32).min
"""Threshold of a part that claims no patch: no dot product is below the smallest float32. (JSON has no -infinity.)"""


@dataclass(frozen=True)
class PartThresholds:
    """Thresholds of K parts for several quantiles."""

    values: dict[float, list[float]]
    """Quantile q -> the part logit that a share q of each part's patches lies below; CUTS_NOTHING for no patches."""
    patches: list[int]
    """How many patches each part claims."""

    def files(self) -> dict[str, dict[str, float]]:
        """File name -> {"0": t, ...}, as published; the name for q = 0.05 is 0.95.json."""
        return {
            threshold_file(quantile): {str(part): value for part, value in enumerate(values)}
            for quantile, values in self.values.items()
        }


def threshold_file(quantile: float) -> str:
    """The published name: of what stays, not of what goes."""
    return f"{round(1 - quantile, 12)}.json"


def check_quantiles(quantiles: list[float]) -> None:
    """Raise UserError unless they lie between 0 and 1, each once."""
    if not all(0 < quantile < 1 for quantile in quantiles):
        raise UserError(f"--quantiles lie between 0 and 1, both excluded; got {_listed(quantiles)}")
    if len({threshold_file(quantile) for quantile in quantiles}) < len(quantiles):
        raise UserError(f"--quantiles names one twice: {_listed(quantiles)}")


def claims(model: TwoStageModel, images: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of every patch: the dot product with its strongest part's prototype, that part, and whether it is a part at all.

    Three tensors [B * N]: fp32, int64, bool. The dot product is what `Intervention.thresholds` is compared with.
    """
    stage, parts = model.stage_1, model.model_config.parts
    with torch.autocast(images.device.type, dtype=precision, enabled=precision != torch.float32):
        tokens = patch_tokens(stage.backbone, images)
    noise = draw_noise(parts, (tokens.shape[0], tokens.shape[1]), tokens.device, stage.training)
    winner = stage.parts(tokens, noise).maps.argmax(-1)
    _, dots = stage.parts.logits(tokens.float())
    dot = dots.gather(-1, winner[..., None])
    return dot.flatten(), winner.flatten().clamp(max=parts.num_parts - 1), (winner < parts.num_parts).flatten()


def measure_thresholds(
    model: TwoStageModel,
    batches: Iterable[Batch],
    device: torch.device,
    quantiles: list[float],
    precision: torch.dtype = torch.float32,
    advance: Callable[[int], None] = lambda images: None,
) -> PartThresholds:
    """Two passes of stage 1 over `batches`; exact (see `ExactQuantiles`). `advance` is told of each batch's images."""
    found = ExactQuantiles(model.model_config.parts.num_parts, quantiles, device)
    for first in (True, False):
        with evaluation_mode(model, device, seed=0):  # in each pass: published noise must be the same in both
            for batch in batches:
                found.count(*claims(model, batch.image.to(device), precision))
                advance(len(batch))
        if first:
            found.locate()
    values = torch.where(found.counts[:, None] > 0, found.compute(), CUTS_NOTHING).T.tolist()
    return PartThresholds(dict(zip(quantiles, values, strict=True)), found.counts.tolist())


def _listed(quantiles: list[float]) -> str:
    return " ".join(f"{quantile:g}" for quantile in quantiles)
