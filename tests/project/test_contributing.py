"""The examples of CONTRIBUTING.md work as written: one file of a user's own, given to the commands as a plugin."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import KEYS, flags

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
OWN = {
    **KEYS, "model.name": "patch_average", "model.backbone": "vit_nano_patch8", "data.name": "squares",
    "train.epochs": 1, "out": "run",
}  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the repository with the examples in one file, and a finished run that uses all of them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_extensions.py").write_text("\n\n".join(BLOCKS))
    said = run(folder, "train", *flags(OWN))
    assert "results in run" in said
    return folder


def run(folder: Path, script: str, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", script, "--plugin", "my_extensions.py", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_one_example_of_each_kind() -> None:
    registries = ("DATASETS.register", "MODELS.register", "METRICS.register", "METHODS.register")
    assert [[word for word in registries if word in block] for block in BLOCKS] == [[word] for word in registries]


@pytest.mark.slow
def test_a_model_of_ones_own_trains_on_data_of_ones_own(own: Path) -> None:
    results = json.loads((own / "run" / "results.json").read_text())
    assert results["model"] == "patch_average" and results["test/count/images"] == 32


@pytest.mark.slow
def test_it_is_evaluated_with_a_metric_of_ones_own(own: Path) -> None:
    run(own, "evaluate", "--run", "run", "--metrics", "accuracy", "brier", "--out", "out")
    assert 0 <= json.loads((own / "out" / "results.json").read_text())["test/brier"] <= 2
    assert "Brier score" in (own / "out" / "metrics.md").read_text()


@pytest.mark.slow
def test_it_is_explained_by_a_method_of_ones_own(own: Path) -> None:
    words = ("--method", "token_norm", "rollout", "--power", "2", "--metrics", "pointing", "--out", "maps")
    run(own, "evaluate", "--run", "run", *words)
    results = json.loads((own / "maps" / "results.json").read_text())
    assert [row["row"] for row in results["rows"]] == ["token_norm", "rollout"]
    assert results["methods"]["token_norm"] == {"power": 2.0}
    Image.new("RGB", (40, 40), "green").save(own / "photo.png")
    words = ("photo.png", "--run", "run", "--method", "token_norm", "--out", "sheet.png")
    run(own, "explain", *words)
    assert Image.open(own / "sheet.png").width > 50
