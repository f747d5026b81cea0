"""Training steps and evaluation as on a GPU: no tensor of the CPU meets one of the GPU, and no sync is new."""

from pathlib import Path
from typing import Any

import pytest
import torch

from datasets import eval_loader
from engine.evaluation.loop import evaluate
from engine.evaluation.records import PredictionTable, RecordCollector
from engine.training.consistency import ConsistencyObjective
from engine.training.objectives import OBJECTIVES, Objective
from engine.training.optim import PARAM_GROUP_RULES
from engine.training.trainer import Trainer
from metrics.registry import build_metrics, default_metrics
from models.interface import finds_parts, gives_mask
from models.part_discovery import Intervention
from tests.device.simulated import GPU, SYNC, TO_HOST, SimulatedGpu
from tests.tiny import tiny_config, tiny_model, tiny_splits

STEPS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "packed": ({}, {SYNC: 1}),
    "packed, bf16": ({"train.precision": "bf16"}, {SYNC: 1}),
    "gathered": ({"model.stage_2_path": "gathered"}, {SYNC: 1}),
    "dense": ({"model.stage_2_path": "dense"}, {}),
    "straight_through": ({"model.mask_gradient": "straight_through"}, {}),
    "soft": ({"model.mask_kind": "soft"}, {}),
    "pixels": ({"model.mask_resolution": "pixel"}, {SYNC: 1}),
    "published view": ({"loss.equivariance.published": True, "loss.equivariance.padding": "zeros"}, {SYNC: 1}),
    "selector": ({"model.selector": "attention", "model.selector_keep": 0.3}, {SYNC: 1}),
    "selector, pca": ({"model.selector": "pca", "model.selector_keep": 0.3}, {SYNC: 1}),
    "vit": ({"model.name": "vit"}, {}),
    "consistency": ({"model.name": "vit", "loss.consistency.weight": 1.0}, {}),
    "pdiscoformer": ({"model.name": "pdiscoformer"}, {}),
    "late_masking, average": ({"model.name": "late_masking", "train.ema_decay": 0.9}, {}),
    "decoupled": ({"model.name": "decoupled"}, {SYNC: 1}),
}
"""Config keys; what a GPU machine waits for in a step: to drop tokens, their number."""
EVALUATIONS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "packed": ({}, {SYNC: 1}),
    "pixels": ({"model.mask_resolution": "pixel"}, {SYNC: 1}),
    "vit": ({"model.name": "vit"}, {}),
    "without part 1": ({}, {SYNC: 1}),
}
"""The same for a batch of an evaluation."""
END = {SYNC: 1, TO_HOST: 2}
"""The same at its end: are the logits finite, and the states of all metrics, of two dtypes."""


def trainer_on_gpu(out: Path, keys: dict[str, Any]) -> Trainer:
    config = tiny_config(out, keys)
    model = tiny_model(config).to(GPU)
    objective: Objective = OBJECTIVES[model.objective](config.loss, 2, [17, 17])
    if config.loss.consistency.weight:
        objective = ConsistencyObjective(objective, config.loss.consistency, everywhere=True)
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
    """Of four batches and of two: what `evaluate.py` collects of each image waits for nothing before the end."""
    keys, expected = EVALUATIONS[name]
    config = tiny_config(tmp_path, keys)
    model, split = tiny_model(config).to(GPU), tiny_splits(config)["val"]
    options = {"intervention": Intervention(torch.zeros(3), (1,))} if name == "without part 1" else {}
    for size in (4, 8):
        records, table = RecordCollector(), PredictionTable(split.info)
        metrics = build_metrics(
            default_metrics(split.info, gives_mask(model), split[0] if finds_parts(model) else None), split.info
        )
        gpu.reset()
        loader = eval_loader(split, batch_size=size, workers=0, device=GPU)
        evaluate(model, loader, metrics, GPU, observers=[records, table], options=options)
        batches = len(split) // size
        assert gpu.counts == {what: batches * expected.get(what, 0) + END[what] for what in END}, gpu.log
        assert len(records.gathered()) == len(table.csv().splitlines()) - 1 == len(split)
