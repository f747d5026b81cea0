"""What a user takes away from a two-stage model at test time: parts, or tokens below a part's threshold."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from common.errors import UserError
from engine.evaluation.loading import fingerprint
from models.interface import is_two_stage
from models.part_discovery import Intervention
from models.two_stage import TwoStageModel

INFO = "info.json"
"""Beside thresholds: what they were measured on, and of which weights."""


def read_intervention(thresholds: Path | None, remove_parts: Sequence[int], model: nn.Module) -> Intervention | None:
    """None for nothing. Raises UserError for parts or thresholds the model does not have."""
    if not thresholds and not remove_parts:
        return None
    parts = require_two_stage(model).model_config.parts.num_parts
    check_parts(remove_parts, parts, "--remove-parts")
    return Intervention(read_thresholds(thresholds, model), tuple(remove_parts))


def require_two_stage(model: nn.Module) -> TwoStageModel:
    """The model. Raises UserError for one that parts mean nothing to."""
    if not is_two_stage(model):
        raise UserError(
            "thresholds and removed parts need a two-stage run: no other model classifies from the patches of its parts"
        )
    return cast(TwoStageModel, model)


def check_parts(numbers: Sequence[int], parts: int, flag: str) -> None:
    """Raise UserError for a part that a model of `parts` parts does not have."""
    if any(not 0 <= part < parts for part in numbers):
        raise UserError(f"{flag}: parts are numbered 0 to {parts - 1}, got {' '.join(map(str, numbers))}")


def read_thresholds(path: Path | None, model: nn.Module) -> Tensor | None:
    """[K] fp32; None for no path.

    Raises UserError for a file that is missing or wrong, that has another number of parts than the model, or that was
    made from other weights (where its `INFO` lies beside it).
    """
    if path is None:
        return None
    parts = require_two_stage(model).model_config.parts.num_parts
    content = _read_json(path)
    keys = [str(part) for part in range(parts)]
    if not isinstance(content, dict) or set(content) != set(keys):
        found = f"{len(content)} keys" if isinstance(content, dict) else "something else"
        raise UserError(f'--thresholds: {path} must map "0".."{parts - 1}" ({parts} parts) to numbers, it has {found}')
    values = [content[key] for key in keys]
    if not all(map(_is_threshold, values)):
        raise UserError(f"--thresholds: {path} must map every part to a number, got {str(values)[:200]}")
    info = _read_json(path.with_name(INFO)) if path.with_name(INFO).is_file() else None
    if isinstance(info, dict) and info.get("fingerprint") not in (None, fingerprint(model)):
        raise UserError(f"--thresholds: {path} was made from other weights; run commands.part_thresholds on this run")
    return torch.tensor(values, dtype=torch.float32)


def _is_threshold(value: object) -> bool:
    """A float that is no nan, or a whole number that a float can hold."""
    return not math.isnan(value) if isinstance(value, float) else isinstance(value, int) and abs(value) < 2**63


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"--thresholds: cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--thresholds: {path} is no JSON ({error})") from None
