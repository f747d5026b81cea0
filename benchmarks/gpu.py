"""What benchmarks do on a GPU: time with events, read the clock, and know the peak."""

import subprocess
from collections.abc import Callable

import torch

WARM_UP, ROUNDS = 10, 30
"""The fewest calls before those that are timed, and of these."""
PEAKS = {
    "H200": {"fp32": 67.0, "bf16": 989.0},
    "H100 PCIe": {"fp32": 51.0, "bf16": 756.0},
    "H100": {"fp32": 67.0, "bf16": 989.0},
    "A100": {"fp32": 19.5, "bf16": 312.0},
}
"""Part of a GPU's name -> TFLOP/s (NVIDIA's data sheets, dense, fp32 without TF32); the first that fits counts."""


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s that the GPU could reach; None where that is not known, or on a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = next((peaks for part, peaks in PEAKS.items() if part in name), {})
    return known[precision] * 1e12 if precision in known else None


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds from the first to the last kernel of `work`, by the GPU's own events."""
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)  # it may still be busy with earlier work
    started.record()
    work()
    ended.record()
    ended.synchronize()
    return float(started.elapsed_time(ended)) / 1000


def sm_clock(device: torch.device) -> float | None:
    """The clock of the multiprocessors at this moment, MHz; None where nvidia-smi does not tell."""
    which = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits", "-i", which]
    try:
        return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
