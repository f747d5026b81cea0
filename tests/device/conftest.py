"""The fixture `gpu`: the test runs as on a machine with one GPU."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from models import varlen
from tests.device.simulated import GPU, SYNC, AnyGenerator, SimulatedGpu


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, bounds_k: Tensor, longest: int, longest_k: int, *, scale: float
) -> Tensor:
    """torch's varlen_attn on the CPU: q, k, v [T, H, E] of images that end at `bounds` [B + 1] int32."""
    assert bounds.dtype == torch.int32 and q.is_contiguous() and q.dtype in (torch.float16, torch.bfloat16)
    ends = bounds.tolist()
    assert ends == bounds_k.tolist() and longest == longest_k >= max(
        b - a for a, b in zip(ends, ends[1:], strict=False)
    )
    pieces = []
    for start, end in zip(ends, ends[1:], strict=False):
        mine = (t[start:end].transpose(0, 1) for t in (q, k, v))
        pieces.append(torch.nn.functional.scaled_dot_product_attention(*mine, scale=scale).transpose(0, 1))
    return torch.cat(pieces)


class Event:
    """torch.cuda.Event of a device that has always done its work; only waits of the host are counted elsewhere."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.moment = 0.0

    def record(self) -> None:
        self.moment = time.perf_counter()

    def synchronize(self) -> None:
        assert self.moment, "not recorded"

    def elapsed_time(self, end: "Event") -> float:
        return (end.moment - self.moment) * 1000


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedGpu]:
    simulated, autocast = SimulatedGpu(), torch.autocast

    def kernel(*args: Any, **options: Any) -> Any:
        with torch._C.DisableTorchFunction():  # what it does inside is not counted
            return simulated.put(flash_attention(*args, **options))

    def by_device(lists: Any, *args: Any) -> Any:
        """torch groups tensors by the device that it knows."""
        with torch._C.DisableTorchFunction():
            groups = group(lists, *args)
        held = {simulated.holds(tensor) for tensor in lists[0] if tensor is not None}
        assert len(held) == 1, "tensors of both devices in one step"
        return {(GPU if held == {True} else device, dtype): found for (device, dtype), found in groups.items()}

    group = torch._C._group_tensors_by_device_and_dtype

    def on_the_cpu(device_type: str, *args: Any, **options: Any) -> torch.autocast:
        return autocast("cpu", *args, **options)

    monkeypatch.setattr(torch, "autocast", on_the_cpu)
    monkeypatch.setattr(torch, "Generator", AnyGenerator)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: simulated.count(SYNC, "synchronize"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device=None: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device=None: torch.set_rng_state(state))
    monkeypatch.setattr(torch._C, "_group_tensors_by_device_and_dtype", by_device)
    monkeypatch.setattr(varlen, "flash_attention", kernel)
    with simulated:
        yield simulated
