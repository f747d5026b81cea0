"""Training with few labels: steps, terms, exact resume, validation within an epoch."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from commands.train_run import load_splits, train, training_sampler
from common.errors import UserError
from common.seeds import stable_seed
from datasets.types import Batch
from engine.evaluation.predict import prediction_of
from engine.run.checkpointing import read_checkpoint
from engine.run.folder import BEST, LAST
from engine.run.stopping import RunStopped
from engine.training.consistency import Agreement, Consistency, ConsistencyObjective
from engine.training.objectives import ClassifierObjective
from losses.config import ConsistencyConfig, LossConfig
from models import build_model
from tests.datasets.published import write_voc
from tests.explain.small import CASES
from tests.tiny import assert_same_run, assert_same_tensors, resumed, tiny_config

KEYS: dict[str, Any] = {
    "model.name": "vit", "data.augmentation": "flip", "data.batch_size": 4, "data.semi.batch_size": 5,
    "data.semi.images_per_class": 5, "data.semi.alpha": 2, "loss.consistency.weight": 1, "train.sheet_every": 0,
}  # fmt: skip


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["supervised", "unsupervised", "alternating", "combining"])
def test_every_mode_trains(mode: str, tmp_path: Path) -> None:
    results = train(tiny_config(tmp_path / "run", KEYS | {"data.semi.mode": mode}))
    steps = {"supervised": 2, "unsupervised": 4, "alternating": 9, "combining": 2}[mode]  # an epoch of 10 and 24 images
    last = rows(tmp_path / "run")[-1]
    assert last["step"] == 2 * steps
    assert ("train/classification" in last) == (mode != "unsupervised")
    assert ("train/accuracy" in last) == (mode in ("supervised", "alternating"))
    assert -1 <= last["train/consistency"] <= 1
    assert -1 <= results["test/agreement/low"] <= results["test/agreement"] <= results["test/agreement/high"] <= 1
    assert {"test/consistency", "test/macro_f1", "test/macro_f1/low", "test/accuracy"} <= results.keys()
    if mode in ("supervised", "combining"):  # every step has both terms
        assert last["train/loss"] == pytest.approx(last["train/classification"] + last["train/consistency"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["alternating", "combining"])
def test_resume_is_exact(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after three batches, within an epoch, and resumed: bitwise the same run."""
    keys = KEYS | {"data.semi.mode": mode, "train.eval_every_steps": 1 if mode == "combining" else 2}
    train(tiny_config(tmp_path / "whole", keys))
    config = tiny_config(tmp_path / "parts", keys)
    done = 0
    call = ConsistencyObjective.__call__

    def stopping(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        done += 1
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(ConsistencyObjective, "__call__", stopping)
    with pytest.raises(RunStopped):
        train(config)
    assert read_checkpoint(tmp_path / "parts" / LAST).progress["batch"] > 0
    train(resumed(config))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_validation_within_epochs_and_kept_checkpoints(tmp_path: Path) -> None:
    keys = {"train.eval_every_steps": 3, "train.keep_every": 1, "data.semi.mode": "alternating"}
    results = train(tiny_config(tmp_path / "run", KEYS | keys))
    table = rows(tmp_path / "run")  # 9 steps per epoch
    assert [row["step"] for row in table] == [3, 6, 9, 12, 15, 18]
    assert [row["epoch"] for row in table] == pytest.approx([3 / 9, 6 / 9, 1, 12 / 9, 15 / 9, 2])
    best = max(row["val/accuracy"] for row in table)
    assert results["best_epoch"] == [row["epoch"] for row in table if row["val/accuracy"] == best][-1]
    assert ["train/loss" in row for row in table] == [False, False, True] * 2
    kept = [read_checkpoint(tmp_path / "run" / LAST.parent / f"epoch_{n:03d}.safetensors") for n in (1, 2)]
    assert [checkpoint.progress["epoch"] for checkpoint in kept] == [1, 2]
    assert_same_tensors(kept[1].tensors, read_checkpoint(tmp_path / "run" / LAST).tensors)


@pytest.mark.slow
def test_a_warm_start(tmp_path: Path) -> None:
    """All weights of the best model or a checkpoint of another run; misfits are one-line errors."""
    first = tiny_config(tmp_path / "first", KEYS | {"data.semi.mode": "supervised", "train.keep_every": 1})
    train(first)
    weights = read_checkpoint(tmp_path / "first" / BEST / "model.safetensors").tensors

    def start(source: Path, **keys: Any) -> dict[str, torch.Tensor]:
        """Final weights of a run with a negligible learning rate."""
        out = tmp_path / "second"
        train(tiny_config(out, KEYS | {"model.init_from": str(source), "optim.lr": 1e-30, "overwrite": True} | keys))
        return read_checkpoint(out / BEST / "model.safetensors").tensors

    assert_same_tensors(start(tmp_path / "first"), weights)
    other = tmp_path / "first" / "checkpoints" / "epoch_001.safetensors"
    assert_same_tensors(start(other), read_checkpoint(other).part("model"))
    with pytest.raises(UserError, match="model.init_from: no file"):
        start(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"does not fit this config's model"):
        start(tmp_path / "first", **{"model.name": "two_stage"})


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["alternating", "combining"])
def test_multi_label_images(mode: str, tmp_path: Path) -> None:
    keys = {
        "data.name": "voc2012", "data.root": str(write_voc(tmp_path)), "data.semi.mode": mode,
        "data.semi.images_per_class": 2, "data.semi.fully_balanced": False, "data.batch_size": 2,
        "data.val_fraction": 0.2, "loss.classification.kind": "bce", "train.best_metric": "macro_f1",
    }  # fmt: skip
    results = train(tiny_config(tmp_path / "run", KEYS | keys))
    assert {"test/mean_average_precision", "test/macro_f1", "test/macro_f1/low", "test/agreement"} <= results.keys()
    assert {"train/classification", "train/consistency"} <= rows(tmp_path / "run")[-1].keys()


