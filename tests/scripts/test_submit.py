"""slurm.submit without SLURM: its errors, and a run in this process. With SLURM: tests/slurm/."""

import sys
from pathlib import Path

import pytest

from slurm import submit
from tests.scripts.test_train_cli import SCRIPT
from tests.tiny import flags

TINY = [*flags({**SCRIPT, "train.epochs": 1})]


def start(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["slurm.submit", *words])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    submit.main()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "2"], "nothing to train"),
        (["--nodes", "two", "--", "--out", "x"], "--nodes: 'two'"),
        (["--nodes", "0", "--", "--out", "x"], "--nodes: '0'"),
        (["--time", "12", "--", "--out", "x"], "--time: '12'"),
        (["--cluster", "local", "--", "--bogus=1"], "bogus"),
        (["--cluster", "local", "--", "--overwrite=true"], "--overwrite"),
        (["--cluster", "local", "--nodes", "2", "--", "--out", "x"], "--nodes: --cluster local"),
        (["--", "--out", "x"], "no sbatch on this machine"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        start(monkeypatch, *words)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert said in error


def test_without_submitit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SystemExit):
        start(monkeypatch, "--cluster", "local", "--", "--out", "x")
    assert capsys.readouterr().err.startswith("error: submitit is not installed; pip install")


@pytest.mark.parametrize(
    ("text", "minutes"), [("12:00:00", 720), ("00:00:01", 1), ("3-01:30:00", 3 * 1440 + 90), ("100:00:30", 6001)]
)
def test_a_time_in_minutes(text: str, minutes: int) -> None:
    assert submit._minutes(text) == minutes


def test_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    start(monkeypatch, "--cluster", "debug", "--", *TINY, "--out", str(tmp_path / "run"))
    assert (tmp_path / "run" / "results.json").is_file()
    assert capsys.readouterr().out.startswith("job DEBUG_")
