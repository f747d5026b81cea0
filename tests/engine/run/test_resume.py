"""A run stopped anywhere and resumed is bitwise equal to the uninterrupted run."""

import random
import signal
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import engine.training.trainer
from common.errors import UserError
from engine.run.checkpointing import read_checkpoint, write_safetensors
from engine.run.folder import LAST
from engine.run.stopping import RunStopped, StopRequest
from tests.tiny import Session, assert_same_run, resumed, tiny_config

BATCHES = 8
"""Micro-batches of the tiny run: two epochs of four."""
CASES: dict[str, dict[str, Any]] = {
    "flipped, nano": {
        "data.augmentation": "flip", "model.backbone": "vit_nano_patch8", "model.stage_1_backbone": "vit_pico_patch8",
    },
    "averaged": {"train.ema_decay": 0.9},
    "accumulated": {"optim.grad_accum_steps": 3, "optim.name": "sgd"},  # windows of 3 and 1
    "scaled": {"train.precision": "fp16"},
    "augmented, straight through": {"data.augmentation": "cub_original", "model.mask_gradient": "straight_through"},
    "stage 1 first, by step": {"optim.stage_1_epochs": 1, "optim.schedule_unit": "step", "optim.warmup_epochs": 0.5},
    "published": {"compat": "reference", "model.drop_path": 0.2, "optim.freeze_stage_1": True},
    "plain vit, mixup, bf16": {
        "model.name": "vit", "loss.classification.mixup": 0.4, "model.drop_path": 0.2, "train.precision": "bf16",
    },
    "decoupled": {"model.name": "decoupled", "data.augmentation": "foreground_crop"},
    "late masking": {"model.name": "late_masking", "model.drop_path": 0.2},
    "PDiscoFormer": {"model.name": "pdiscoformer", "model.parts.modulation": "original", "optim.name": "adam"},
    "cnn": {"model.name": "cnn", "model.backbone": "resnet10t", "train.ema_decay": 0.9},
}  # fmt: skip


@pytest.fixture
def request_of_this_run(monkeypatch: pytest.MonkeyPatch) -> list[StopRequest]:
    """Stop requests of the runs so far, the current one last; tests set its flag in place of a signal."""
    made: list[StopRequest] = []

    class Remembered(StopRequest):
        def __enter__(self) -> StopRequest:
            made.append(self)
            return super().__enter__()

    monkeypatch.setattr(engine.training.trainer, "StopRequest", Remembered)
    return made


def stopped_after(config, batch: int, made: list[StopRequest]) -> Session:
    """One session whose run is asked to stop during its micro-batch number `batch`."""

    def ask(count: int) -> None:
        if count == batch:
            made[-1].signal = signal.SIGTERM

    session = Session(config, before_batch=ask)
    with pytest.raises(RunStopped) as stopped:
        session.go()
    assert stopped.value.exit_code == 143
    return session


FAST = ("averaged", "accumulated")


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in FAST else pytest.mark.slow) for c in CASES])
def test_stopped_at_every_batch_in_turn(case: str, tmp_path: Path, request_of_this_run: list[StopRequest]) -> None:
    """One run in as many sessions as steps: it stops in every batch, including the last of an epoch."""
    Session(tiny_config(tmp_path / "whole", CASES[case])).go()
    config, sessions, done = tiny_config(tmp_path / "parts", CASES[case]), 0, 0
    while done < BATCHES - config.optim.grad_accum_steps:
        session = stopped_after(config, 0, request_of_this_run)
        done, sessions, config = done + session.batches, sessions + 1, resumed(config)
    Session(config).go()
    assert sessions == (7 if config.optim.grad_accum_steps == 1 else 3)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_stopped_once(batch: int, tmp_path: Path, request_of_this_run: list[StopRequest]) -> None:
    """In the middle of the first epoch, at its end, in the middle of the second."""
    Session(tiny_config(tmp_path / "whole", {"train.ema_decay": 0.9})).go()
    config = tiny_config(tmp_path / "parts", {"train.ema_decay": 0.9})
    session = stopped_after(config, batch, request_of_this_run)
    assert session.batches == batch + 1  # the batch it was asked in is finished, no other begun
    progress = session.trainer.progress
    assert (progress.epoch, progress.batch) == divmod(batch + 1, 4)
    Session(resumed(config)).go()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_request_in_the_last_batch_is_heeded_when_all_is_saved(
    tmp_path: Path, request_of_this_run: list[StopRequest]
) -> None:
    """The caller must learn of it, or a study would continue with its next row."""
    session = stopped_after(tiny_config(tmp_path), BATCHES - 1, request_of_this_run)
    assert session.trainer.progress.epoch == read_checkpoint(tmp_path / LAST).progress["epoch"] == 2
    assert Session(resumed(session.config)).go().batches == 0


