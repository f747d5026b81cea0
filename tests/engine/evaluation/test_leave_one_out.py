"""Removing parts: all settings in one pass, against one evaluation per setting."""

from dataclasses import replace

import pytest
import torch

from datasets import Split, eval_loader
from engine.evaluation.loop import evaluate
from engine.evaluation.part_removal import UNMODIFIED, measure, removal_settings
from engine.evaluation.predict import evaluation_mode, predict
from engine.run.config import RunConfig
from metrics.registry import build_metrics, default_metrics
from models.part_discovery import Intervention
from models.two_stage import TwoStageModel
from tests.tiny import CPU, tiny_model

THRESHOLDS = torch.tensor([0.5, -1.0, 2.0])


def model_of(config: RunConfig, **parts: object) -> TwoStageModel:
    """Random weights with predictions that depend on the visible patches."""
    model = tiny_model(replace(config, model=replace(config.model, parts=replace(config.model.parts, **parts))))
    assert isinstance(model, TwoStageModel)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gamma", "prototypes", "head.weight")):
                parameter.normal_(0, 1, generator=torch.Generator().manual_seed(3 + len(name)))
    return model


def test_rows_of_the_table() -> None:
    plain = removal_settings(3, [], None)
    assert {row: taken.remove_parts for row, taken in plain.items()} == {
        UNMODIFIED: (), "without part 0": (0,), "without part 1": (1,), "without part 2": (2,),
    }  # fmt: skip
    both = removal_settings(4, [2, 0, 2], THRESHOLDS)
    assert {row: taken.remove_parts for row, taken in both.items()} == {
        UNMODIFIED: (), "thresholds": (), "thresholds, without parts 0, 2": (0, 2),
        "thresholds, without parts 0, 1, 2": (0, 1, 2), "thresholds, without parts 0, 2, 3": (0, 2, 3),
    }  # fmt: skip
    assert both[UNMODIFIED].thresholds is None
    assert all(taken.thresholds is THRESHOLDS for row, taken in both.items() if row != UNMODIFIED)
    assert list(removal_settings(1, [], None)) == [UNMODIFIED, "without part 0"]
    assert list(removal_settings(1, [0], None)) == [UNMODIFIED, "without part 0"]


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("thresholds", [None, THRESHOLDS])
def test_equals_one_evaluation_for_each_row(
    published: bool, thresholds: torch.Tensor | None, config: RunConfig, split: Split
) -> None:
    """Bitwise, also with published noise, which is the same for every row."""
    model = model_of(config, eval_noise=published, independent_draws=published)
    settings = removal_settings(3, [1], thresholds)
    names = default_metrics(split.info, has_mask=True)
    metrics = {row: build_metrics(names, split.info) for row in settings}
    loader = eval_loader(split, batch_size=5, workers=0)
    measure(model, loader, settings, metrics, CPU)
    kept = set()
    for row, taken in settings.items():
        alone = evaluate(model, loader, build_metrics(names, split.info), CPU, options={"intervention": taken})
        assert repr(metrics[row].compute()) == repr(alone)
        kept.add(alone["keep_ratio"])
    assert len(kept) == len(settings), "every row removes other patches"
    bare = evaluate(model, loader, build_metrics(names, split.info), CPU)
    assert repr(metrics[UNMODIFIED].compute()) == repr(bare)


def test_number_of_changed_predictions(config: RunConfig, split: Split) -> None:
    model = model_of(config)
    settings = removal_settings(3, [], THRESHOLDS)
    metrics = {row: build_metrics(["accuracy"], split.info) for row in settings}
    changed = measure(model, eval_loader(split, batch_size=5, workers=0), settings, metrics, CPU)

    def predictions(taken: Intervention) -> list[int]:
        with evaluation_mode(model, CPU, seed=0):
            batches = eval_loader(split, batch_size=1, workers=0)
            return [int(predict(model, batch, intervention=taken).logits.argmax()) for batch in batches]

    before = predictions(Intervention())
    expected = {
        row: sum(a != b for a, b in zip(before, predictions(taken), strict=True)) for row, taken in settings.items()
    }
    assert changed == expected and changed[UNMODIFIED] == 0 and max(changed.values()) > 0


def test_the_backbone_of_stage_1_runs_once(config: RunConfig, split: Split) -> None:
    model = model_of(config)
    settings = removal_settings(3, [], None)
    metrics = {row: build_metrics(["accuracy"], split.info) for row in settings}
    seen = {1: 0, 2: 0}
    for stage, backbone in ((1, model.stage_1.backbone), (2, model.stage_2.backbone)):
        backbone.patch_embed.register_forward_hook(
            lambda module, inputs, output, stage=stage: seen.update({stage: seen[stage] + 1})
        )
    measure(model, eval_loader(split, batch_size=8, workers=0), settings, metrics, CPU)
    assert seen == {1: 2, 2: 2 * len(settings)}