@pytest.mark.slow
def test_foreground_and_gradcam_of_a_two_stage_model_train(tmp_path: Path) -> None:
    pair = {"loss.consistency.first": "foreground", "loss.consistency.second": "gradcam"}
    keys = KEYS | pair | {"model.name": "two_stage", "loss.consistency.resolution_match": "enlarge"}
    train(tiny_config(tmp_path / "run", keys | {"optim.stage_1_epochs": 1}))
    first, second = rows(tmp_path / "run")
    assert "train/consistency" not in first  # stage 2 has nothing to explain yet
    assert {"train/consistency", "train/stage_2", "train/presence"} <= second.keys()


def batch(labelled: int, unlabelled: int) -> Batch:
    n = labelled + unlabelled
    label = torch.tensor([0, 1] * n)[:n].index_fill(0, torch.arange(labelled, n), -1)
    return Batch(CASES["class_token"].images(n), label, ("x",) * n, unlabelled=unlabelled)


def objective(everywhere: bool = False) -> tuple[ConsistencyObjective, ClassifierObjective]:
    inner = ClassifierObjective(LossConfig(), 5, [1] * 5)
    return ConsistencyObjective(inner, ConsistencyConfig(weight=0.5), everywhere), inner


def plain() -> Any:
    return CASES["plain_cls"].model()


@pytest.mark.parametrize(("labelled", "unlabelled", "everywhere"), [(2, 3, False), (2, 0, True), (0, 3, False)])
def test_loss_is_the_sum_of_both_terms(labelled: int, unlabelled: int, everywhere: bool) -> None:
    both, inner = objective(everywhere)
    model, whole = plain(), batch(labelled, unlabelled)
    output = both(model, whole)
    explained = whole.image if everywhere else whole.image[labelled:]
    expected = 0.5 * Consistency(ConsistencyConfig())(model, explained).mean()
    if labelled:
        expected = expected + inner(model, whole.with_labels()).loss
    torch.testing.assert_close(output.loss, expected)
    assert (output.prediction is not None) == (unlabelled == 0)
    assert ("classification" in output.terms) == (labelled > 0)


