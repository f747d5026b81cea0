"""How it is measured: equality of the numbers first, then peak memory, then seconds in interleaved rounds."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from math import isnan
from statistics import median

import torch
from step_variants import VARIANTS, Bench
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from datasets.types import Batch

Work = Callable[[str, Tensor, Batch], None]
"""(variant, mask, batch) -> None: one of Bench's three pieces of work."""


@dataclass
class Case:
    """One line of the table: a piece of work, done by a variant at a kept share, and what was measured of it."""

    part: str
    """training step | inference batch | stage 2, forward + backward"""
    variant: str
    keep: float | None
    """Kept share of patches; None where the work does not depend on it."""
    baseline: int
    """Index of the case it is compared with."""
    peak_bytes: int = 0
    """Tensors alive at once, on top of weights, optimiser state and batch."""
    seconds: list[float] = field(default_factory=list)
    """One per round."""


def cases(keeps: list[float], variants: list[str], stage_2_keep: float) -> list[Case]:
    """Every case, in the order of a round. What does not depend on the kept share is measured once a round.

    A step is compared with the published step. Published inference prunes, so inference is compared with dense.
    """
    pruned = [variant for variant in variants if variant != "dense"]
    found = [Case("training step", "published", None, 0)]
    found += [Case("training step", "dense", None, 0)] * ("dense" in variants)
    found += [Case("training step", variant, keep, 0) for keep in keeps for variant in pruned]
    dense = len(found)
    found.append(Case("inference batch", "dense", None, dense))
    evaluated = [
        "published",
        *(variant for variant in pruned if variant != "gathered"),
    ]  # published gathers in evaluation
    found += [Case("inference batch", variant, keep, dense) for keep in keeps for variant in evaluated]
    dense = len(found)
    found += [Case("stage 2, forward + backward", variant, stage_2_keep, dense) for variant in ("dense", "packed")]
    return found


def difference(bench: Bench, variant: str, mask: Tensor, batch: Batch, truth: dict[str, Tensor]) -> tuple[float, str]:
    """Largest relative difference |a - b| / |b| (2-norms) of the loss and of each gradient, and the tensor's name."""
    found = numbers(bench, variant, mask, batch)
    if found.keys() != truth.keys():
        return float("inf"), ", ".join(sorted(found.keys() ^ truth.keys()))
    return max((_relative(found[name], truth[name]), name) for name in truth)


def numbers(bench: Bench, variant: str, mask: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The loss and every gradient of one step. Raises RuntimeError when stage 2 does not run as often as it should."""
    passes: list[bool] = []
    hook = bench.stage_2s[variant].register_forward_hook(lambda *_: passes.append(True))
    try:
        loss = bench.loss(variant, mask, batch)
    finally:
        hook.remove()
    grads = {name: p.grad.clone() for name, p in bench.model.named_parameters() if p.grad is not None}
    bench.optimizer.zero_grad(set_to_none=True)
    if len(passes) != VARIANTS[variant].stage_2_passes:
        raise RuntimeError(f"{variant}: {len(passes)} stage-2 passes, not {VARIANTS[variant].stage_2_passes}")
    return {"loss": loss, **grads}


def _relative(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    value = ((a - b).norm() / b.norm().clamp_min(torch.finfo(torch.float32).tiny)).item()
    return float("inf") if isnan(value) else value  # max() would pass over a nan


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """Most bytes of tensors alive at once that `work` allocated, on either kind of device.

    CUDA: torch.cuda.max_memory_allocated less what was there before. CPU: the running sum of the allocations and frees
    that torch's profiler records. Neither counts a library's own scratch memory or what the allocator holds in reserve.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        work()
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())), default=0)


def seconds(work: Callable[[], None], device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds of one call by `clock`, the device's queue empty before and after."""
    _synchronise(device)
    started = clock()
    work()
    _synchronise(device)
    return clock() - started


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def speed_up(own: list[float], baseline: list[float]) -> float:
    """How many times fewer seconds than the baseline: median over rounds of their ratio in that round."""
    return median(b / a for a, b in zip(own, baseline, strict=True))
