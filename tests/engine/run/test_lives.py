"""A SLURM job that is requeued without progress stops with a line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from commands.train_run import train
from common.errors import UserError
from engine.run.checkpointing import write_checkpoint
from engine.run.folder import LAST, RESULTS
from engine.run.lives import LIVES_FILE, MOST_LIVES, count_life
from tests.tiny import tiny_config


@pytest.fixture(autouse=True)
def in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "41")


def saved(out: Path, epoch: int, batch: int) -> None:
    (out / LAST).parent.mkdir(exist_ok=True)
    write_checkpoint(out / LAST, {}, {"epoch": epoch, "batch": batch, "step": 4 * epoch + batch})


@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_a_job_that_never_saves_anything_stops(with_checkpoint: bool, tmp_path: Path) -> None:
    if with_checkpoint:
        saved(tmp_path, 1, 2)
    for _ in range(MOST_LIVES):
        count_life(tmp_path)
    with pytest.raises(UserError, match=r"SLURM job 41 has started 3 times.*--signal=USR1") as caught:
        count_life(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    count_life(tmp_path)  # submitted again by hand


def test_a_job_that_gets_on_may_be_requeued_for_ever(tmp_path: Path) -> None:
    for step in range(3 * MOST_LIVES):
        saved(tmp_path, 0, step // 2)  # every other life saves a step
        count_life(tmp_path)


def test_only_lives_of_one_job_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for job in ("41", "42") * MOST_LIVES:
        monkeypatch.setenv("SLURM_JOB_ID", job)
        count_life(tmp_path)
    (tmp_path / LIVES_FILE).write_text('{"job": "42", "lives"')  # damaged
    count_life(tmp_path)
    assert json.loads((tmp_path / LIVES_FILE).read_text()) == {"job": "42", "saved": None, "lives": 1}


def test_a_finished_run_and_one_outside_slurm_start_as_often_as_they_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / RESULTS).touch()
    for _ in range(2 * MOST_LIVES):
        count_life(tmp_path)
    (tmp_path / RESULTS).unlink()
    monkeypatch.delenv("SLURM_JOB_ID")
    for _ in range(2 * MOST_LIVES):
        count_life(tmp_path)
    assert not (tmp_path / LIVES_FILE).exists()


def test_training_counts_its_starts(tmp_path: Path) -> None:
    """Each start fails after the count; the next one is refused before anything else is read."""
    config = replace(tiny_config(tmp_path / "run", {"data.batch_size": 1000}), resume="auto")
    for _ in range(MOST_LIVES):
        with pytest.raises(UserError, match="fewer than one batch"):
            train(config)
    with pytest.raises(UserError, match="without saving anything new"):
        train(config)
