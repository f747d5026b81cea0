"""`evaluate.py --method` with all metrics as on a GPU."""

import pytest
import torch

from engine.run import machine
from tests.device.simulated import GPU, SYNC, TO_GPU, TO_HOST, SimulatedGpu
from tests.scripts.method_runs import Measure, measure, runs  # noqa: F401


@pytest.mark.slow
def test_what_a_method_waits_for(
    runs: object,  # noqa: F811
    measure: Measure,  # noqa: F811
    gpu: SimulatedGpu,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Per method, on 8 images in two batches: the difference between three methods and one."""
    monkeypatch.setattr(machine, "pick_device", lambda name: GPU)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    counts = []
    for number, methods in enumerate((["rollout"], ["rollout", "gradcam", "gradient"])):
        gpu.reset()
        measure("--run", "two", "--limit", "8", "--method", *methods, out=f"out{number}")
        counts.append(gpu.counts.copy())
    # Most are the numbers of kept patches of images that a metric covers in part: one a forward pass.
    waits = {what: (counts[1][what] - counts[0][what]) / 2 for what in (SYNC, TO_GPU, TO_HOST)}
    assert waits == {SYNC: 156, TO_GPU: 56, TO_HOST: 24}, gpu.log
