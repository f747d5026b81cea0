"""Truncated or changed checkpoints are named, and a run resumed from the one before ends with the same state."""

import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train
from common.errors import UserError
from common.processes import processes
from engine.evaluation.loading import load_run_model
from engine.run import checkpointing
from engine.run.checkpointing import (
    checkpoint_exists,
    previous_of,
    read_checkpoint,
    read_newest,
    write_checkpoint,
    write_safetensors,
)
from engine.run.folder import BEST, LAST
from models import TwoStageModel
from tests.processes import on_processes
from tests.tiny import KEYS, Session, assert_same_run, assert_same_tensors, copied, flags, resumed, tiny_config

SAVING = {"train.ema_decay": 0.9, "train.save_every_steps": 1}
BEST_WEIGHTS = BEST / "model.safetensors"


def flipped(path: Path) -> None:
    """Flip one bit of the last tensor."""
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 4
    path.write_bytes(whole)


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    """Some file systems leave a file like this after a power failure."""
    path.write_bytes(bytes(path.stat().st_size))


def missing(path: Path) -> None:
    path.unlink()


BREAKS = (flipped, halved, emptied, zeroed, missing)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """The last of two checkpoints."""
    last = tmp_path / "last.safetensors"
    for epoch in (1, 2):
        write_checkpoint(last, {"model/a": torch.full((100,), float(epoch))}, {"epoch": epoch, "batch": 3})
    return last


def no_message(line: str) -> None:
    raise AssertionError(f"logged {line!r}")


def test_the_last_two_are_kept(two: Path) -> None:
    write_checkpoint(two, {}, {"epoch": 3, "batch": 0})
    assert read_newest(two, no_message).progress["epoch"] == 3
    assert read_checkpoint(previous_of(two)).progress["epoch"] == 2
    assert sorted(path.name for path in two.parent.iterdir()) == ["last.safetensors", "previous.safetensors"]


def test_also_where_the_file_system_has_no_links(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    test_the_last_two_are_kept(two)


@pytest.mark.parametrize("spoil", BREAKS)
def test_a_broken_one_is_named_and_the_one_before_is_read(spoil: Callable[[Path], None], two: Path) -> None:
    said: list[str] = []
    spoil(two)
    found = read_newest(two, said.append)
    assert found.progress["epoch"] == 1 and torch.equal(found.part("model")["a"], torch.ones(100))
    assert len(said) == 1 and "\n" not in said[0]
    assert said[0].startswith((str(two), "no checkpoint")) and "previous.safetensors, after epoch 1, batch 3" in said[0]
    assert checkpoint_exists(two) and two.with_name("broken.safetensors").exists() == (spoil is not missing)
    write_checkpoint(two, {}, {"epoch": 2})  # the broken one does not push out the good one
    assert [read_checkpoint(path).progress["epoch"] for path in (previous_of(two), two)] == [1, 2]


@pytest.mark.parametrize("spoil", BREAKS)
def test_both_broken_is_one_line_and_touches_nothing(spoil: Callable[[Path], None], two: Path) -> None:
    flipped(two)
    spoil(previous_of(two))
    before = {path: path.read_bytes() for path in two.parent.iterdir()}
    with pytest.raises(UserError, match=r"last\.safetensors.*--overwrite=true") as caught:
        read_newest(two, no_message)
    assert "\n" not in str(caught.value) and ("previous" in str(caught.value)) == (spoil is not missing)
    assert {path: path.read_bytes() for path in two.parent.iterdir()} == before


def test_flips_at_three_hundred_places(two: Path) -> None:
    whole, dice, said = two.read_bytes(), random.Random(1), []
    for place in dice.sample(range(len(whole)), 300):
        two.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << dice.randrange(8)]) + whole[place + 1 :])
        assert read_newest(two, said.append).progress["epoch"] == 1
    assert len(said) == 300 and all(line.startswith(str(two)) for line in said)


def test_cuts_at_every_length(two: Path) -> None:
    whole, said = two.read_bytes(), []
    for length in range(len(whole)):
        two.write_bytes(whole[:length])
        assert read_newest(two, said.append).progress["epoch"] == 1
    assert len(said) == len(whole)


def test_files_from_before_checksums_are_read(two: Path) -> None:
    save_file({"model/a": torch.ones(2)}, two, metadata={"progress": '{"epoch": 7}'})
    assert read_newest(two, no_message).progress == {"epoch": 7}


