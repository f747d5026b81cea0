"""docs/own-data.md, followed from the drawing of the images to the report."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import evaluate
import train
from explain import __main__ as explain

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own-data.md").read_text()
SCRIPTS: dict[str, Callable[[], None]] = {
    "train.py": train.main, "evaluate.py": evaluate.main, "-m explain": lambda: explain.main(sys.argv[1:]),
}  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def run_command(line: str) -> None:
    words = shlex.split(line)[1:]
    count = 2 if words[0] == "-m" else 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [words[0], *words[count:]])
        SCRIPTS[" ".join(words[:count])]()


@pytest.mark.slow
def test_from_images_to_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    draw, loop = blocks("python")
    exec(compile(draw, "draw_shapes.py", "exec"), {})
    rows = (tmp_path / "data/shapes/index.csv").read_text().splitlines()
    shown = blocks("csv")[0].splitlines()
    assert len(rows) == 113 and rows[: len(shown)] == shown
    shutil.copytree("data/shapes", "data/other")
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            run_command(line)
    results = json.loads((tmp_path / "runs/shapes/results.json").read_text())
    assert results["split_origin"] == {split: f"index.csv, split {split}" for split in ("train", "val", "test")}
    groups = [f"test/accuracy/group/{shape}, {place}" for shape in ("disc", "square") for place in ("grass", "sand")]
    assert results["test/worst_group_accuracy"] == min(results[name] for name in groups)
    assert 0 <= results["test/mask_iou"] <= 1 and results["test/count/images"] == 32
    for name in ("test", "other"):
        folder = tmp_path / "runs/shapes/evaluation" / name
        measured = json.loads((folder / "results.json").read_text())
        assert measured["test/worst_group_accuracy"] == results["test/worst_group_accuracy"]
        assert "square, grass" in (folder / "report.html").read_text()
    assert (tmp_path / "shapes.png").is_file()
    capsys.readouterr()
    exec(compile(loop, "my_loop.py", "exec"), {})
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["epoch 1", "epoch 2"]