@pytest.mark.parametrize("case", ["augmented, straight through", "plain vit, mixup, bf16", "published"])
def test_nothing_hangs_on_the_generators_of_python_numpy_and_torch(case: str, tmp_path: Path) -> None:
    """Their states differ at the start, before every batch and within every step."""

    def run(out: Path, seed: int) -> None:
        dice = random.Random(seed)

        def scramble(count: int) -> None:
            for seeded in (random.seed, numpy.random.seed):
                seeded(dice.randrange(2**32))

        def scrambled(batches: Iterable[Any]) -> Iterator[Any]:
            for count, batch in enumerate(batches):
                scramble(count)
                torch.manual_seed(dice.randrange(2**32))
                yield batch

        session = Session(tiny_config(out, CASES[case]), before_batch=scramble)
        loader = session.trainer.sampler.loader
        session.trainer.sampler.loader = lambda *where: scrambled(loader(*where))
        session.go()

    run(tmp_path / "a", 1)
    run(tmp_path / "b", 2)
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_with_loading_processes(tmp_path: Path, request_of_this_run: list[StopRequest]) -> None:
    Session(tiny_config(tmp_path / "whole", {"data.workers": 0})).go()
    Session(tiny_config(tmp_path / "whole with two", {"data.workers": 2})).go()
    config = tiny_config(tmp_path / "parts", {"data.workers": 2})
    stopped_after(config, 5, request_of_this_run)
    Session(replace(resumed(config), data=replace(config.data, workers=1))).go()
    assert_same_run(tmp_path / "whole", tmp_path / "whole with two")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("saved", [2, 6])
def test_killed_without_warning_it_goes_on_from_the_last_save(saved: int, tmp_path: Path) -> None:
    """With a checkpoint every second step; the process dies in a later batch."""
    keys = {"train.save_every_steps": 2}
    Session(tiny_config(tmp_path / "whole")).go()

    def die(count: int) -> None:
        if count == saved + 1:
            raise KeyboardInterrupt

    config = tiny_config(tmp_path / "parts", keys)
    with pytest.raises(KeyboardInterrupt):
        Session(config, before_batch=die).go()
    assert read_checkpoint(tmp_path / "parts" / LAST).progress["step"] == saved
    Session(resumed(config)).go()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_killed_between_the_row_and_the_checkpoint_of_an_epoch(tmp_path: Path) -> None:
    """The row and best weights of the epoch exist already; they are rewritten, not duplicated."""
    Session(tiny_config(tmp_path / "whole")).go()
    config = tiny_config(tmp_path / "parts", {"train.save_every_steps": 1})

    def die(row: Any) -> None:
        raise KeyboardInterrupt

    session = Session(config)
    with pytest.raises(KeyboardInterrupt):
        session.trainer.run(session.tracker, die)
    assert [row["epoch"] for row in session.tracker.rows()] == [1]
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "tra')  # and a line cut short
    again = Session(resumed(config)).go()
    assert [row["epoch"] for row in again.tracker.rows()] == [1, 2]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resuming_a_finished_run_trains_nothing(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    Session(config).go()
    before = (tmp_path / LAST).read_bytes()
    assert Session(resumed(config)).go().batches == 0
    assert (tmp_path / LAST).read_bytes() == before


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path: Path) -> None:
    Session(tiny_config(tmp_path, {"optim.schedule": "constant", "optim.normalise_weight_decay": False})).go()
    keys = {"optim.schedule": "constant", "optim.normalise_weight_decay": False, "train.epochs": 3}
    assert Session(resumed(tiny_config(tmp_path, keys))).go().batches == 4


def test_times_add_up_over_sessions(tmp_path: Path, request_of_this_run: list[StopRequest]) -> None:
    """Wall time includes training, validation, images and checkpoints, of all sessions."""
    config = tiny_config(tmp_path)
    first = stopped_after(config, 1, request_of_this_run).trainer.progress
    assert 0 < first.train_seconds <= first.wall_seconds
    assert read_checkpoint(tmp_path / LAST).progress["wall_seconds"] > 0
    last = Session(resumed(config)).go().trainer.progress
    assert first.wall_seconds < last.wall_seconds and first.train_seconds < last.train_seconds <= last.wall_seconds


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"model.parts.num_parts": 4}, "does not fit"),
        ({"model.backbone": "vit_nano_patch8"}, "does not fit"),
        ({"optim.freeze_stage_2": True}, "optim"),
        ({"train.ema_decay": 0.9}, "does not fit"),
    ],
)
def test_a_checkpoint_of_another_config_is_one_line(keys: dict[str, Any], named: str, tmp_path: Path) -> None:
    Session(tiny_config(tmp_path, {"train.epochs": 1})).go()
    with pytest.raises(UserError, match=named) as caught:
        Session(resumed(tiny_config(tmp_path, keys)))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_version_is_one_line(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, {"train.epochs": 1})
    Session(config).go()
    old = read_checkpoint(tmp_path / LAST)
    write_safetensors(tmp_path / LAST, old.tensors, {**old.progress, "momentum": 1})
    with pytest.raises(UserError, match="another version"):
        Session(resumed(config))


def test_a_checkpoint_from_before_there_were_several_processes(
    tmp_path: Path, request_of_this_run: list[StopRequest]
) -> None:
    """Its sums of the current epoch are a single dict, that of the only process."""
    Session(tiny_config(tmp_path / "whole")).go()
    config = tiny_config(tmp_path / "parts")
    stopped_after(config, 5, request_of_this_run)
    old = read_checkpoint(tmp_path / "parts" / LAST)
    (sums,) = old.progress["sums"]
    progress = {key: value for key, value in old.progress.items() if key not in ("world_size", "batch_images")}
    write_safetensors(tmp_path / "parts" / LAST, old.tensors, {**progress, "sums": sums})
    Session(resumed(config)).go()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
