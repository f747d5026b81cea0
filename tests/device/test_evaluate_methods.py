"""`evaluate.py --method all` with all metrics as on a GPU."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from commands import evaluate_methods
from engine.run import machine
from metrics.maps import per_image
from models.two_stage import TwoStageModel
from report.explanations import ExplainedImage
from tests.device.simulated import GPU, SYNC, TO_HOST, SimulatedGpu
from tests.scripts.method_runs import Measure, measure, runs  # noqa: F401

METHODS, BATCHES = 12, 2
EACH = {
    SYNC: 7,  # kept patches of covered images: abpc, perturbation, insertion_deletion, as_masks; certificate 3
    TO_HOST: 1,  # localization: components are found on the CPU
}
"""What a GPU machine waits for with each method in each batch."""
REST = {SYNC: 30, TO_HOST: 14}
"""Everything else: methods themselves, predictions without a method, fingerprint of the weights, examples, results."""

PREDICTIONS = (320, 1562)
"""Calls of stage 2 and images in them."""


def blank_sheet(images: Sequence[ExplainedImage], path: Path) -> Path:
    """Instead of the contact sheet, which takes long to draw."""
    Image.new("RGB", (8, 8)).save(path)
    return path


@pytest.mark.slow
def test_what_all_methods_wait_for(
    runs: object,  # noqa: F811
    measure: Measure,  # noqa: F811
    gpu: SimulatedGpu,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On 8 images in two batches. The number of removal steps changes the number of predictions, not of waits."""
    monkeypatch.setattr(machine, "pick_device", lambda name: GPU)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(per_image, "bootstrap", partial(per_image.bootstrap, resamples=2))
    monkeypatch.setattr(evaluate_methods, "method_sheet", blank_sheet)
    sizes: list[int] = []
    predict = TwoStageModel.predict
    monkeypatch.setattr(
        TwoStageModel, "predict", lambda self, x, selection: (sizes.append(len(x)), predict(self, x, selection))[1]
    )
    gpu.reset()
    results = measure("--run", "two", "--limit", "8", "--method", "all", "--removal-steps", "2")
    assert len(results["methods"]) == METHODS
    assert gpu.counts == {what: METHODS * BATCHES * EACH[what] + REST[what] for what in EACH}, gpu.log
    assert gpu.counts.total() < 300
    assert (len(sizes), sum(sizes)) == PREDICTIONS
