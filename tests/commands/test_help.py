"""`--help` of every script and of every module in commands/ that can be run."""

import runpy
import sys
from operator import attrgetter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN_AS_SCRIPT = 'if __name__ == "__main__":'


def runnable(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.py") if RUN_AS_SCRIPT in path.read_text())


SCRIPTS, NAME = [*runnable(ROOT), *runnable(ROOT / "commands")], attrgetter("stem")


def test_every_module_with_a_main_can_be_run() -> None:
    with_main = [path for path in sorted((ROOT / "commands").glob("*.py")) if "\ndef main(" in path.read_text()]
    assert with_main and with_main == runnable(ROOT / "commands")


@pytest.mark.parametrize("path", SCRIPTS, ids=NAME)
def test_help(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The usage and the first line of the module's docstring, and exit code 0."""
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        if path.parent == ROOT:
            runpy.run_path(str(path), run_name="__main__")
        else:
            runpy.run_module(f"commands.{path.stem}", run_name="__main__")
    printed = capsys.readouterr().out
    first_words = path.read_text().splitlines()[0].strip('"').split()[:4]
    assert stopped.value.code == 0 and printed.startswith("usage: ")
    assert " ".join(first_words) in " ".join(printed.split())


@pytest.mark.parametrize("path", SCRIPTS, ids=NAME)
def test_a_wrong_flag_is_one_line(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [path.name, "--no-such-flag"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
