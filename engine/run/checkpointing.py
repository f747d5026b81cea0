"""Save and load checkpoints: tensors as safetensors, everything else as JSON in the same file; nothing is unpickled.

Files are written atomically and carry a checksum that every read verifies.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from common.errors import UserError
from common.files import check_regular
from common.processes import processes
from common.sealing import PLACE, check_seal, seal
from engine.run.atomic_files import WRITE_ERRORS, link_or_copy, reason_of, replacing
from models.weights.checkpoints import check_values, is_finite

State = dict[str, Tensor]
LIKE_ITS_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
NOT_NEGATIVE = ("step", "exp_avg_sq", "max_exp_avg_sq")
"""Names of an optimiser's tensors."""
STATE_MISMATCH = "the checkpoint's optimiser state does not fit this config; were optim.* keys changed?"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after some step."""

    tensors: State
    """Names start with model/, ema/ or optimizer/."""
    progress: dict[str, Any]
    """JSON values: `engine.training.state.Progress`; for the best weights, their epoch and metric."""

    def part(self, prefix: str) -> State:
        """Tensors whose name starts with `prefix`/, under their names without it."""
        start = f"{prefix}/"
        return {name.removeprefix(start): t for name, t in self.tensors.items() if name.startswith(start)}


def prefixed(prefix: str, tensors: State) -> State:
    """The tensors on the CPU, contiguous, with `prefix`/ before each name."""
    return {f"{prefix}/{name}": t.detach().cpu().contiguous() for name, t in tensors.items()}


def write_safetensors(path: Path, tensors: State, progress: dict[str, Any], previous: Path | None = None) -> None:
    """Write `path` atomically: a temporary file is sealed with its checksum, flushed to disk and renamed.

    With `previous`, the file that was at `path` is kept under that name; at no moment does either name lack a complete
    file. Raises UserError if writing fails; earlier files are then unchanged.
    """
    try:
        with replacing(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(tensors, temporary, metadata={**PLACE, "progress": json.dumps(progress)})
            temporary.chmod(mode)  # safetensors makes the file readable by its owner only
            seal(temporary)
            if previous and path.exists():
                link_or_copy(path, previous)
    except WRITE_ERRORS as error:
        raise UserError(f"cannot write checkpoint {path}: {reason_of(error)}; the previous one is unchanged") from None


def write_checkpoint(last: Path, tensors: State, progress: dict[str, Any]) -> None:
    """`write_safetensors`; the checkpoint before it is kept as a fallback for `read_newest`."""
    write_safetensors(last, tensors, progress, previous_of(last))


def previous_of(last: Path) -> Path:
    """Path of the checkpoint before the last one."""
    return last.with_name("previous.safetensors")


def checkpoint_exists(last: Path) -> bool:
    """Whether there is a checkpoint to resume from, intact or not."""
    return last.exists() or previous_of(last).exists()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises UserError naming the file if it is missing, truncated, damaged or of another format.

    Files without a checksum, as earlier versions wrote them, are read unverified.
    """
    try:
        check_regular(path)
        check_seal(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open has no iterator
        return Checkpoint(tensors, dict(json.loads(metadata["progress"])))
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable checkpoint ({str(error).splitlines()[0][:120]})") from None


def read_newest(last: Path, log: Callable[[str], None]) -> Checkpoint:
    """Read the last checkpoint; if it is missing or damaged, `log` that and read the one before it.

    A damaged file is renamed to broken.safetensors, because the next save would keep it as the previous checkpoint.
    Raises UserError naming both if neither can be read.
    """
    previous = previous_of(last)
    try:
        return read_checkpoint(last)
    except UserError as error:
        broken = error
    if not previous.exists():
        raise UserError(f"{broken}; there is no earlier one; start again with --overwrite=true")
    try:
        found = read_checkpoint(previous)
    except UserError as error:
        raise UserError(f"{broken}; {error}; start again with --overwrite=true") from None
    done = [found.progress.get(unit) for unit in ("epoch", "batch")]
    log(f"{broken}; resuming from {previous}, after epoch {done[0]}, batch {done[1]} of the next")
    if processes().is_main:
        with contextlib.suppress(OSError):  # it may be missing
            last.replace(last.with_name("broken.safetensors"))
    return found


def saved_progress(path: Path) -> dict[str, Any]:
    """The progress of a checkpoint, from its header alone; {} if there is none that can be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {})["progress"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return {}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> State:
    """An optimiser's state as named tensors, without learning rates and weight decays, which follow from the config.

    Names: INDEX/NAME for a parameter's tensor, number/INDEX/NAME for a parameter's plain number (in some of timm's
    optimisers), group/INDEX/step for a group's step count (in LAMB). Raises UserError for a state of other types.
    """
    state_dict = optimizer.state_dict()
    found: State = {}
    for index, entry in state_dict["state"].items():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                found[f"{index}/{name}"] = value
            elif value is not None:
                found[f"number/{index}/{name}"] = _number(value, type(optimizer).__name__)
    for index, group in enumerate(state_dict["param_groups"]):
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
    """Load what `optimizer_tensors` returned. Raises UserError if it belongs to other parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor | float]] = {}
    groups = _numbered_groups(optimizer)
    for key, value in tensors.items():
        kind, index, name = _state_key(key)
        count = len(groups if kind == "group" else parameters)
        fits = index < count and (value.numel() == 1 if kind or name == "step" else True)
        if fits and name in LIKE_ITS_PARAMETER:
            fits = value.shape == parameters[index].shape and value.is_floating_point()
        if not fits or not is_finite(value) or (name in NOT_NEGATIVE and bool((value < 0).any())):
            raise UserError(STATE_MISMATCH)
        if kind == "group":
            groups[index][name] = value.item()
            continue
        # Tensors that safetensors reads map the file: without a copy the state would keep it open (no unmounting).
        state.setdefault(index, {})[name] = value.item() if kind == "number" else value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _state_key(key: str) -> tuple[str, int, str]:
    """Split a name of `optimizer_tensors` into kind ("" for a tensor), index and name. Raises UserError for others."""
    found = re.fullmatch(r"(?:(group|number)/)?(\d{1,9})/([^/]+)", key)
    if not found:
        raise UserError(STATE_MISMATCH)
    return found[1] or "", int(found[2]), found[3]


def _numbered_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Groups as in `state_dict()`, which ZeroRedundancyOptimizer only provides after `consolidate_state_dict`."""
    count = itertools.count()
    return [{**group, "params": [next(count) for _ in group["params"]]} for group in optimizer.param_groups]


def load_weights(model: nn.Module, state: State, path: Path) -> None:
    """Load a model's weights. Raises UserError naming `path` if they belong to another model."""
    check_values(state, str(path))
    for name, own in model.state_dict().items():
        if name in state and state[name].is_floating_point() != own.is_floating_point():
            raise UserError(f"{path}: {name} has values of type {state[name].dtype}, not {own.dtype}; use another file")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit this config's model: {' '.join(str(error).split())[:300]}") from None
