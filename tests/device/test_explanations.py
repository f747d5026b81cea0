"""Every explanation method, and `evaluate.py --method`, as on a GPU."""

import pytest

from explain import METHODS, explain
from tests.device.simulated import GPU, SYNC, TO_HOST, SimulatedGpu
from tests.explain.small import CASES

WAITS = {
    "agcam": {SYNC: 1},  # whether the last block may skip patches
    "attention_flow": {TO_HOST: 2},  # computed on the CPU
    "integrated_gradients": {SYNC: 1},  # completeness
}
"""What a GPU machine waits for in a call; other methods: nothing."""


@pytest.mark.parametrize("method", METHODS)
def test_method(gpu: SimulatedGpu, method: str) -> None:
    case = CASES["stage_2" if method == "inherent" else "class_token"]
    model, images = case.model().to(GPU), case.images().to(GPU)
    explain(model, images, method, [0, 1, 2], stage=case.stage)
    gpu.reset()
    maps = explain(model, images, method, [0, 1, 2], stage=case.stage)
    assert maps.device == GPU
    assert gpu.counts == WAITS.get(method, {}), gpu.log
