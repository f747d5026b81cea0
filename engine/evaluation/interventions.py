"""Interventions on a two-stage model at test time: removed parts and part-logit thresholds."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.files import parse_json, read_file
from engine.evaluation.loading import fingerprint
from models.part_discovery import Intervention
from models.two_stage import TwoStageModel

INFO = "info.json"
"""File next to the thresholds that records the data and weights they were measured with."""


def read_intervention(thresholds: Path | None, remove_parts: Sequence[int], model: nn.Module) -> Intervention | None:
    """The intervention; None if there is none. Raises UserError for parts or thresholds that do not fit the model."""
    if not thresholds and not remove_parts:
        return None
    parts = require_two_stage(model).model_config.parts.num_parts
    check_parts(remove_parts, parts, "--remove-parts")
    return Intervention(read_thresholds(thresholds, model), tuple(remove_parts))


def require_two_stage(model: nn.Module) -> TwoStageModel:
    """`model` itself. Raises UserError unless it is a two-stage model."""
    # The class itself: what follows works on its part head.
    if not isinstance(model, TwoStageModel):
        raise UserError(
            "thresholds and removed parts need a two-stage model: only these classify from the patches of their parts"
        )
    return model


def check_parts(numbers: Sequence[int], parts: int, flag: str) -> None:
    """Raise UserError for a part number outside 0 to `parts` - 1."""
    if any(not 0 <= part < parts for part in numbers):
        raise UserError(f"{flag}: parts are numbered 0 to {parts - 1}, got {' '.join(map(str, numbers))}")


def read_thresholds(path: Path | None, model: nn.Module) -> Tensor | None:
    """Thresholds [K] fp32 from a JSON file; None without a path.

    Raises UserError if the file is missing or invalid, has another number of parts than the model, or was made with
    other weights (known from the `INFO` file next to it).
    """
    if path is None:
        return None
    parts = require_two_stage(model).model_config.parts.num_parts
    content = _read_json(path)
    keys = [str(part) for part in range(parts)]
    if not isinstance(content, dict) or set(content) != set(keys):
        kind = f"{len(content)} keys" if isinstance(content, dict) else "no mapping"
        raise UserError(f'--thresholds: {path} must map "0".."{parts - 1}" ({parts} parts) to numbers, it has {kind}')
    values = [content[key] for key in keys]
    if not all(map(_is_threshold, values)):
        raise UserError(f"--thresholds: {path} must map every part to a number, got {str(values)[:200]}")
    info = _read_json(path.with_name(INFO)) if path.with_name(INFO).is_file() else None
    if isinstance(info, dict) and info.get("fingerprint") not in (None, fingerprint(model)):
        raise UserError(f"--thresholds: {path} was made with other weights; run commands.part_thresholds on this run")
    return torch.tensor(values, dtype=torch.float32)


def _is_threshold(value: object) -> bool:
    """A float other than nan, or an integer that fits into a float."""
    return not math.isnan(value) if isinstance(value, float) else isinstance(value, int) and abs(value) < 2**63


def _read_json(path: Path) -> Any:
    try:
        return parse_json(read_file(path))
    except OSError as error:
        raise UserError(f"--thresholds: cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--thresholds: {path} is not JSON ({error})") from None
