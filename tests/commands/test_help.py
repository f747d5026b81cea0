"""`--help` of every script and of every module in commands/ that can be run."""

import json
import re
import runpy
import subprocess
import sys
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path

import pytest

import evaluate
from common.errors import UserError
from engine.run.command_line import parse_config
from engine.run.config import RunConfig, flat

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


LIGHT = ["train.py --help", "train.py --help=all", "train.py --no.such.key=1", "train.py --train.epochs=x",
         "train.py --optim.lr", "study.py --help", "study.py",
         "evaluate.py --help", "evaluate.py --metrics accuracy"]  # fmt: skip
"""Commands that end before anything is computed."""
COUNT = """
import json, runpy, sys
for command in json.loads(sys.argv[1]):
    sys.argv = command.split()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit:
        pass
print()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_help_and_wrong_flags_import_nothing_slow() -> None:
    """torch, timm and albumentations take ten times as long as all the rest."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT, json.dumps(LIGHT)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    assert {"jsonargparse", "engine", "yaml"} <= imported and done.stderr.count("error: ") == 5
    slow = {"torch", "torchvision", "torchmetrics", "timm", "albumentations", "numpy", "scipy", "pandas", "matplotlib",
            "sklearn", "skimage", "PIL", "cv2", "wandb", "tensorboard", "huggingface_hub"}  # fmt: skip
    assert imported & slow == set()


def test_help_of_evaluate_lists_names_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, listed in ((["--help"], False), (["--help=all"], True), (["--method", "lrp", "--help"], True)):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            evaluate.parse_args()
        shown = " ".join(capsys.readouterr().out.split())
        assert stopped.value.code == 0 and "--keep-ratio RATIO" in shown and "--leave-one-part-out" in shown
        for words in ("--head-fusion VALUE", "min; default: mean", "integrated_gradients", "multilabel_intervals"):
            assert (words in shown) == listed, words
        assert ("--help=all" in shown) != listed


GROUPS = ("optim", "model.parts", "wandb")


def help_of_train(topic: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse_config([f"--help{topic}"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    """Every key stands in the help of its group and in --help=all; the overview has the groups and the other keys."""
    keys = {key for key, _ in flat(asdict(RunConfig()))}
    topics = {"all": keys} | {group: {key for key in keys if key.startswith(f"{group}.")} for group in GROUPS}
    for topic, wanted in topics.items():
        shown = set(re.findall(r"^  --([\w.]+)", help_of_train(f"={topic}", capsys), re.MULTILINE))
        assert shown & keys == wanted, topic
    overview = help_of_train("", capsys)
    assert set(re.findall(r"^  --([\w.]+)", overview, re.MULTILINE)) & keys == {key for key in keys if "." not in key}
    assert {key.rpartition(".")[0] for key in keys} - {""} == set(re.findall(r"--help=([\w.]+)", overview)) - {"all"}
    with pytest.raises(UserError, match="--help=optimiser: .* one of model, "):
        parse_config(["--help=optimiser"])
