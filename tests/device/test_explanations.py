"""Every explanation method, and `evaluate.py --method`, as on a GPU."""

from collections import Counter

import pytest

from explain import METHODS, explain
from tests.device.simulated import GPU, SYNC, TO_HOST, SimulatedGpu
from tests.explain.small import CASES

WAITS = {
    "agcam": {SYNC: 1},  # whether the last block may skip patches
    "attention_flow": {TO_HOST: 1},  # computed on the CPU
    "integrated_gradients": {SYNC: 1},  # completeness
}
"""What a GPU machine waits for in a call; other methods: nothing."""


OF_STAGE_2 = ("gradcam", "integrated_gradients", "rollout")
"""Methods of each kind: with one pass, with many, and of the kept patches alone."""


@pytest.mark.parametrize("method", METHODS)
def test_method(gpu: SimulatedGpu, method: str) -> None:
    expected = WAITS.get(method, {})
    assert waits(gpu, "stage_2" if method == "inherent" else "class_token", method) == expected, gpu.log


@pytest.mark.parametrize("method", OF_STAGE_2)
def test_stage_2_waits_once_more(gpu: SimulatedGpu, method: str) -> None:
    """For the numbers of kept patches, which all its passes share."""
    assert waits(gpu, "stage_2", method) == Counter(WAITS.get(method, {})) + Counter({SYNC: 1}), gpu.log


def waits(gpu: SimulatedGpu, case_name: str, method: str) -> Counter[str]:
    case = CASES[case_name]
    model, images = case.model().to(GPU), case.images().to(GPU)
    explain(model, images, method, [0, 1, 2], stage=case.stage)
    gpu.reset()
    maps = explain(model, images, method, [0, 1, 2], stage=case.stage)
    assert maps.device == GPU
    return gpu.counts.copy()
