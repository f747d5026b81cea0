"""Curves: which panels there are, what is drawn, and that nothing global changes."""

import math
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from PIL.ImageColor import getrgb

from report import curves
from report.curves import compare_runs, training_curves
from report.files import png_layout
from report.style import LINES

ROWS = [
    {
        "epoch": epoch,
        "train_seconds": 2.0 * epoch,
        "train/loss": 3 / epoch,
        "train/presence": math.nan if epoch == 2 else 1 / epoch,
        "train/images_per_second": 900.0,
        "lr_factor": 1 - epoch / 5,
        "val/accuracy": 0.5 + 0.1 * epoch,
        "val/worst_group_accuracy": 0.2 * epoch,
        "val/accuracy/group/land on water": 0.2 * epoch,
        "val/count/images": 100.0,
        "note": "text",
    }
    for epoch in range(1, 5)
]


def test_panels_by_subject() -> None:
    panels = {name: [line.name for line in lines] for name, lines in curves._panels(ROWS, "epoch")}
    assert panels == {
        "loss": ["loss"],
        "accuracy": ["accuracy", "worst group accuracy"],
        "accuracy by group": ["land on water"],
        "presence": ["presence"],
        "learning rate factor": ["learning rate factor"],
    }


def test_nan_text_and_missing_values_are_gaps() -> None:
    line = curves._line("x", [*ROWS, {"epoch": 5}], "train/presence", "epoch")
    assert line.x == [1, 3, 4]
    assert curves._line("x", ROWS, "note", "epoch").y == []


def test_a_resumed_run_counts_its_last_row_of_an_epoch() -> None:
    again = curves._last_of_each([*ROWS, {"epoch": 2, "train/loss": 0.0}], "epoch")
    assert [row["epoch"] for row in again] == [1, 2, 3, 4]
    assert again[1]["train/loss"] == 0.0


@pytest.mark.parametrize("x", ["epoch", "train_seconds"])
def test_files_are_written(x: str, tmp_path: Path) -> None:
    one = training_curves(ROWS, tmp_path / "new" / "curves.png", x=x)
    both = compare_runs({"a": ROWS, "b": ROWS[:2], "none": []}, "val/worst_group_accuracy", tmp_path / "both.png", x=x)
    for path in (one, both):
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width > 1000
    assert not list(tmp_path.rglob(".*"))


def test_the_image_carries_the_values_and_where_they_are_drawn(tmp_path: Path) -> None:
    runs = {"a\u202e": ROWS, "b": [{**row, "train_seconds": row["train_seconds"] + 1} for row in ROWS[:2]]}
    path = compare_runs(runs, "val/worst_group_accuracy", tmp_path / "both.png", x="train_seconds")
    (panel,) = (png_layout(path.read_bytes()) or {})["panels"]
    assert panel["header"] == ["training time in seconds", "a\\u202e (%)", "b (%)"]
    assert panel["at"] == [2, 3, 4, 5, 6, 8] and panel["rows"][:2] == [["2", "20.0", ""], ["3", "", "20.0"]]
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    (left, top, right, bottom), (first, last) = panel["box"], panel["limits"]
    for at, name in ((4, 1), (5, 2)):  # a point of each line: 40 % of the axis from -2 % to 102 %
        x = left + (at - first) / (last - first) * (right - left)
        y = bottom - (0.4 + 0.02) / 1.04 * (bottom - top)
        assert np.abs(pixels[round(y), round(x)] - getrgb(LINES[name - 1])).max() < 12
    panels = (png_layout(training_curves(ROWS, tmp_path / "one.png").read_bytes()) or {})["panels"]
    assert [panel["title"] for panel in panels] == [name for name, _ in curves._panels(ROWS, "epoch")]
    assert panels[3]["rows"] == [["1", "1"], ["3", "0.3333"], ["4", "0.25"]]
    boxes = {tuple(panel["box"]) for panel in panels}
    assert len(boxes) == 5 and len({box[1] for box in boxes}) == 2  # four beside each other, one below


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no curves"):
        training_curves([{"epoch": 1, "note": "x"}], tmp_path / "x.png")
    with pytest.raises(ValueError, match="no run has 'val/auroc'"):
        compare_runs({"a": ROWS}, "val/auroc", tmp_path / "x.png")


def test_labels_of_close_ends_are_moved_apart() -> None:
    assert curves.spread([0.2, 0.9, 0.25], 0.1, 1.0) == pytest.approx([0.2, 0.9, 0.3])
    assert curves.spread([1.0, 0.99, 1.0, 0.1], 0.1, 1.0) == pytest.approx([0.9, 0.8, 1.0, 0.1])
    assert curves.spread([0.5], 0.1, 1.0) == [0.5]


def test_global_matplotlib_is_left_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    training_curves(ROWS, tmp_path / "x.png")
    assert dict(matplotlib.rcParams) == before
    lines = "import sys, report.curves, report.examples, report.html; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", lines], check=False).returncode == 0
