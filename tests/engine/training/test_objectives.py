"""Objectives against sums computed by hand from the model's outputs; skipped terms; predictions."""

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from commands.train_run import build_objective
from datasets import Batch, train_loader
from engine.evaluation.predict import prediction_of
from engine.training.objectives import OBJECTIVES, ClassifierObjective, ObjectiveOutput, TwoStageObjective
from engine.training.optim import PARAM_GROUP_RULES
from losses import parts
from losses.config import ClassificationConfig, EquivarianceConfig, LossConfig, LossWeights
from losses.equivariance import draw_view, unwarp_maps, warp_images
from models.interface import ImageClassifier
from models.outputs import StageOneOutput
from models.two_stage import TwoStageModel
from tests.tiny import tiny_config, tiny_model, tiny_splits

WEIGHTS = LossWeights(1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.1)
"""All terms on, with different weights."""
OFF = LossWeights(*[0.0] * len(asdict(WEIGHTS)))
FUNCTIONS = {
    "presence": "presence", "enforced_presence": "enforced_presence", "total_variation": "total_variation",
    "entropy": "pixel_entropy", "orthogonality": "orthogonality", "concentration": "concentration", "border": "border",
    "equivariance": "equivariance",
}  # fmt: skip
"""Term -> its function in losses.parts."""


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    config = tiny_config(tmp_path)
    return next(iter(train_loader(tiny_splits(config)["train"], batch_size=7, seed=0, epoch=0, workers=0)))


def two_stage(tmp_path: Path, **keys: Any) -> TwoStageModel:
    model = tiny_model(tiny_config(tmp_path, {"model.parts.temperature": 20.0, **keys}))
    assert isinstance(model, TwoStageModel)
    return model.train()


def plain(tmp_path: Path) -> ImageClassifier:
    return tiny_model(tiny_config(tmp_path, {"model.name": "vit"})).train()


def objective(weights: LossWeights = WEIGHTS, **changes: Any) -> TwoStageObjective:
    return TwoStageObjective(replace(LossConfig(), weights=weights, **changes), 2, [17, 17])


def seeded(goal: Any, model: ImageClassifier, batch: Batch, **options: Any) -> ObjectiveOutput:
    torch.manual_seed(3)
    return goal(model, batch, **options)


def by_hand(model: TwoStageModel, batch: Batch, config: LossConfig) -> dict[str, torch.Tensor]:
    """Every term from the model's own output, with the same draws in the same order."""
    torch.manual_seed(3)
    first = model.select(batch.image)
    maps, logits = first.selection.maps, model.predict(batch.image, first.selection)
    seen = batch.image[: config.equivariance.images or None]
    view = draw_view(len(seen), tuple(seen.shape[-2:]), config.equivariance)
    back, valid = unwarp_maps(model.select(warp_images(seen, view)).selection.maps, view)
    return {
        "stage_2": F.cross_entropy(logits, batch.label),
        "stage_1": F.cross_entropy(first.part_logits.mean(-1), batch.label),
        "presence": parts.presence(maps, config.presence),
        "enforced_presence": parts.enforced_presence(maps, config.enforced_presence),
        "total_variation": parts.total_variation(maps),
        "entropy": parts.pixel_entropy(maps),
        "equivariance": parts.equivariance(maps[: len(seen)], back, valid),
        "orthogonality": parts.orthogonality(first.part_features, config.orthogonality),
        "concentration": parts.concentration(maps),
        "border": parts.border(first.selection.logits, config.border_weight),
    }


CHANGES: list[dict[str, Any]] = [
    {},
    {"equivariance": EquivarianceConfig(images=3, padding="reflection")},
    {"equivariance": EquivarianceConfig(published=True), "orthogonality": "channels"},
    {"presence": "soft_constraint", "enforced_presence": "mse", "border_weight": 2.0},
]


@pytest.mark.parametrize("changes", CHANGES, ids=["default", "three views", "published", "other kinds"])
def test_the_loss_is_the_weighted_sum_of_terms_computed_by_hand(
    changes: dict[str, Any], tmp_path: Path, batch: Batch
) -> None:
    model, goal = two_stage(tmp_path), objective(**changes)
    output = seeded(goal, model, batch)
    expected = by_hand(model, batch, goal.config)
    assert output.terms.keys() == expected.keys() == asdict(WEIGHTS).keys()
    for name, value in expected.items():
        torch.testing.assert_close(output.terms[name], value.detach(), rtol=1e-5, atol=1e-6, msg=name)
    total = sum(asdict(WEIGHTS)[name] * value.item() for name, value in expected.items())
    assert output.loss.item() == pytest.approx(total, rel=1e-5)
    assert not any(term.requires_grad for term in output.terms.values()) and output.loss.requires_grad


