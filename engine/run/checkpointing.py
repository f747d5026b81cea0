"""Save and load a run: tensors in safetensors, everything else as JSON in the same file. Nothing is ever unpickled.

A file is whole or not there at all, whenever the process is killed, and carries a checksum that every reading checks.
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
from common.processes import processes
from common.sealing import PLACE, check_seal, seal
from engine.run.atomic_files import keep_as, replacing

State = dict[str, Tensor]
STRANGE_STATE = "the checkpoint's optimiser state does not fit this config; were optim.* keys changed?"


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


def write_safetensors(path: Path, tensors: State, progress: dict[str, Any], previous: Path | None = None) -> None:
    """Write all or nothing: a temporary file, sealed and flushed to the disk, renamed over `path`.

    What stood there goes on as `previous`, where that is given; neither name is without a whole file for a moment.
    Raises UserError where that is impossible, with every earlier file as it was.
    """
    try:
        with replacing(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(tensors, temporary, metadata={**PLACE, "progress": json.dumps(progress)})
            temporary.chmod(mode)  # the library leaves a file that its owner alone may read
            seal(temporary)
            if previous and path.exists():
                keep_as(path, previous)
    except (OSError, SafetensorError) as error:  # a full disk is the second kind
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"cannot write checkpoint {path}: {reason}; the previous one is untouched") from None


def write_checkpoint(last: Path, tensors: State, progress: dict[str, Any]) -> None:
    """`write_safetensors`; the checkpoint before is kept, for `read_newest` to fall back on."""
    write_safetensors(last, tensors, progress, previous_of(last))


def previous_of(last: Path) -> Path:
    """Where the checkpoint before the last one is kept."""
    return last.with_name("previous.safetensors")


def is_there(last: Path) -> bool:
    """Whether there is a checkpoint to go on from, whole or not."""
    return last.exists() or previous_of(last).exists()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises UserError naming a missing, truncated, damaged or foreign file.

    Files from before there were checksums are read unchecked.
    """
    try:
        check_seal(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return Checkpoint(tensors, dict(json.loads(metadata["progress"])))
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable checkpoint ({str(error).splitlines()[0][:120]})") from None


def read_newest(last: Path, say: Callable[[str], None]) -> Checkpoint:
    """The last checkpoint, or, after a line that says so, the one before it where the last is missing or damaged.

    The damaged file is put aside as broken.safetensors, for the next checkpoint must not keep it as the previous one.
    Raises UserError naming both where neither can be read.
    """
    previous = previous_of(last)
    try:
        return read_checkpoint(last)
    except UserError as error:
        broken = error
    if not previous.exists():
        raise UserError(f"{broken}; there is no earlier one, start afresh with --overwrite=true")
    try:
        found = read_checkpoint(previous)
    except UserError as error:
        raise UserError(f"{broken}; {error}; start afresh with --overwrite=true") from None
    done = [found.progress.get(unit) for unit in ("epoch", "batch")]
    say(f"{broken}; going on from {previous}, after epoch {done[0]}, batch {done[1]} of the next")
    if processes().is_main:
        with contextlib.suppress(OSError):  # it may be missing
            last.replace(last.with_name("broken.safetensors"))
    return found


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
    groups = _numbered_groups(optimizer)
    for key, value in tensors.items():
        kind, index, name = _state_key(key)
        count = len(groups if kind == "group" else parameters)
        fits = index < count and (value.numel() == 1 if kind else True)
        if fits and name in ("exp_avg", "momentum_buffer"):
            fits = value.shape == parameters[index].shape
        if not fits:
            raise UserError(STRANGE_STATE)
        if kind == "group":
            groups[index][name] = value.item()
            continue
        # A copy, for what was read is the file itself in memory: the disk it is on could not be let go of.
        state.setdefault(index, {})[name] = value.item() if kind == "number" else value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _state_key(key: str) -> tuple[str, int, str]:
    """Kind ("" for a tensor), index and name of what `optimizer_tensors` names. Raises UserError for another name."""
    found = re.fullmatch(r"(?:(group|number)/)?(\d{1,9})/([^/]+)", key)
    if not found:
        raise UserError(STRANGE_STATE)
    return found[1] or "", int(found[2]), found[3]


def _numbered_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The groups as `state_dict` gives them, which ZeRO's cannot before its state has been brought together."""
    count = itertools.count()
    return [{**group, "params": [next(count) for _ in group["params"]]} for group in optimizer.param_groups]


def load_weights(model: nn.Module, state: State, path: Path) -> None:
    """Load a model's weights. Raises UserError when the checkpoint is of another model."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit this config's model: {' '.join(str(error).split())[:300]}") from None
