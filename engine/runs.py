"""A run's folder, machine and provenance."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.processes import processes
from engine.checkpointing import is_there
from engine.config import RunConfig, parse_config, save_config
from engine.durable import remove_leftovers, replacing
from models.registry import AnyModel

CONFIG_FILE = "config.yaml"
LAST = Path("checkpoints") / "last.safetensors"
BEST = Path("best")
METRICS_FILE = "metrics.jsonl"
RESULTS = Path("results.json")


def open_run(config: RunConfig, model: AnyModel) -> Path:
    """Make the run folder, or check that the one there may be used. Raises UserError; loses nothing.

    Writes the resolved config, and beside the best weights the JSON that `from_pretrained` rebuilds the model from.
    """
    out = Path(config.out)
    used = is_there(out / LAST) or (out / BEST / "model.safetensors").exists()
    # auto: a run that died before its first checkpoint has nothing to go on from, but may have a best model.
    may = config.resume is True or (config.resume == "auto" and (out / LAST.parent).is_dir())
    if used and not (may or config.overwrite):
        raise UserError(f"{out} already holds a run; choose another --out, or pass --resume=true or --overwrite=true")
    try:
        if config.overwrite and used:
            shutil.rmtree(out)
        for folder in (out / LAST.parent, out / BEST):
            folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out, out / LAST.parent, out / BEST, out / "sheets")
        # The flags of this one start are not part of the run: with them its config could not be started again.
        with replacing(out / CONFIG_FILE) as file:
            save_config(replace(config, resume=False, allow_change=False, overwrite=False), file)
        with replacing(out / BEST / "config.json") as file:
            file.write_text(json.dumps(model._hub_mixin_config, indent=2, sort_keys=True))
    except OSError as error:
        raise UserError(f"--out: cannot write to {out} ({error.strerror})") from None
    return out


def run_config(run: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The resolved config a run was trained with, flags like "--data.root=..." on top."""
    if not (run / CONFIG_FILE).is_file():
        raise UserError(f"{run} is not a run folder: it has no {CONFIG_FILE}")
    return parse_config([f"--config={run / CONFIG_FILE}", *overrides])


def pick_device(name: str) -> torch.device:
    """The device `train.device` names; of several processes on a machine each gets a GPU of its own.

    Raises UserError where it does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and processes().several:
        name = f"cuda:{_own_gpu()}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"train.device: {name!r} is no device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"train.device: {name} asked for, but {torch.cuda.device_count()} CUDA devices are there")
    return device


def _own_gpu() -> int:
    """Number of this process's GPU. A cluster may show each process one GPU alone, which then is number 0."""
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if count > 1 and local >= count:
        raise UserError(f"train.device: this machine has {count} GPUs for more processes; start one process a GPU")
    return local if count > 1 else 0


def prepare_process(config: RunConfig) -> torch.device:
    """Threads, determinism and device of this process."""
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA's matrix products ask for it
    torch.use_deterministic_algorithms(config.train.deterministic)
    torch.backends.cudnn.benchmark = not config.train.deterministic
    device = pick_device(config.train.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # NCCL talks from the current one
    return device


def provenance() -> dict[str, Any]:
    """What a figure came from: command, versions, machine, commit."""
    packages = ("torch", "torchvision", "timm", "albumentations")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "device": cuda or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "commit": _commit(),
    }


def _commit() -> str | None:
    root = Path(__file__).parent.parent
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def read_results(run: Path) -> dict[str, Any] | None:
    """What a finished run wrote to results.json; None for an unfinished one. Raises UserError for a damaged file."""
    path = run / RESULTS
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged; delete it and run the same command again") from None
