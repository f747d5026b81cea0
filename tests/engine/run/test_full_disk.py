"""A full disk: a one-line error, no partial files, earlier files unchanged; with free space the run resumes."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from engine.run.atomic_files import DAY, link_or_copy, remove_leftovers
from engine.run.checkpointing import read_checkpoint, write_checkpoint
from engine.run.folder import BEST, CONFIG_FILE, LAST, RESULTS, open_run
from engine.run.tracking import Tracker
from report.files import write_atomic
from tests.tiny import Session, assert_same_run, resumed, tiny_config, tiny_model

KEYS = {"train.ema_decay": 0.9, "train.save_every_steps": 1, "train.eval_every_steps": 3}


@contextlib.contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Limit the file size of this process: the kernel stops a write in the middle, like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checkpoint(out: Path) -> None:
    write_checkpoint(out / LAST, {"model/a": torch.zeros(5000)}, {"epoch": 3})


def row(out: Path) -> None:
    Tracker(out, tiny_config(out)).log({"epoch": 3, "train/loss": 0.5, "long": "x" * 5000})


def opened(out: Path) -> None:
    config = tiny_config(out, {"wandb.tags": ["x" * 100] * 60, "resume": True})
    open_run(config, tiny_model(config))


def results(out: Path) -> None:
    write_atomic(out / RESULTS, "x" * 5000)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with every file and two checkpoints."""
    config = tiny_config(tmp_path / "run")
    out = open_run(config, tiny_model(config))
    for epoch in (1, 2):
        write_checkpoint(out / LAST, {"model/a": torch.ones(50)}, {"epoch": epoch})
        Tracker(out, config).log({"epoch": epoch, "train/loss": 0.5})
    (out / RESULTS).write_text("{}")
    return out


@pytest.mark.parametrize(
    ("write", "named"),
    [(checkpoint, LAST), (row, "metrics.jsonl"), (opened, "--out"), (results, RESULTS)],
)
def test_a_file_that_does_not_fit_is_one_line(write: Callable[[Path], None], named: Any, run: Path) -> None:
    before = contents(run)
    with no_file_longer_than(4000), pytest.raises(UserError, match="File too large") as caught:
        write(run)
    assert str(named) in str(caught.value) and "\n" not in str(caught.value)
    assert contents(run) == before


def test_rows_that_cannot_be_cut_back_stay(run: Path) -> None:
    before = contents(run)
    with no_file_longer_than(20), pytest.raises(UserError, match=r"metrics\.jsonl: File too large"):
        Tracker(run, tiny_config(run)).truncate(1)
    assert contents(run) == before


def test_a_second_name_that_costs_room_there_is_not(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hard links a copy is needed; if it fails, both checkpoints stay intact."""

    def refuse(*names: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    before = contents(run)
    with no_file_longer_than(300), pytest.raises(UserError, match=r"last\.safetensors.*File too large"):
        link_or_copy(run / LAST, run / LAST.with_name("epoch_002.safetensors"))
    with no_file_longer_than(300), pytest.raises(UserError, match=r"last\.safetensors.*File too large"):
        write_checkpoint(run / LAST, {}, {"epoch": 3})  # small enough itself, but the copy is not
    assert contents(run) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is root's right")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, room: int) -> None:
    """Fill the disk until `room` bytes are free."""
    state = os.statvfs(disk)
    (disk / "others").write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - room)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out, threads = tmp_path_factory.mktemp("whole"), torch.get_num_threads()
    torch.set_num_threads(1)  # made before the fixture that does so for a test
    Session(tiny_config(out, KEYS)).go()
    torch.set_num_threads(threads)
    return out


@pytest.mark.parametrize(("batch", "room"), [(0, 100_000), (1, 0), (2, 100_000), (6, 0)])
def test_the_disk_fills_up_in_the_middle_of_a_run(batch: int, room: int, whole: Path, small_disk: Path) -> None:
    """At the first checkpoint, the second, the best weights, in the last epoch; then space is freed."""
    config = tiny_config(small_disk / "run", KEYS)
    session = Session(config, before_batch=lambda count: fill(small_disk, room) if count == batch else None)
    with pytest.raises(UserError, match="No space left on device") as caught:
        session.go()
    assert "\n" not in str(caught.value) and str(small_disk) in str(caught.value)
    assert not list(small_disk.rglob("*.tmp"))
    if batch:
        assert read_checkpoint(small_disk / "run" / LAST).progress["step"] == batch
    (small_disk / "others").unlink()
    Session(resumed(config) if batch else config).go()
    assert_same_run(whole, small_disk / "run")


def test_what_killed_processes_left_is_removed_at_the_next_start(run: Path) -> None:
    """Temporary files of every writer, and nothing else."""
    before = contents(run)
    for name in (
        LAST,
        LAST.with_name("previous.safetensors"),
        BEST / "model.safetensors",
        CONFIG_FILE,
        "curves.png.71",
    ):
        path = run / name
        path.with_name(f".{path.name}.tmp").write_text("half")
        path.with_name(".tmpA1b2C3").write_text("half")
    (run / "notes.tmp").write_text("mine")
    config = tiny_config(run, {"resume": True})
    open_run(config, tiny_model(config))
    assert contents(run) == {**before, run / "notes.tmp": b"mine"}


def test_leftovers_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    remove_leftovers(tmp_path / "nowhere")


def test_files_that_another_process_may_be_writing_stay_for_a_day(tmp_path: Path) -> None:
    for name in (".new.json.71.tmp", ".old.json.71.tmp"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".old.json.71.tmp", (0, 0))
    remove_leftovers(tmp_path, age=DAY)
    assert [path.name for path in tmp_path.iterdir()] == [".new.json.71.tmp"]