def test_gradients_are_those_of_the_sum(tmp_path: Path, batch: Batch) -> None:
    model, goal = two_stage(tmp_path), objective()
    weights = list(model.parameters())
    found = torch.autograd.grad(seeded(goal, model, batch).loss, weights, allow_unused=True)
    total = torch.stack([asdict(WEIGHTS)[k] * v for k, v in by_hand(model, batch, goal.config).items()]).sum()
    expected = torch.autograd.grad(total, weights, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", list(asdict(WEIGHTS)))
def test_weight_zero_skips_the_term(name: str, tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"{name} was computed")

    if name in FUNCTIONS:
        monkeypatch.setattr(parts, FUNCTIONS[name], never)
        with pytest.raises(AssertionError):
            seeded(objective(), two_stage(tmp_path), batch)
    output = seeded(objective(replace(WEIGHTS, **{name: 0.0})), two_stage(tmp_path), batch)
    assert set(output.terms) == set(asdict(WEIGHTS)) - {name}


def calls(model: TwoStageModel) -> Counter[str]:
    """A running count of the images through each stage."""
    found: Counter[str] = Counter()
    model.stage_1.register_forward_hook(lambda module, args, output: found.update({"stage_1": len(args[0])}))
    model.stage_2.register_forward_hook(lambda module, args, output: found.update({"stage_2": len(args[0])}))
    return found


@pytest.mark.parametrize(
    ("weights", "images", "alone", "expected"),
    [
        (WEIGHTS, 0, False, {"stage_1": 14, "stage_2": 7}),  # only stage 1 sees the second view
        (WEIGHTS, 3, False, {"stage_1": 10, "stage_2": 7}),
        (replace(WEIGHTS, equivariance=0.0), 0, False, {"stage_1": 7, "stage_2": 7}),
        (WEIGHTS, 0, True, {"stage_1": 14}),
    ],
)
def test_number_of_images_through_each_stage(
    weights: LossWeights, images: int, alone: bool, expected: dict[str, int], tmp_path: Path, batch: Batch
) -> None:
    model = two_stage(tmp_path)
    found = calls(model)
    goal = objective(weights, equivariance=EquivarianceConfig(images=images))
    output = seeded(goal, model, batch, stage_1_only=alone)
    assert found == expected
    assert ("stage_2" in output.terms) != alone and (output.prediction is None) == alone


def test_stage_1_only_gives_stage_2_no_gradient_and_keeps_the_other_terms(tmp_path: Path, batch: Batch) -> None:
    model = two_stage(tmp_path)
    output = seeded(objective(), model, batch, stage_1_only=True)
    both = seeded(objective(), model, batch)
    output.loss.backward()
    assert all(p.grad is None for p in model.stage_2.parameters())
    assert model.stage_1.parts.prototypes.grad.abs().max() > 0
    assert set(both.terms) - set(output.terms) == {"stage_2"}
    assert all(torch.equal(value, both.terms[name]) for name, value in output.terms.items())


@pytest.mark.parametrize("gradient", ["detached", "straight_through"])
def test_stage_2s_loss_reaches_stage_1_only_straight_through(gradient: str, tmp_path: Path, batch: Batch) -> None:
    model = two_stage(tmp_path, **{"model.mask_gradient": gradient})
    seeded(objective(replace(OFF, stage_2=1.0)), model, batch).loss.backward()
    reached = [name for name, p in model.stage_1.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert bool(reached) == (gradient == "straight_through")
    assert model.stage_2.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_batches(kind: str, tmp_path: Path, batch: Batch) -> None:
    """Both stages are trained on the soft targets of mixed images, and there is no prediction to count."""
    config = ClassificationConfig(**{kind: 0.8})
    model, goal = two_stage(tmp_path), objective(classification=config)
    before = batch.image.clone()
    output = seeded(goal, model, batch)
    assert output.prediction is None and torch.equal(batch.image, before)
    torch.manual_seed(3)
    images, targets = goal.mixup(batch.image, batch.label)
    assert not torch.equal(images, before) and targets.shape == (7, 2)
    torch.testing.assert_close(targets.sum(1), torch.ones(7))
    first = model.select(images)
    expected = -(targets * first.class_logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(output.terms["stage_1"], expected.detach())
    expected = -(targets * model.predict(images, first.selection).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(output.terms["stage_2"], expected.detach())


def test_plain_vit_has_only_the_classification_loss(tmp_path: Path, batch: Batch) -> None:
    model = plain(tmp_path)
    goal = ClassifierObjective(LossConfig(weights=WEIGHTS), 2, [17, 17])
    output = goal(model, batch)
    logits = model(batch.image).logits
    assert set(output.terms) == {"classification"}
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, batch.label))
    torch.testing.assert_close(output.prediction.logits, logits.detach())
    assert output.prediction.mask is None and not output.prediction.logits.requires_grad
    alone = goal(model, batch, stage_1_only=True)
    assert torch.equal(alone.loss, output.loss)


def test_the_plain_vit_on_mixed_batches(tmp_path: Path, batch: Batch) -> None:
    model, config = plain(tmp_path), LossConfig(classification=ClassificationConfig(mixup=0.8, label_smoothing=0.1))
    goal = ClassifierObjective(config, 2, [17, 17])
    output = seeded(goal, model, batch)
    torch.manual_seed(3)
    images, targets = goal.mixup(batch.image, batch.label)
    expected = -(targets * model(images).logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(output.loss, expected)
    assert output.prediction is None


def test_prediction_is_the_detached_output(tmp_path: Path, batch: Batch) -> None:
    output = two_stage(tmp_path)(batch.image)
    found, stage_1 = prediction_of(output), output.stage_1
    assert isinstance(stage_1, StageOneOutput)
    assert torch.equal(found.logits, output.logits) and torch.equal(found.stage_1_logits, output.part_logits.mean(-1))
    assert torch.equal(found.maps, output.part_maps) and torch.equal(found.mask, output.mask)
    assert torch.equal(found.empty, stage_1.selection.empty)
    assert not any(t.requires_grad for t in (found.logits, found.stage_1_logits, found.maps))


def test_there_is_an_objective_for_every_model() -> None:
    from models import MODELS

    assert {MODELS[name].objective for name in MODELS} == set(OBJECTIVES)
    assert {MODELS[name].parameter_rules for name in MODELS} == set(PARAM_GROUP_RULES)


def test_losses_stay_in_full_precision_under_autocast(tmp_path: Path, batch: Batch) -> None:
    model = two_stage(tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = seeded(objective(), model, batch)
    assert output.loss.dtype == torch.float32
    assert {term.dtype for term in output.terms.values()} == {torch.float32}


@pytest.mark.parametrize("name", ["vit", "two_stage"])
def test_multi_label_images(name: str, tmp_path: Path, batch: Batch) -> None:
    """Every classification term is binary cross-entropy with the classes present; labels are ignored."""
    model = plain(tmp_path) if name == "vit" else two_stage(tmp_path)
    several = replace(batch, present=torch.rand(7, 2, generator=torch.Generator().manual_seed(2)) > 0.4)
    goal = OBJECTIVES[model.objective](LossConfig(), 2, [17, 17])
    output = seeded(goal, model, several)
    relabelled = seeded(goal, model, replace(several, label=1 - batch.label))
    assert torch.equal(output.loss, relabelled.loss)
    assert output.prediction is not None
    term = output.terms["classification" if name == "vit" else "stage_2"]
    logits = output.prediction.logits.double()
    expected = -torch.where(several.present, logits.sigmoid(), (-logits).sigmoid()).log().mean()
    assert term.item() == pytest.approx(expected.item(), rel=1e-5)


def test_training_images_come_without_annotations_that_nothing_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reading(TwoStageObjective):
        """An objective of a user's own, which may read masks."""

    def annotations(name: str) -> list[bool]:
        config = tiny_config(tmp_path, {"model.name": name})
        splits = tiny_splits(config)
        build_objective(config, tiny_model(config), splits)
        return [splits[split].annotations for split in ("train", "val", "test")]

    assert annotations("two_stage") == annotations("vit") == [False, True, True]
    assert annotations("decoupled") == [True, True, True]  # it is given masks
    monkeypatch.setitem(OBJECTIVES._entries, "two_stage", Reading)
    assert annotations("two_stage") == [True, True, True]
