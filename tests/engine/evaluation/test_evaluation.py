"""Evaluation: independent of batch size, deterministic, and without side effects."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from datasets import Batch, Split, eval_loader
from engine.evaluation.loop import evaluate
from engine.evaluation.predict import predict
from engine.evaluation.records import ImageRecord, RecordCollector
from engine.run.config import RunConfig
from metrics.registry import MetricSet, build_metrics, default_metrics
from metrics.types import Prediction
from models.interface import ImageClassifier, gives_mask
from models.outputs import ClassifierOutput
from models.part_discovery import Intervention
from tests.tiny import CPU, tiny_config, tiny_model, tiny_splits

KEYS = {"data.synthetic.test_images": 37, "model.parts.temperature": 20.0}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return tiny_config(tmp_path_factory.mktemp("run"), KEYS)


@pytest.fixture(scope="module")
def split(config: RunConfig) -> Split:
    return tiny_splits(config)["test"]


def lively_model(config: RunConfig) -> ImageClassifier:
    """Random weights with predictions that vary between images."""
    model = tiny_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gamma", "classifier.weight", "head.weight")):
                parameter.normal_(0, 1, generator=torch.Generator().manual_seed(len(name)))
    return model


def metrics_of(split: Split, model: nn.Module) -> MetricSet:
    return build_metrics(default_metrics(split.info, has_mask=gives_mask(model)), split.info)


def measured(model: nn.Module, split: Split, size: int = 16, **options: Any) -> tuple[dict[str, float], Tensor]:
    """Metrics, and the logits of all images."""
    logits: list[Tensor] = []
    loader = eval_loader(split, batch_size=size, workers=0)
    watch = [lambda batch, prediction: logits.append(prediction.logits)]
    return evaluate(model, loader, metrics_of(split, model), CPU, observers=watch, **options), torch.cat(logits)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_end_with_the_image(config: RunConfig, split: Split, value: float) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> ClassifierOutput:
            third = (torch.arange(len(images)) == 2)[:, None]
            return ClassifierOutput(torch.where(third, value, images.mean((2, 3))[:, :2]))

    with pytest.raises(UserError, match=r"the logits of synthetic/test/00002 are not finite"):
        measured(Broken(), split)


@pytest.mark.parametrize("name", ["two_stage", "vit"])
def test_batch_size_does_not_change_metrics(name: str, config: RunConfig, split: Split) -> None:
    model = lively_model(replace(config, model=replace(config.model, name=name)))
    results = {size: measured(model, split, size)[0] for size in (1, 3, 64)}
    assert results[1]["count/images"] == 37
    assert 0.1 < results[1]["accuracy"] < 0.9
    if name == "two_stage":
        assert 0.05 < results[1]["keep_ratio"] < 0.95
    for size in (3, 64):
        assert results[size] == pytest.approx(results[1], rel=0, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("noise", [False, True])
def test_evaluation_is_deterministic(noise: bool, config: RunConfig, split: Split) -> None:
    """Also with the published noise, which is drawn from a fixed seed."""
    parts = replace(config.model.parts, eval_noise=noise, independent_draws=noise)
    model = lively_model(replace(config, model=replace(config.model, parts=parts)))
    torch.manual_seed(1)
    first, logits = measured(model, split)
    torch.manual_seed(2)
    second, again = measured(model, split)
    assert repr(first) == repr(second) and torch.equal(logits, again)
    _, other = measured(model, split, seed=7)
    assert torch.equal(logits, other) != noise


def test_global_generators_do_not_change(config: RunConfig, split: Split) -> None:
    parts = replace(config.model.parts, eval_noise=True)
    model = tiny_model(replace(config, model=replace(config.model, parts=parts)))
    before = torch.get_rng_state(), repr(random.getstate()), np.random.get_state()[1].tolist()
    measured(model, split)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (repr(random.getstate()), np.random.get_state()[1].tolist()) == before[1:]


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_gradients_are_restored(training: bool, config: RunConfig, split: Split) -> None:
    model = tiny_model(config).train(training)
    inside: list[tuple[bool, bool]] = []
    model.stage_1.register_forward_hook(lambda module, *_: inside.append((module.training, torch.is_grad_enabled())))
    measured(model, split)
    assert set(inside) == {(False, False)}
    assert all(module.training == training for module in model.modules()) and torch.is_grad_enabled()


def test_mode_and_generators_are_restored_after_an_error(config: RunConfig, split: Split) -> None:
    model, state = tiny_model(config).train(), torch.get_rng_state()

    def fail(batch: Batch, prediction: Prediction) -> None:
        raise UserError("no")

    with pytest.raises(UserError):
        evaluate(model, eval_loader(split, batch_size=4, workers=0), metrics_of(split, model), CPU, observers=[fail])
    assert model.training and model.stage_2.training and torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluate_resets_the_metrics(config: RunConfig, split: Split) -> None:
    model = tiny_model(config)
    metrics, loader = metrics_of(split, model), eval_loader(split, batch_size=16, workers=0)
    first = evaluate(model, loader, metrics, CPU)
    assert repr(evaluate(model, loader, metrics, CPU)) == repr(first) and first["count/images"] == 37


def test_a_metric_is_fitted_on_the_training_split_first(config: RunConfig, split: Split) -> None:
    """In a separate pass: the other metrics do not change, also with the published noise."""
    noisy = replace(config, model=replace(config.model, parts=replace(config.model.parts, eval_noise=True)))
    model, training = lively_model(noisy), eval_loader(tiny_splits(config)["val"], batch_size=4, workers=0)

    def values(names: tuple[str, ...], **more: Any) -> dict[str, float]:
        loader = eval_loader(split, batch_size=8, workers=0)
        return evaluate(model, loader, build_metrics(names, split.info), CPU, **more)

    alone = values(("accuracy", "parts"))
    both = values(("accuracy", "parts", "keypoints"), training=training)
    assert both.pop("count/keypoints") == 5 * 37 and 0 < both.pop("keypoint_error") < 1
    assert repr(both) == repr(alone)
    with pytest.raises(UserError, match="'keypoints' needs a pass over the training split first"):
        values(("keypoints",))


def test_options_reach_the_model(config: RunConfig, split: Split) -> None:
    model = lively_model(config)
    values, _ = measured(model, split)
    hidden = {"intervention": Intervention(remove_parts=(0, 1, 2))}
    without, _ = measured(model, split, options=hidden)
    assert without["keep_ratio"] < values["keep_ratio"]


def test_record_collector_keeps_the_order_of_the_split(config: RunConfig, split: Split) -> None:
    model, recorder = lively_model(config), RecordCollector()
    loader = eval_loader(split, batch_size=5, workers=0)
    values = evaluate(model, loader, metrics_of(split, model), CPU, observers=[recorder])
    assert [record.path for record in recorder.records] == [f"synthetic/test/{i:05d}" for i in range(37)]
    assert [record.label for record in recorder.records] == list(split.labels)
    right = [record.predicted == record.label for record in recorder.records]
    assert sum(right) / 37 == values["accuracy"]
    groups = [split.raw.read(i).group for i in range(37)]
    accuracy = [is_right for is_right, group in zip(right, groups, strict=True) if group == 1]
    assert sum(accuracy) / len(accuracy) == values[f"accuracy/group/{split.info.group_names[1]}"]


def test_a_record_of_known_logits() -> None:
    batch = Batch(torch.zeros(2, 3, 8, 8), torch.tensor([1, 0]), ("a", "b"))
    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    recorder = RecordCollector()
    recorder(batch, Prediction(logits))
    probability = logits[0].double().softmax(0).tolist()
    assert recorder.records == [
        ImageRecord("a", 1, 0, pytest.approx(probability[0])),
        ImageRecord("b", 0, 0, pytest.approx(probability[1])),
    ]


def test_half_precision_predictions_are_fp32(config: RunConfig, split: Split) -> None:
    model = lively_model(config).eval()
    batch = next(iter(eval_loader(split, batch_size=8, workers=0)))
    with torch.no_grad():
        exact, half = predict(model, batch), predict(model, batch, torch.bfloat16)
    assert half.logits.dtype == half.maps.dtype == torch.float32
    assert not torch.equal(half.logits, exact.logits)


def test_record_of_a_multi_label_image() -> None:
    """Class 2 is predicted: correct where present, though the label is 0. Absent classes are wrong."""
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(2, 1)
    present = torch.tensor([[True, False, True], [True, True, False]])
    batch = Batch(torch.zeros(2, 3, 1, 1), torch.zeros(2, dtype=torch.int64), ("a", "b"), present=present)
    recorder = RecordCollector()
    recorder(batch, Prediction(logits=logits))
    probability = logits[0].double().softmax(0).tolist()
    assert [(record.label, record.predicted) for record in recorder.records] == [(2, 2), (0, 2)]
    assert [record.wrong_confidence for record in recorder.records] == pytest.approx([probability[1], probability[2]])
