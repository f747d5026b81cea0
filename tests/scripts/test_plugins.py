"""`--plugin`: a user's own reader is seen by train, evaluate, explain and study alike."""

import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import evaluate
import study
import train
from common import plugins
from common.errors import UserError
from datasets import DATASETS
from explain import __main__ as explain
from tests.tiny import KEYS, flags

READER = """
import numpy as np

from datasets import DATASETS, DataConfig, DatasetInfo, RawSample


@DATASETS.register("halves")
class Halves:
    info = DatasetInfo(name="halves", class_names=("left", "right"))
    groups = None
    labels = [0, 1] * 8

    def __init__(self, config: DataConfig, split: str) -> None:
        self.size = config.size_hw

    def __len__(self) -> int:
        return 16

    def read(self, index: int) -> RawSample:
        image = np.zeros((*self.size, 3), np.uint8)
        half = self.size[1] // 2
        image[:, :half] += 200 * np.uint8(index % 2 == 0)
        image[:, half:] += 200 * np.uint8(index % 2 == 1)
        return RawSample(image, index % 2, f"halves/{index}")
"""
TINY = {**KEYS, "data.name": "halves", "model.name": "vit", "optim.lr": 1e-2, "train.epochs": 1}


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A plugin that is not loaded, and is forgotten afterwards."""
    monkeypatch.setattr(plugins, "_LOADED", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_halves.py").write_text(READER)
    yield tmp_path / "my_halves.py"
    sys.modules.pop("my_halves", None)
    DATASETS._entries.pop("halves", None)


def forget() -> None:
    """As in a new process."""
    plugins._LOADED.clear()
    sys.modules.pop("my_halves")
    del DATASETS._entries["halves"]


def call(main: Callable[[], None], *arguments: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
        main()


def test_in_every_script(reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call(train.main, "--plugin", "my_halves.py", *flags(TINY), "--out=run", "--train.epochs=3")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test/count/images"] == 16 and f"--plugin {reader}" in results["provenance"]["command"]
    assert not list((tmp_path / "run").rglob("my_halves*"))  # not copied into the run
    forget()
    call(evaluate.main, "--run=run", f"--plugin={reader}", "--out=measured")
    assert json.loads((tmp_path / "measured" / "results.json").read_text())["test/accuracy"] == results["test/accuracy"]
    forget()
    Image.new("RGB", (32, 32), "red").save("red.png")
    call(explain.main, "red.png", "--run=run", "--method=rollout", "--plugin=my_halves.py", "--out=red_explained.png")
    assert "halves" in DATASETS and (tmp_path / "red_explained.png").is_file()
    forget()
    (tmp_path / "config.yaml").write_text("train: {sheet_every: 0}")
    (tmp_path / "study.yaml").write_text("title: t\nconfig: config.yaml\nrows: {one: {}}\n")
    settings = [f"{key}={json.dumps(value)}" for key, value in TINY.items() if key != "train.seed"]
    call(study.main, "study.yaml", "--plugin", reader, "--out=study", "--set", *settings)
    assert json.loads((tmp_path / "study" / "results.json").read_text())["one"]["test/count/images"] == 16


def test_without_the_plugin_the_flag_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        call(train.main, *flags(TINY), f"--out={tmp_path / 'run'}")
    assert "unknown data set (--data.name) 'halves'" in (error := capsys.readouterr().err)
    assert error.rstrip().endswith("of your own: --plugin FILE.py")


def test_the_flag_is_taken_out_and_a_file_is_imported_once(reader: Path) -> None:
    assert plugins.load_plugins(["--a", "--plugin", str(reader), "b", f"--plugin={reader}"]) == ["--a", "b"]
    assert plugins.plugin_arguments() == ["--plugin", str(reader)] and "halves" in DATASETS
    assert sys.path[-1] == str(reader.parent)  # spawned loading processes import it from there


MISTAKES = {
    "nowhere.py": "nowhere.py is not a Python file",
    "text.txt": "text.txt is not a Python file",
    "datasets.py": "datasets.py has the name of another module; rename it",
    "my-file.py": "my-file.py has the name of another module",
    "broken.py": "broken.py failed in line 2 \\(ZeroDivisionError: division by zero\\)",
    "typo.py": "typo.py failed \\(SyntaxError",
    "twice.py": "twice.py failed in line 2 \\(ValueError: data set \\(--data.name\\) 'cub' is registered twice",
    "--resume": "--plugin needs a Python file",
}


@pytest.mark.parametrize(("name", "problem"), MISTAKES.items())
def test_mistakes(name: str, problem: str, reader: Path) -> None:
    contents = {
        "text.txt": "", "datasets.py": "", "my-file.py": "", "broken.py": "\n1 / 0", "typo.py": "x =",
        "twice.py": "from datasets import DATASETS\nDATASETS.register('cub')(1)",
    }  # fmt: skip
    before = [*sys.path]
    if name in contents:
        (reader.parent / name).write_text(contents[name])
    file = name if name.startswith("--") else str(reader.parent / name)
    with pytest.raises(UserError, match=problem):
        plugins.load_plugins(["--plugin", file])
    assert plugins.plugin_arguments() == [] and sys.path == before


def test_an_installed_package(reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(reader.parent))
    entry = EntryPoint("mine", "my_halves", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == plugins.GROUP else [])
    call(plugins.with_plugins(lambda: None))
    assert "halves" in DATASETS
