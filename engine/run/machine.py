"""The machine a run uses: device, precision, threads, and where its results came from."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.processes import processes
from engine.run.config import RunConfig


def pick_device(name: str) -> torch.device:
    """The device `train.device` names; of several processes on a machine each gets a GPU of its own.

    Raises UserError where it does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and processes().is_distributed:
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


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
