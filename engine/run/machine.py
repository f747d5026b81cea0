"""The machine a run uses: its device and threads, its failures, and the provenance of results."""

import contextlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.plugins import plugin_arguments
from common.processes import processes
from datasets.loader import lost_worker
from engine.run.config import RunConfig

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GIB = 2**30


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast that `train.precision` names."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return PRECISIONS[name]


def pick_device(name: str) -> torch.device:
    """The device that `train.device` names; with several processes on a machine, each gets its own GPU.

    Raises UserError if it does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and processes().is_distributed:
        name = f"cuda:{_own_gpu()}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"train.device: {name!r} is not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"train.device={name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def _own_gpu() -> int:
    """Index of this process's GPU. A cluster may make one GPU visible to each process, which then has index 0."""
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if count > 1 and local >= count:
        raise UserError(f"train.device: this machine has {count} GPUs but more processes; start one process per GPU")
    return local if count > 1 else 0


def prepare_process(config: RunConfig) -> torch.device:
    """Set threads, determinism and kernels of this process and return its device."""
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by deterministic cuBLAS
    torch.use_deterministic_algorithms(config.train.deterministic)
    torch.backends.cudnn.benchmark = not config.train.deterministic
    device = pick_device(config.train.device)
    if device.type == "cuda":
        prepare_gpu(device, config.train.matmul_precision)
    return device


def prepare_gpu(device: torch.device, matmul_precision: str) -> None:
    """Make a GPU the current one and choose the kernels of float32 products, convolutions and attention."""
    if device.index is not None:
        torch.cuda.set_device(device)  # NCCL uses the current device
    torch.set_float32_matmul_precision(matmul_precision)
    torch.backends.cudnn.allow_tf32 = matmul_precision != "highest"  # of convolutions; torch's default is TF32
    # cuDNN's attention, preferred on an H100, builds a plan for every new number of tokens, which changes every step.
    torch.backends.cuda.enable_cudnn_sdp(False)


def provenance() -> dict[str, Any]:
    """Where results come from: command, versions, device, commit. JSON values."""
    packages = ("torch", "torchvision", "timm", "albumentations")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join([Path(sys.argv[0]).name, *plugin_arguments(), *sys.argv[1:]]),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "device": cuda or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "commit": _commit(),
    }


def _commit() -> str | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed, perhaps below another project's repository
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


@contextlib.contextmanager
def machine_errors(advice: str, device: torch.device) -> Iterator[None]:
    """Turn running out of memory and a dead loading process into a UserError; `advice`: what to change for memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in text:
            raise UserError(f"out of memory on {_memory(device, text)}; {advice}") from None
        if lost := lost_worker(error):
            raise lost from None
        raise


def _memory(device: torch.device, text: str) -> str:
    asked = re.search(r"allocate (\d[\d.]* ?\w+)", text)
    request = f" (asked for {asked[1]})" if asked else ""
    if device.type != "cuda":
        return f"the CPU{request}"
    free, total = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device)
    return f"{device}{request}: {total / GIB:.1f} GiB, {free / GIB:.1f} free, this process's peak {peak / GIB:.1f}"
