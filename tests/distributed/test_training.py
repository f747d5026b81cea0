"""Training in several processes equals training in one; processes stop, resume and fail together."""

import json
import math
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from common.errors import UserError
from common.processes import processes
from datasets import Batch
from datasets.semi_supervised import SemiSupervisedSampler, split_labels
from engine.run.checkpointing import read_checkpoint
from engine.run.distributed import PeerFailed
from engine.run.folder import LAST
from engine.run.stopping import RunStopped
from engine.training.consistency import ConsistencyObjective
from engine.training.trainer import Trainer
from tests.processes import on_processes
from tests.tiny import Session, assert_same_run, resumed, timeless, tiny_config, tiny_splits

TWO_STAGE = {"model.parts.part_dropout": 0.3, "model.parts.mask_dropout": 0.3, "loss.equivariance.padding": "zeros"}
CASES: dict[str, dict[str, Any]] = {
    "two-stage, all noise on": TWO_STAGE,
    "presence over the whole batch": {"loss.presence": "tanh", "loss.enforced_presence": "mse"},
    "straight-through": {"model.mask_gradient": "straight_through"},
    "two epochs of stage 1 alone": {"optim.stage_1_epochs": 1},
    "parts alone": {"model.name": "pdiscoformer"},
    "plain, averaged": {"model.name": "vit", "train.ema_decay": 0.9},
    "micro-batches": {"model.name": "vit", "optim.grad_accum_steps": 2},
}
FAST = ("two-stage, all noise on", "micro-batches")


def trained(out: str, keys: Mapping[str, Any]) -> None:
    """One run with 8 images per step, divided among the processes."""
    batch_size = 8 // processes().world_size
    Session(tiny_config(Path(out), {**keys, "data.batch_size": batch_size})).go()


def rows(out: Path) -> list[dict[str, Any]]:
    return [timeless(json.loads(line)) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_close_runs(first: Path, second: Path, tolerance: float = 1e-4) -> None:
    a, b = rows(first), rows(second)
    assert [row.keys() for row in a] == [row.keys() for row in b]
    for left, right in zip(a, b, strict=True):
        for key, value in left.items():
            if key.startswith("train/"):
                assert right[key] == pytest.approx(value, rel=tolerance, abs=tolerance), key
    # A gradient near zero may change its sign by rounding, and Adam then steps the other way: here by 1e-3 at most.
    torch.testing.assert_close(weights(first), weights(second), rtol=1e-3, atol=1e-3)


def weights(out: Path) -> dict[str, torch.Tensor]:
    last = read_checkpoint(out / LAST)
    return last.part("model") | {f"average/{name}": tensor for name, tensor in last.part("ema").items()}


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in FAST else pytest.mark.slow) for c in CASES])
def test_two_processes_train_as_one(case: str, tmp_path: Path) -> None:
    """Loss curve, metrics and weights, with all random noise of a step."""
    for count, name in ((1, "one"), (2, "two")):
        on_processes(count, trained, str(tmp_path / name), CASES[case])
    assert_close_runs(tmp_path / "one", tmp_path / "two")
    assert read_checkpoint(tmp_path / "two" / LAST).progress["world_size"] == 2


def trained_with_parts_of_the_state(out: str, zero: bool) -> int:
    """Stop in the second epoch and resume; return how many parameters' state this process keeps."""
    keys = {"model.name": "vit", "data.batch_size": 4, "train.ema_decay": 0.9, "optim.zero": zero}

    def ask(count: int) -> None:
        if count == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(RunStopped):
        Session(tiny_config(Path(out), keys), before_batch=ask).go()
    session = Session(resumed(tiny_config(Path(out), keys))).go()
    optimizer = session.trainer.state.optimizer
    return len((optimizer.optim if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer).state)


def test_a_state_in_parts_trains_the_same_weights(tmp_path: Path) -> None:
    """ZeRO: each process updates its own parameters; the checkpoint holds the whole state."""
    whole = on_processes(2, trained_with_parts_of_the_state, str(tmp_path / "whole"), False)
    parts = on_processes(2, trained_with_parts_of_the_state, str(tmp_path / "parts"), True)
    assert whole[0] == whole[1] == sum(parts) and min(parts) > 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_four_processes_with_two_images_each(tmp_path: Path) -> None:
    for count, name in ((1, "one"), (4, "four")):
        on_processes(count, trained, str(tmp_path / name), TWO_STAGE)
    assert_close_runs(tmp_path / "one", tmp_path / "four")


