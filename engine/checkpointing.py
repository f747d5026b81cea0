"""Save and load a run: tensors in safetensors, everything else as JSON in the same file. Nothing is ever unpickled."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from common.errors import UserError

State = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A run at one point in time."""

    tensors: State
    """Prefixed by what they belong to: model/, ema/, optimizer/."""
    progress: dict[str, Any]
    """JSON: where the run is, and the numbers it has gathered."""

    def part(self, prefix: str) -> State:
        """The tensors below `prefix`/, without it."""
        start = f"{prefix}/"
        return {name.removeprefix(start): t for name, t in self.tensors.items() if name.startswith(start)}


def prefixed(prefix: str, tensors: State) -> State:
    """The same tensors, on the CPU, contiguous and named below `prefix`/."""
    return {f"{prefix}/{name}": t.detach().cpu().contiguous() for name, t in tensors.items()}


def write_safetensors(path: Path, tensors: State, progress: dict[str, Any]) -> None:
    """Write all or nothing: a temporary file, flushed to disk, renamed over `path`."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(tensors, temporary, metadata={"progress": json.dumps(progress)})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # a full disk is the second kind
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"cannot write checkpoint {path}: {reason}; the previous one is untouched") from None
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises UserError naming a missing, truncated or foreign file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return Checkpoint(tensors, json.loads(metadata["progress"]))
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a readable checkpoint ({str(error).splitlines()[0][:120]})") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> State:
    """An optimiser's state as named tensors. Rates and decays are not in it: they follow from the config.

    Names: INDEX/NAME for a tensor of a parameter, number/INDEX/NAME for a plain number of it (as some of timm's
    optimisers keep), group/INDEX/step for the step count of a group (as LAMB keeps).
    """
    whole = optimizer.state_dict()
    found: State = {}
    for index, entry in whole["state"].items():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                found[f"{index}/{name}"] = value
            elif value is not None:
                found[f"number/{index}/{name}"] = _number(value, type(optimizer).__name__)
    for index, group in enumerate(whole["param_groups"]):
        if "step" in group:
            found[f"group/{index}/step"] = _number(group["step"], type(optimizer).__name__)
    return found


def _number(value: object, optimizer: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, int | float):
        raise UserError(f"optim.name: the state of {optimizer} cannot be saved; choose another optimiser")
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: State) -> None:
    """Put back what `optimizer_tensors` took. Raises UserError when that was of other parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor | float]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for key, value in tensors.items():
        *kind, index, name = key.split("/")
        fits = int(index) < len(groups if kind == ["group"] else parameters)
        if fits and name in ("exp_avg", "momentum_buffer"):
            fits = value.shape == parameters[int(index)].shape
        if not fits:
            raise UserError("the checkpoint's optimiser state does not fit this config; were optim.* keys changed?")
        if kind == ["group"]:
            groups[int(index)][name] = value.item()
            continue
        state.setdefault(int(index), {})[name] = value.item() if kind == ["number"] else value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def load_weights(model: nn.Module, state: State, path: Path) -> None:
    """Load a model's weights. Raises UserError when the checkpoint is of another model."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit this config's model: {' '.join(str(error).split())[:300]}") from None
