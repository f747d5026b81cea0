"""Training steps and evaluation as on a GPU: no tensor of the CPU meets one of the GPU, and no sync is new."""

from pathlib import Path
from typing import Any

import pytest

from engine.training.objectives import OBJECTIVES
from engine.training.optim import PARAM_GROUP_RULES
from engine.training.trainer import Trainer
from tests.device.simulated import GPU, SYNC, SimulatedGpu
from tests.tiny import tiny_config, tiny_model, tiny_splits

STEPS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "packed": ({}, {SYNC: 2}),
    "packed, bf16": ({"train.precision": "bf16"}, {SYNC: 2}),
    "gathered": ({"model.stage_2_path": "gathered"}, {SYNC: 2}),
    "dense": ({"model.stage_2_path": "dense"}, {SYNC: 1}),
    "straight_through": ({"model.mask_gradient": "straight_through"}, {SYNC: 1}),
    "soft": ({"model.mask_kind": "soft"}, {SYNC: 1}),
    "pixels": ({"model.mask_resolution": "pixel"}, {SYNC: 2}),
    "selector": ({"model.selector": "attention", "model.selector_keep": 0.3}, {SYNC: 2}),
    "vit": ({"model.name": "vit"}, {SYNC: 1}),
    "pdiscoformer": ({"model.name": "pdiscoformer"}, {SYNC: 1}),
    "late_masking": ({"model.name": "late_masking"}, {SYNC: 1}),
}
"""Config keys; what a GPU machine waits for in a step: whether the loss is finite and, to drop tokens, their number."""
EVALUATIONS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "packed": ({}, {SYNC: 1}),
    "pixels": ({"model.mask_resolution": "pixel"}, {SYNC: 1}),
    "vit": ({"model.name": "vit"}, {}),
}
"""The same for a batch of an evaluation."""


def trainer_on_gpu(out: Path, keys: dict[str, Any]) -> Trainer:
    config = tiny_config(out, keys)
    model = tiny_model(config).to(GPU)
    objective = OBJECTIVES[model.objective](config.loss, 2, [17, 17])
    return Trainer(
        config, model, objective, PARAM_GROUP_RULES[model.parameter_rules](config.optim), tiny_splits(config), GPU
    )


@pytest.mark.parametrize("name", STEPS)
def test_step(gpu: SimulatedGpu, name: str, tmp_path: Path) -> None:
    keys, expected = STEPS[name]
    trainer = trainer_on_gpu(tmp_path, keys)
    trainer.model.train()
    for number, batch in enumerate(trainer.sampler.loader(0, 0, 0)):
        gpu.reset()
        trainer._train_batch(batch)
        if number == 1:  # the first step fills caches
            break
    assert gpu.counts == expected, gpu.log
    assert trainer.state.optimizer.defaults["fused"]


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation(gpu: SimulatedGpu, name: str, tmp_path: Path) -> None:
    """Per batch: the difference between four batches and two."""
    keys, expected = EVALUATIONS[name]
    counts = []
    for batch_size in (4, 8, 4):
        trainer = trainer_on_gpu(tmp_path, {**keys, "data.eval_batch_size": batch_size})
        gpu.reset()
        trainer.evaluate("val")
        counts.append(gpu.counts.copy())
    counts[2].subtract(counts[1])
    assert {what: number / 2 for what, number in counts[2].items() if number} == expected, gpu.log
