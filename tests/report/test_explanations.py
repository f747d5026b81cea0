"""The report on explanation methods: maps side by side, one table in four formats, failed maps are counted."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from report.explanations import TILE, ExplainedImage, method_sheet, write_explanation_report
from report.overlays import heat_overlay, resize_shorter
from report.tables import TableText, latex

IMAGE = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
LARGE = resize_shorter(IMAGE, TILE)
RAMP = torch.arange(24.0).view(4, 6)
SHOWN = ExplainedImage(IMAGE, "sparrow\nis robin", False, {"rollout": RAMP, "input_x_gradient": RAMP.flip(0)})
TRUTH = np.zeros((32, 48), bool)
RECORDS = [
    {"row": "rollout", "abpc": 0.125, "abpc/low": 0.1, "localization/mask/iou": 0.5, "count/abpc/nan_maps": 0.0},
    {"row": "input_x_gradient", "abpc": math.nan, "localization/mask/iou": 0.25, "count/abpc/nan_maps": 3.0},
    {"row": "(true mask)", "as_mask/accuracy": 1.0},
]


def sheet_of(tmp_path: Path, *images: ExplainedImage) -> np.ndarray:
    return np.asarray(Image.open(method_sheet(images, tmp_path / "sheet.png")))


def holds(sheet: np.ndarray, tile: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(sheet, tile.shape).squeeze(2)
    corner = (windows[:, :, 0, 0] == tile[0, 0]).all(-1).nonzero()
    return any(np.array_equal(windows[y, x], tile) for y, x in zip(*corner, strict=True))


def test_the_sheet_shows_image_maps_and_object(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path, replace(SHOWN, truth=~TRUTH))
    for tile in (LARGE, heat_overlay(LARGE, RAMP), heat_overlay(LARGE, RAMP.flip(0))):
        assert holds(sheet, tile)
    assert not holds(sheet, heat_overlay(LARGE, RAMP.flip(1)))
    assert sheet.shape[0] > sheet_of(tmp_path, SHOWN).shape[0]  # without the row of the true object


def test_nan_and_constant_maps_are_shown_too(tmp_path: Path) -> None:
    odd = {"rollout": torch.full((4, 6), torch.nan), "input_x_gradient": torch.full((32, 48), 0.5)}
    assert holds(sheet_of(tmp_path, replace(SHOWN, maps=odd), SHOWN), heat_overlay(LARGE, RAMP))


def test_no_images_no_sheet(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        sheet_of(tmp_path)
    assert list(tmp_path.iterdir()) == []


def report(tmp_path: Path, records: Sequence[dict[str, Any]] = RECORDS) -> Path:
    sheet = method_sheet([SHOWN], tmp_path / "out" / "sheet.png")
    details = {"protocol": {"abpc": {"fill": "grey <b>"}}}
    return write_explanation_report(sheet.parent, "Explanations of x", records, sheet, details, "a: 1\n")


def test_one_table_in_four_formats(tmp_path: Path) -> None:
    out = report(tmp_path).parent
    assert {path.name for path in out.iterdir()} == {
        "methods.json", "methods.csv", "methods.md", "methods.tex", "report.html", "sheet.png"
    }  # fmt: skip
    content = json.loads((out / "methods.json").read_text(), parse_constant=pytest.fail)
    assert content["runs"][0] == RECORDS[0] and content["runs"][1]["abpc"] is None
    lines = list(csv.DictReader((out / "methods.csv").open()))
    assert [line["row"] for line in lines] == ["rollout", "input_x_gradient", "(true mask)"]
    assert (lines[0]["abpc/low"], lines[1]["abpc"], lines[2]["abpc"]) == ("0.1", "", "")
    markdown = (out / "methods.md").read_text().splitlines()
    assert [cell.strip() for cell in markdown[0].split("|")[2:-1]] == [
        "localization: mask: IoU (%)", "ABPC", "as mask: accuracy (%)", "number of abpc: nan maps"
    ]  # fmt: skip
    assert markdown[2] == "| rollout | 50.0 | 0.125 | – | 0 |"
    assert markdown[3] == "| input_x_gradient | 25.0 | – | – | 3 |"
    tex = (out / "methods.tex").read_text()
    assert r"input\_x\_gradient & 25.0 & – & – & 3 \\" in tex and r"\begin{tabular}{lrrrr}" in tex


def test_nan_maps_have_a_column_only_where_there_are_some(tmp_path: Path) -> None:
    assert "nan" not in (report(tmp_path, RECORDS[:1]).parent / "methods.md").read_text()
    assert "nan maps" in report(tmp_path, RECORDS).read_text()


def test_the_report_says_how_it_was_measured(tmp_path: Path) -> None:
    page = report(tmp_path).read_text()
    assert "&#34;fill&#34;: &#34;grey &lt;b&gt;&#34;" in page and "a: 1" in page


def test_latex_escapes_what_latex_would_read() -> None:
    text = latex(TableText(("", "ratio (%)", "a_b & c"), (("50 % #1 $x$ {y} ~ ^ \\z", "1.5 ± 0.5", "–"),)))
    assert text.splitlines()[0] == r"\begin{tabular}{lrr}"
    assert r" & ratio (\%) & a\_b \& c \\" in text
    assert (
        r"50 \% \#1 \$x\$ \{y\} \textasciitilde \space \textasciicircum \space \textbackslash z & 1.5 ± 0.5 & – \\"
        in text
    )
    assert text.rstrip().endswith(r"\end{tabular}")