def test_labelled_batch_without_everywhere_has_no_consistency() -> None:
    both, inner = objective()
    model, known = plain(), batch(3, 0)
    assert torch.equal(both(model, known).loss, inner(model, known).loss)


def test_agreement_of_all_images_whatever_the_batch() -> None:
    model, images = plain().eval(), batch(0, 5).image

    def values(sizes: list[int], fraction: float = 1.0) -> dict[str, float]:
        agreement = Agreement(model, ConsistencyConfig(weight=1, report_fraction=fraction))
        with torch.no_grad():
            for part in torch.arange(5).split(sizes):
                names = tuple(f"{i}.png" for i in part.tolist())
                agreement(Batch(images[part], torch.zeros(len(part)), names), prediction_of(model(images[part])))
        return agreement.results()

    with torch.no_grad():
        term = Consistency(ConsistencyConfig(weight=1))
        every, _ = term.measured(model, images, model(images).logits.argmax(1))
    whole = values([5])
    assert values([2, 3]) == pytest.approx(whole, abs=1e-5)
    assert whole["agreement"] == pytest.approx(float(every.mean()))
    some = [i for i in range(5) if stable_seed("agreement", f"{i}.png") < 0.5 * 2**32]
    assert 0 < len(some) < 5 and values([2, 3], 0.5) == pytest.approx(values([5], 0.5), abs=1e-5)
    assert values([5], 0.5)["agreement"] == pytest.approx(float(every[some].mean()), abs=1e-5)
    assert whole["agreement/low"] <= whole["agreement"] <= whole["agreement/high"]
    assert Agreement(model, ConsistencyConfig()).results() == {}
    assert not Agreement(model, ConsistencyConfig()).wanted and Agreement(model, ConsistencyConfig(report=True)).wanted


def test_supervised_training_on_few_images_has_no_unlabelled_split(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, KEYS | {"loss.consistency.weight": 0})
    splits = load_splits(config)
    assert len(splits["train"]) == 10 and "unlabelled" not in splits and training_sampler(config, splits) is None
    whole = load_splits(tiny_config(tmp_path, {"model.name": "vit"}))
    assert len(whole["train"]) == 34


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"loss.consistency.weight": 0, "data.semi.mode": "combining"},
            "set loss.consistency.weight, for example to 1",
        ),
        ({"data.semi.mode": "alternating", "optim.stage_1_epochs": 1}, "optim.stage_1_epochs must be 0"),
        ({"train.compile": True}, "set train.compile to false"),
        ({"train.eval_every_steps": -1}, "train.eval_every_steps: must be an integer of at least 0"),
        ({"train.keep_every": -1}, "train.keep_every: must be an integer of at least 0"),
    ],
)
def test_invalid_keys(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        tiny_config(tmp_path, KEYS | keys)


def test_reflect_padding_applies_to_every_convolution(tmp_path: Path) -> None:
    keys = {"model.name": "cnn", "model.backbone": "test_resnet", "model.padding": "reflect"}
    model = build_model(tiny_config(tmp_path, keys).model, 2, (64, 64)).eval()
    zeros = build_model(tiny_config(tmp_path, keys | {"model.padding": "zeros"}).model, 2, (64, 64)).eval()
    images = torch.ones(1, 3, 64, 64)
    features, others = model.backbone.layer1, zeros.backbone.layer1  # type: ignore[union-attr]
    kept: list[torch.Tensor] = []
    for part in (features, others):
        part.register_forward_hook(lambda _, __, out: kept.append(out))  # type: ignore[union-attr]
    model(images), zeros(images)
    spread = [float((maps - maps[..., 8:9, 8:9]).detach().abs().max()) for maps in kept]
    assert spread[0] < 1e-5 < spread[1]  # with reflection, a constant image has no border effects
