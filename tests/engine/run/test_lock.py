"""Only one job writes a run folder; locks that dead jobs left are recognised, on other machines too."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from commands.train_run import train
from common.errors import UserError
from engine.run import lock
from engine.run.folder import BEST, open_run
from engine.run.lock import LOCK, Holder, run_lock
from tests.tiny import tiny_config, tiny_model


def held(out: Path, age: float = 0.0, **changes: Any) -> Path:
    """A lock file of this process with some `changes`, renewed `age` seconds ago."""
    out.mkdir(exist_ok=True)
    path = out / LOCK
    path.write_text(json.dumps(asdict(replace(Holder.here(), **changes))))
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture(scope="module")
def ended() -> int:
    """The pid of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_second_job_is_refused_by_name_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    path = held(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        train(tiny_config(tmp_path / "run", {"model.name": "vit"}))
    message = str(caught.value)
    assert str(os.getpid()) in message and "SLURM job 77" in message and str(path) in message and "\n" not in message
    assert [child.name for child in path.parent.iterdir()] == [LOCK]


def test_one_of_many_gets_a_stale_lock(tmp_path: Path, ended: int) -> None:
    held(tmp_path, pid=ended, started="1")
    start, done, winners, losers = threading.Barrier(8), threading.Event(), [], []

    def compete() -> None:
        start.wait()
        try:
            with run_lock(tmp_path):
                winners.append(threading.get_ident())
                done.wait(10)
        except UserError as error:
            losers.append(str(error))

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(losers) < 7 and any(thread.is_alive() for thread in threads):
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert (len(winners), len(losers)) == (1, 7) and not list(tmp_path.iterdir())


ELSEWHERE = {"host": "node7", "machine": "other"}
FREED: dict[str, tuple[dict[str, Any], float]] = {
    "a later process has its pid": ({"started": "1"}, 0),
    "another machine, not renewed": (ELSEWHERE, 200),
    "the same job, before its restart": ({**ELSEWHERE, "job": "5", "restarts": 0}, 0),
}
KEPT: dict[str, tuple[dict[str, Any], float]] = {
    "this process, though not renewed": ({}, 900),
    "another machine": (ELSEWHERE, 100),
    "a container with our host name": ({"machine": "other", "pid": 2**22}, 0),
    "the same job, after its restart": ({**ELSEWHERE, "job": "5", "restarts": 1}, 0),
    "another job": ({**ELSEWHERE, "job": "6", "restarts": 0}, 0),
}


@pytest.mark.parametrize("case", [*FREED, *KEPT])
def test_which_locks_are_stale(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    changes, age = (FREED | KEPT)[case]
    path = held(tmp_path, age, **changes)
    if case in KEPT:
        with pytest.raises(UserError, match="is writing this run"), run_lock(tmp_path):
            pass
        assert path.exists()
        return
    with run_lock(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_lock_of_a_killed_process_is_stale_at_once_even_as_a_zombie(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        with run_lock(tmp_path):
            time.sleep(60)
    while not (tmp_path / LOCK).exists() or not (tmp_path / LOCK).read_text():
        time.sleep(0.01)
    with pytest.raises(UserError, match=f"process {pid} on"), run_lock(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    while lock._start_of(pid):  # dead, but not waited for
        time.sleep(0.01)
    with run_lock(tmp_path):
        pass
    os.waitpid(pid, 0)


@pytest.mark.parametrize(("age", "stale"), [(0.0, False), (200.0, True)])
def test_a_lock_without_content(age: float, stale: bool, tmp_path: Path) -> None:
    """Its holder died, or has not written it yet."""
    path = tmp_path / LOCK
    path.touch()
    os.utime(path, (time.time() - age,) * 2)
    if stale:
        with run_lock(tmp_path):
            pass
    else:
        with pytest.raises(UserError, match="another process is writing"), run_lock(tmp_path):
            pass


def renewing(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> list[int]:
    """Exit codes with which a lock that is renewed every 10 ms would end this process after `change`."""
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise SystemExit  # of the thread

    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(os, "_exit", leave)
    change()
    time.sleep(0.2)
    return codes


def test_a_held_lock_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
    with run_lock(tmp_path):
        path = tmp_path / LOCK
        os.utime(path, (0, 0))
        assert renewing(monkeypatch, lambda: None) == [] and time.time() - path.stat().st_mtime < 100


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("way", ["taken", "removed"])
def test_a_job_that_lost_its_lock_ends(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was suspended for longer than a lock lives, and another job goes on with the run."""
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
    path = tmp_path / LOCK
    with run_lock(tmp_path):
        codes = renewing(monkeypatch, lambda: held(tmp_path, host="node7") if way == "taken" else path.unlink())
    assert codes == [2] and str(tmp_path) in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert path.exists() == (way == "taken"), "the other job's lock stays"


def test_overwriting_a_run_keeps_its_lock(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, {"model.name": "vit"})
    model = tiny_model(config)
    open_run(config, model)
    (tmp_path / BEST / "model.safetensors").touch()
    with run_lock(tmp_path):
        open_run(replace(config, overwrite=True), model)
        assert (tmp_path / LOCK).exists() and not (tmp_path / BEST / "model.safetensors").exists()


def test_a_run_that_could_not_start_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fewer than one batch"):
        train(tiny_config(tmp_path / "run", {"data.batch_size": 1000}))
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        train(tiny_config(tmp_path / "file" / "run"))