def trained_with_few_labels(out: str, mode: str) -> None:
    batch_size = 4 // processes().world_size
    keys = {
        "model.name": "vit", "data.batch_size": batch_size, "data.semi.batch_size": batch_size, "data.semi.mode": mode,
        "data.semi.images_per_class": 4, "loss.consistency.weight": 0.5, "loss.consistency.first": "gradcam",
        "loss.consistency.second": "gradient",
    }  # fmt: skip
    config = tiny_config(Path(out), keys)
    splits = tiny_splits(config)
    splits["train"], rest = split_labels(splits["train"], config.data.semi, 0)
    session = Session(config, splits)
    session.trainer.step.objective = ConsistencyObjective(
        session.trainer.step.objective, config.loss.consistency, False
    )
    session.trainer.sampler = SemiSupervisedSampler(splits["train"], rest, batch_size, config.data.semi, 0)
    session.trainer.steps = session.trainer.sampler.steps
    session.go()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["alternating", "combining", "unsupervised"])
def test_few_labels(mode: str, tmp_path: Path) -> None:
    for count, name in ((1, "one"), (2, "two")):
        on_processes(count, trained_with_few_labels, str(tmp_path / name), mode)
    assert_close_runs(tmp_path / "one", tmp_path / "two")


def trained_without_an_image(out: str, lost: str) -> None:
    """Train as if the image `lost` could not be read: one process has a smaller batch.

    Plain SGD without clipping: the steps of Adam hardly change when an image gets another weight in the gradient.
    """
    keys = {"model.name": "vit", "optim.name": "sgd", "optim.lr": 0.1, "optim.clip": 0.0}
    config = tiny_config(Path(out), {**keys, "data.batch_size": 8 // processes().world_size})
    session = Session(config)
    loader = session.trainer.sampler.loader

    def without(*place: Any) -> Any:
        for batch in loader(*place):
            yield leave_out(batch, lost)

    session.trainer.sampler.loader = without  # type: ignore[method-assign, assignment]
    session.go()


def leave_out(batch: Batch, lost: str) -> Batch:
    if lost not in batch.paths:
        return batch
    keep = [i for i, path in enumerate(batch.paths) if path != lost]
    paths = tuple(batch.paths[i] for i in keep)
    group = None if batch.group is None else batch.group[keep]
    mask = None if batch.mask is None else batch.mask[keep]
    return replace(
        batch, image=batch.image[keep], label=batch.label[keep], paths=paths, group=group, mask=mask, keypoints=None,
        skipped=(lost,),
    )  # fmt: skip


def test_an_image_less_in_one_process_counts_as_in_one(tmp_path: Path) -> None:
    lost = tiny_splits(tiny_config(tmp_path / "any"))["train"][5].path
    for count, name in ((1, "one"), (2, "two")):
        on_processes(count, trained_without_an_image, str(tmp_path / name), lost)
    assert_close_runs(tmp_path / "one", tmp_path / "two")
    torch.testing.assert_close(weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-5, atol=1e-5)
    assert [row["train/skipped"] for row in rows(tmp_path / "two")] == [1, 2]


def stopped_by_one(out: str, at: int, rank: int) -> tuple[int, int]:
    """Send a signal to process `rank` in its batch `at`; return exit code and number of batches."""
    keys = {**TWO_STAGE, "data.batch_size": 4, "train.ema_decay": 0.9}

    def ask(count: int) -> None:
        if count == at and processes().rank == rank:
            signal.raise_signal(signal.SIGUSR1)

    session = Session(tiny_config(Path(out), keys), before_batch=ask)
    with pytest.raises(RunStopped) as stopped:
        session.go()
    return stopped.value.exit_code, session.batches


def going_on(out: str) -> None:
    keys = {**TWO_STAGE, "data.batch_size": 4, "train.ema_decay": 0.9}
    Session(resumed(tiny_config(Path(out), keys))).go()


def test_a_signal_to_one_stops_all_after_the_same_step_and_they_go_on_exactly(tmp_path: Path) -> None:
    on_processes(2, trained, str(tmp_path / "whole"), {**TWO_STAGE, "train.ema_decay": 0.9})
    answers = on_processes(2, stopped_by_one, str(tmp_path / "parts"), 1, 1)
    assert answers == [(128 + signal.SIGUSR1, 2)] * 2
    on_processes(2, going_on, str(tmp_path / "parts"))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def spoil(trainer: Trainer, rank: int, what: str) -> None:
    """From the third batch on, make the loss or gradient of one process non-finite."""
    objective, seen = trainer.step.objective, []

    def spoilt(model: nn.Module, batch: Batch, **options: Any) -> Any:
        outcome = objective(model, batch, **options)
        seen.append(batch.paths)
        if len(seen) < 3 or processes().rank != rank:
            return outcome
        if what == "loss":
            return replace(outcome, loss=outcome.loss * math.nan)
        weight = next(p for name, p in model.named_parameters() if name == "head.weight")
        return replace(outcome, loss=outcome.loss + (weight - weight.detach()).abs().sum().sqrt())  # 0, slope inf

    trainer.step.objective = spoilt


def failing(out: str, rank: int, what: str) -> tuple[str, str, int]:
    session = Session(tiny_config(Path(out), {"model.name": "vit", "data.batch_size": 4}))
    spoil(session.trainer, rank, what)
    with pytest.raises((UserError, PeerFailed)) as caught:
        session.go()
    return type(caught.value).__name__, str(caught.value), session.trainer.progress.step


@pytest.mark.parametrize("rank", [0, 1])
def test_a_loss_that_is_no_number_in_one_process_stops_all_before_the_step(rank: int, tmp_path: Path) -> None:
    answers = on_processes(2, failing, str(tmp_path), rank, "loss")
    assert [steps for _, _, steps in answers] == [2, 2]
    assert answers[1 - rank][0] == "PeerFailed"
    kind, message, _ = answers[rank]
    assert kind == "DivergedError" and "loss is not finite at epoch 1, batch 3" in message and "\n" not in message


def test_a_gradient_that_is_no_number_stops_all_before_the_step(tmp_path: Path) -> None:
    """The averaged gradient is not finite in any process; each raises the error, and the first is printed."""
    for kind, message, steps in on_processes(2, failing, str(tmp_path), 1, "gradient"):
        assert (kind, steps) == ("DivergedError", 2)
        assert "the gradient is not finite at epoch 1, batch 3 (head.weight)" in message


def resumed_by_another_number(out: str, allow: bool) -> str:
    batch_size = 8 // processes().world_size
    config = tiny_config(Path(out), {**TWO_STAGE, "data.batch_size": batch_size, "allow_change": allow})
    try:
        Session(resumed(config)).go()
    except UserError as error:
        return str(error)
    return ""


def stopped_in_the_second_epoch(out: str) -> None:
    stopped_with(out, 5)


def stopped_with(out: str, at: int) -> None:
    def ask(count: int) -> None:
        if count == at:
            signal.raise_signal(signal.SIGTERM)

    config = tiny_config(Path(out), {**TWO_STAGE, "data.batch_size": 8 // processes().world_size})
    with pytest.raises(RunStopped):
        Session(config, before_batch=ask).go()


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_another_number_of_processes_needs_leave_and_then_goes_on_as_exactly(
    before: int, after: int, tmp_path: Path
) -> None:
    on_processes(1, trained, str(tmp_path / "whole"), TWO_STAGE)
    out = str(tmp_path / "parts")
    on_processes(before, stopped_in_the_second_epoch, out)
    for answer in on_processes(after, resumed_by_another_number, out, False):
        assert f"{before} process" in answer and "--resume.allow-change" in answer and "\n" not in answer
    assert on_processes(after, resumed_by_another_number, out, True) == [""] * after
    assert_close_runs(tmp_path / "whole", tmp_path / "parts")