@pytest.mark.parametrize("spoil", [flipped, missing])
def test_a_run_goes_on_from_the_one_before(
    spoil: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends with the same state; the row of the second epoch is rewritten, not duplicated."""
    Session(tiny_config(tmp_path / "whole", SAVING)).go()
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    spoil(tmp_path / "broken" / LAST)
    capsys.readouterr()
    session = Session(resumed(tiny_config(tmp_path / "broken", SAVING)))
    assert "resuming from" in capsys.readouterr().out and session.trainer.progress.step == 7
    assert [row["epoch"] for row in session.tracker.rows()] == [1]
    session.go()
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def trained(out: Path) -> None:
    Session(tiny_config(out, SAVING)).go()


def resumed_at(out: Path, differently: bool) -> int | str:
    """The step from which this process resumes, or its error message."""
    if differently and processes().rank == 1:
        checkpointing.read_newest = lambda last, log: read_checkpoint(last.with_name("broken.safetensors"))
    try:
        return Session(resumed(tiny_config(out, SAVING))).trainer.progress.step
    except UserError as error:
        return str(error)


@pytest.mark.slow
def test_several_processes_go_on_from_the_same_one(tmp_path: Path) -> None:
    on_processes(2, trained, tmp_path)
    shutil.copyfile(tmp_path / LAST, tmp_path / "whole")
    flipped(tmp_path / LAST)
    assert on_processes(2, resumed_at, tmp_path, False) == [3, 3]  # of four
    shutil.copyfile(tmp_path / "whole", tmp_path / LAST.with_name("broken.safetensors"))
    for said in on_processes(2, resumed_at, tmp_path, True):
        assert "not all processes read the same checkpoint" in str(said)


def test_both_broken_ends_the_command_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Session(tiny_config(tmp_path, SAVING)).go()
    flipped(tmp_path / LAST)
    halved(previous_of(tmp_path / LAST))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["train.py", *flags({**KEYS, **SAVING, "out": str(tmp_path), "resume": True})])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert "last.safetensors" in error and "previous.safetensors" in error


def test_broken_best_weights_are_named_by_every_reader(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    Session(config).go()
    good = TwoStageModel.from_pretrained(str(tmp_path / BEST)).state_dict()
    assert_same_tensors(load_run_model(tmp_path, config, "best", 2).state_dict(), good)
    flipped(tmp_path / BEST_WEIGHTS)
    for read in (
        lambda: load_run_model(tmp_path, config, "best", 2),
        lambda: TwoStageModel.from_pretrained(str(tmp_path / BEST)),
    ):
        with pytest.raises(UserError, match=r"best/model\.safetensors.*damaged") as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("averaged", [False, True])
def test_best_weights_are_made_again_from_a_checkpoint_of_their_epoch(
    averaged: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a finished run, and of one that has gone on; without such a checkpoint it ends before it trains."""
    config = tiny_config(tmp_path, {"model.name": "vit", "train.epochs": 1, "train.ema_decay": 0.9 * averaged})
    Session(config).go()
    before, kept = copied(read_checkpoint(tmp_path / BEST_WEIGHTS).tensors), LAST.with_name("epoch_001.safetensors")
    for source, spoil in ((LAST, flipped), (LAST, missing), (kept, flipped)):
        if source == kept:
            shutil.copyfile(tmp_path / LAST, tmp_path / kept)
            last = read_checkpoint(tmp_path / LAST)
            write_safetensors(tmp_path / LAST, last.tensors, {**last.progress, "batch": 3})
            (tmp_path / LAST.with_name("previous.safetensors")).unlink(missing_ok=True)
        spoil(tmp_path / BEST_WEIGHTS)
        capsys.readouterr()
        assert Session(resumed(config)).trainer.progress.selected is not None
        assert f"written again from {tmp_path / source}" in capsys.readouterr().out
        assert_same_tensors(read_checkpoint(tmp_path / BEST_WEIGHTS).tensors, before)
    (tmp_path / kept).unlink()
    missing(tmp_path / BEST_WEIGHTS)
    with pytest.raises(UserError, match="no checkpoint of its epoch, 1; put a copy of it back"):
        Session(resumed(config))
    assert Session(resumed(replace(config, allow_change=True))).trainer.progress.selected is None
    assert "the next validation is the best" in capsys.readouterr().out
