"""How benchmarks measure on a GPU."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu as on_gpu
from benchmarks import harness
from benchmarks.harness import Case
from tests.device.simulated import CPU, GPU, SimulatedGpu


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A GPU by name, with an `nvidia-smi` that knows one GPU and its clock."""
    script = tmp_path / "nvidia-smi"
    script.write_text('#!/bin/sh\ncase "$*" in *"clocks.sm"*"-i GPU-abc") echo 1755;; *) exit 6;; esac\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(harness, "peak_bytes", lambda work, device: work() or 0)


@pytest.mark.usefixtures("h100")
def test_the_protocol(gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up calls, timed calls, events, the clock, and the fraction of the peak."""
    monkeypatch.setattr(harness, "pick_device", lambda name: GPU)
    monkeypatch.setattr(harness, "prepare_gpu", lambda device, products: calls.append(-1))
    calls: list[int] = []

    def prepare(number: int) -> Callable[[], object]:
        return lambda: calls.append(number)

    options = Namespace(threads=0, device="cuda", rounds=3)
    device = harness.start(options)
    case = Case({}, 4, prepare, flops=5e9)
    harness.measure([case], options.rounds, device)
    assert calls == [-1, *range(10), 0, *range(30)]
    assert len(case.seconds) == 30 and min(case.seconds) > 0 and case.clocks == [1755] * 30
    case.seconds = [0.01, 0.02, 0.04]
    row = case.row(**case.utilisation(on_gpu.peak_flops(device, "bf16")))
    assert row["sm_MHz"] == 1755 and row["mfu"] == pytest.approx(5e9 / 0.02 / 989e12)


@pytest.mark.usefixtures("h100")
def test_unknown_clocks_and_peaks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_gpu.peak_flops(CPU, "bf16") is None and Case({}, 1, lambda _: int).utilisation(None) == {}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert on_gpu.peak_flops(GPU, "fp32") == 51e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert on_gpu.peak_flops(GPU, "fp32") is None
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="other"))
    assert on_gpu.sm_clock(GPU) is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert on_gpu.sm_clock(GPU) is None
