"""A whole run: the best checkpoint, when it validates and saves, phases, unreadable images."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from datasets import Split, train_loader
from datasets.formats.images import UnreadableImageError
from engine.run.checkpointing import read_checkpoint
from engine.run.folder import BEST, LAST
from engine.training.best_metric import Best, check_best_metric, check_direction, direction, judged_by
from engine.training.trainer import Trainer
from tests.tiny import Remains, Session, assert_same_tensors, copied, timeless, tiny_config, tiny_splits, tiny_trainer

PLAIN = {"model.name": "vit", "train.epochs": 1}


def rig(trainer: Trainer, values: list[float]) -> None:
    """Make validation return these accuracies, one per epoch."""
    found = iter(values)
    trainer.evaluate = lambda split: {"val/accuracy": next(found)} if split == "val" else {}


@pytest.mark.parametrize(
    ("values", "chosen"),
    [([0.5, 0.9, 0.7, 0.8], 2), ([0.5, 0.7, 0.7, 0.6], 3), ([0.3, 0.2, 0.1, 0.0], 1), ([math.nan, 0.1, 0.0, 0.1], 4)],
)
def test_best_checkpoint_is_chosen_on_validation_with_ties_to_the_later(
    values: list[float], chosen: int, tmp_path: Path
) -> None:
    session = Session(tiny_config(tmp_path, PLAIN | {"train.epochs": 4, "train.log_test": True}))
    rig(session.trainer, values)
    weights: list[dict[str, Tensor]] = []
    session.trainer.run(session.tracker, lambda row: weights.append(copied(session.trainer.model.state_dict())))
    best = read_checkpoint(tmp_path / BEST / "model.safetensors")
    assert best.progress == {"epoch": chosen, "val/accuracy": values[chosen - 1]}
    assert_same_tensors(best.tensors, weights[chosen - 1])
    assert session.trainer.progress.best_epoch == chosen


def test_epochs_of_stage_1_alone_are_never_the_best(tmp_path: Path) -> None:
    """Stage 2 is not trained in it, however good the metric is by chance."""
    session = Session(tiny_config(tmp_path, {"train.epochs": 3, "optim.stage_1_epochs": 1}))
    rig(session.trainer, [1.0, 0.2, 0.1])
    session.go()
    assert session.trainer.progress.best_epoch == 2
    assert read_checkpoint(tmp_path / BEST / "model.safetensors").progress == {"epoch": 2, "val/accuracy": 0.2}


NAN = math.nan


@pytest.mark.parametrize(
    ("scores", "accuracies", "chosen", "by"),
    [
        ([NAN, NAN, NAN], [0.5, 0.9, 0.1], 2, "accuracy"),
        ([NAN, NAN, NAN], [NAN, NAN, NAN], 3, "epoch"),
        ([NAN, 0.3, 0.2], [0.9, 0.1, 0.8], 2, "score"),  # any value of the metric itself is better than a fallback
        ([0.3, NAN, NAN], [0.1, 0.9, 0.8], 1, "score"),
        ([NAN, 0.0, NAN], [NAN, 0.1, 0.9], 2, "score"),
    ],
)
def test_a_best_metric_that_is_no_number_falls_back_by_name(
    scores: list[float], accuracies: list[float], chosen: int, by: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    session = Session(tiny_config(tmp_path, PLAIN | {"train.epochs": 3, "train.best_metric": "score"}))
    found = iter({"val/score": s, "val/accuracy": a} for s, a in zip(scores, accuracies, strict=True))
    session.trainer.evaluate = lambda split: next(found)
    session.go()
    value = {"score": scores, "accuracy": accuracies, "epoch": [1, 2, 3]}[by][chosen - 1]
    assert session.trainer.progress.selected == Best(by, value, chosen)
    assert read_checkpoint(tmp_path / BEST / "model.safetensors").progress == {"epoch": chosen, f"val/{by}": value}
    said = [line for line in capsys.readouterr().out.splitlines() if "train.best_metric=score is not a number" in line]
    first = next((s for s in scores if not math.isnan(s)), None)
    assert len(said) == (0 if scores[0] == first else 1)
    assert not said or said[0].endswith("accuracy" if not math.isnan(accuracies[0]) else "epoch")


@pytest.mark.parametrize("recorded", [True, False], ids=["this version", "earlier version"])
@pytest.mark.parametrize(
    ("wanted", "of_first", "second", "chosen"),
    [("score", 0.3, 0.2, 1), ("score", 0.3, 0.4, 2), ("score", NAN, 0.1, 2), ("accuracy", 0.3, 0.9, 1)],
)
def test_a_best_metric_changed_on_resuming_judges_the_best_model_anew(
    wanted: str, of_first: float, second: float, chosen: int, recorded: bool, tmp_path: Path
) -> None:
    """Epoch 1 was chosen by an accuracy of 0.95, which must not be compared with values of the new metric."""
    rows = iter([{"val/accuracy": 0.95, "val/score": of_first}, {"val/accuracy": 0.1, f"val/{wanted}": second}])
    config = tiny_config(tmp_path, PLAIN)
    session = Session(config)
    session.trainer.evaluate = lambda split: next(rows)
    session.go()
    if not recorded:
        session.trainer.progress.best_metric = ""
        session.trainer.save(session.tracker)
    now = replace(config, resume=True, train=replace(config.train, epochs=2, best_metric=wanted))
    trainer, said = tiny_trainer(now), []
    trainer.load(said.append)
    trainer.evaluate = lambda split: next(rows)
    trainer.run(session.tracker)
    assert (trainer.progress.best_metric, trainer.progress.best_epoch) == (wanted, chosen)
    assert [("was accuracy" in line, "epoch 1" in line) for line in said] == [(True, True)] * (
        wanted == "score" and not math.isnan(of_first)
    )


def test_a_best_model_that_the_new_metric_cannot_judge_is_replaced() -> None:
    said: list[str] = []
    assert judged_by("b", Best("a", 0.9, 1), [{"epoch": 1, "val/a": 0.9}], said.append) is None
    assert "has no b: the next validation is the best" in said[0]


def test_test_metrics_do_not_affect_the_best_model(tmp_path: Path) -> None:
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    Session(tiny_config(plain)).go()
    Session(tiny_config(watched, {"train.log_test": True})).go()
    assert_same_tensors(Remains.of(plain).best.tensors, Remains.of(watched).best.tensors)
    rows = Remains.of(watched).rows
    assert all("test/accuracy" in row for row in rows)
    without = [{key: value for key, value in row.items() if not key.startswith("test/")} for row in rows]
    assert repr(without) == repr(Remains.of(plain).rows)


def test_validation_every_third_epoch_and_after_the_last(tmp_path: Path) -> None:
    session = Session(tiny_config(tmp_path, PLAIN | {"train.epochs": 4, "train.eval_every": 3})).go()
    assert [row["epoch"] for row in session.tracker.rows() if "val/accuracy" in row] == [3, 4]


@pytest.mark.parametrize(
    ("metric", "values", "chosen"),
    [
        ("consistency", [0.5, 0.3, 0.4], 2),
        ("empty_ratio", [0.0, 0.1, 0.0], 3),
        ("stage_1/accuracy", [0.5, 0.3, 0.4], 1),
    ],
)
def test_the_best_model_has_the_lowest_value_where_lower_is_better(
    metric: str, values: list[float], chosen: int, tmp_path: Path
) -> None:
    session = Session(tiny_config(tmp_path, PLAIN | {"train.epochs": 3, "train.best_metric": metric}))
    rows = iter(values)
    session.trainer.evaluate = lambda split: {f"val/{metric}": next(rows), "val/accuracy": 0.5}
    session.go()
    assert session.trainer.progress.selected == Best(metric, values[chosen - 1], chosen)


@pytest.mark.parametrize("name", ["keep_ratio", "count/images", "agreement_std", "score"])
def test_a_best_metric_of_which_no_value_is_best_is_refused(name: str) -> None:
    match = rf"^train\.best_metric={name}: whether higher or lower values are better is not declared"
    with pytest.raises(UserError, match=match):
        check_direction(name)


def test_unknown_best_metric_lists_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="best_metric.*accurracy.*accuracy") as caught:
        Session(tiny_config(tmp_path, {"train.best_metric": "accurracy"})).go()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keys", [{}, {"model.name": "vit"}, {"loss.consistency.weight": 1.0}])
def test_certain_metrics_are_always_computed(keys: dict[str, Any], tmp_path: Path) -> None:
    """So a best metric among them needs no validation before the run; any other does."""
    trainer = tiny_trainer(tiny_config(tmp_path, keys))
    certain = trainer.metrics.certain()
    row = trainer.evaluate("val")
    assert {"accuracy", "worst_group_accuracy", "auroc"} <= certain
    assert {f"val/{key}" for key in certain} <= row.keys()
    for key in row:
        check_best_metric(key.removeprefix("val/"), certain, lambda: row)
    neither = {key.removeprefix("val/") for key in row if direction(key.removeprefix("val/")) is None}
    assert {key for key in neither if not key.startswith("count/")} <= {"keep_ratio", "parts_per_image"}
    with pytest.raises(UserError, match=r"train\.best_metric.*'accurracy'.*accuracy"):
        check_best_metric("accurracy", certain, lambda: row)


def test_epochs_of_stage_1_alone_do_not_change_stage_2(tmp_path: Path) -> None:
    keys = {"optim.stage_1_epochs": 2, "train.epochs": 3, "train.ema_decay": 0.9}
    session = Session(tiny_config(tmp_path, keys))
    trainer, calls, after = session.trainer, [], []
    trainer.model.stage_2.register_forward_hook(lambda module, *_: calls.append(module.training))
    start = copied(trainer.model.state_dict())
    trainer.run(session.tracker, lambda row: after.append((len(calls), copied(trainer.model.state_dict()))))
    assert not any(calls[: after[1][0]])  # stage 2 only ran in validation
    assert any(calls[after[1][0] :])
    for _, weights in after[:2]:
        assert all(torch.equal(weights[name], start[name]) for name in start if name.startswith("stage_2."))
        assert not torch.equal(weights["stage_1.parts.prototypes"], start["stage_1.parts.prototypes"])
    assert not torch.equal(after[2][1]["stage_2.head.weight"], start["stage_2.head.weight"])
    rows = session.tracker.rows()
    assert "train/stage_2" not in rows[0] and "train/stage_2" in rows[2]
    assert trainer.progress.best_epoch == 3  # stage 2 was not trained before


class PartlyUnreadable:
    """A raw data set with some unreadable images."""

    def __init__(self, raw: Any, broken: set[int]) -> None:
        self.raw, self.broken = raw, broken

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def __len__(self) -> int:
        return len(self.raw)

    def read(self, index: int) -> Any:
        if index in self.broken:
            raise UnreadableImageError(f"birds/{index}.jpg", "not an image")
        return self.raw.read(index)


def with_unreadable(splits: dict[str, Split], name: str, broken: set[int]) -> dict[str, Split]:
    old = splits[name]
    return {**splits, name: Split(PartlyUnreadable(old.raw, broken), old.transform, train=old.train, seed=old.seed)}


def test_broken_images_are_left_out_of_training_and_counted(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    splits = with_unreadable(tiny_splits(config), "train", {3, 17})
    seen = [
        sum(len(batch.skipped) for batch in train_loader(splits["train"], batch_size=8, seed=0, epoch=epoch, workers=0))
        for epoch in range(2)
    ]
    session = Session(config, splits=splits).go()
    assert 0 < seen[0] <= 2
    assert [row["train/skipped"] for row in session.tracker.rows()] == [seen[0], sum(seen)]
    assert session.trainer.progress.skipped == sum(seen)


def test_broken_validation_image_is_an_error(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, {"train.epochs": 1})
    with pytest.raises(UserError, match=r"birds/5\.jpg"):
        Session(config, splits=with_unreadable(tiny_splits(config), "val", {5})).go()


@pytest.mark.parametrize(("every", "expected"), [(0, [4, 8]), (1, [1, 2, 3, 4, 5, 6, 7, 8]), (3, [3, 4, 6, 8])])
def test_save_every_steps(every: int, expected: list[int], tmp_path: Path) -> None:
    session = Session(tiny_config(tmp_path, {"train.save_every_steps": every}))
    save, saved = session.trainer.save, []

    def watched(tracker: Any) -> None:
        save(tracker)
        saved.append(read_checkpoint(tmp_path / LAST).progress["step"])

    session.trainer.save = watched
    session.go()
    assert saved == expected
    assert timeless(read_checkpoint(tmp_path / LAST).progress)["epoch"] == 2


def test_compat_reference_trains(tmp_path: Path) -> None:
    keys = {"compat": "reference", "train.epochs": 1, "model.parts.num_parts": 8, "optim.freeze_stage_1": True}
    session = Session(tiny_config(tmp_path, keys)).go()
    assert session.trainer.model.model_config.parts.eval_noise
    row = session.tracker.rows()[0]
    assert math.isfinite(row["train/loss"]) and "train/equivariance" in row
    assert "val/empty_ratio" in row or "train/empty_ratio" in row
