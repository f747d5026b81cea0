"""What a user takes away from a two-stage model at test time: parts, or tokens below a part's threshold."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import UserError
from models.part_discovery import Intervention
from models.two_stage import TwoStageModel


def read_intervention(thresholds: Path | None, remove_parts: Sequence[int], model: nn.Module) -> Intervention | None:
    """None for nothing. Raises UserError for parts or thresholds the model does not have."""
    if not thresholds and not remove_parts:
        return None
    if not isinstance(model, TwoStageModel):
        raise UserError("--thresholds and --remove-parts need a two-stage run: a plain ViT has no parts")
    parts = model.model_config.parts.num_parts
    if any(not 0 <= part < parts for part in remove_parts):
        raise UserError(f"--remove-parts: parts are numbered 0 to {parts - 1}, got {list(remove_parts)}")
    return Intervention(_read_thresholds(thresholds, parts), tuple(remove_parts))


def _read_thresholds(path: Path | None, parts: int) -> Tensor | None:
    if path is None:
        return None
    try:
        content = json.loads(path.read_text())
        return torch.tensor([float(content[str(k)]) for k in range(parts)])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'--thresholds: {path} must map "0".."{parts - 1}" to numbers ({error})') from None
