"""The contact sheet and the report of removed parts."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ImageColor import getrgb

from report.evaluation import write_removal_report
from report.examples import TILE, Example, removal_sheet
from report.files import png_bytes
from report.overlays import mask_view, part_overlay, removal_view
from report.sheets import GAP, PAD
from report.style import BAD, HIDDEN, part_colour

IMAGE = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
MAPS = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2], [1, 1, 2], [0, 0, 2]]), 3).permute(2, 0, 1).float()
"""Parts 0 and 1, and background (2), on 3 x 3 patches of 8 pixels."""
BEFORE = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 0]]).bool()
WITHOUT_1 = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 1, 0]]).bool()
"""One more patch than before is visible: for example the fallback for an empty mask."""


def patch(image: np.ndarray, row: int, column: int) -> np.ndarray:
    return image[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]


def test_the_view_shows_kept_removed_and_always_hidden_patches() -> None:
    view = removal_view(IMAGE, MAPS, BEFORE, WITHOUT_1)
    coloured = part_overlay(IMAGE, MAPS, BEFORE & ~WITHOUT_1)
    for row in range(3):
        for column in range(3):
            if WITHOUT_1[row, column]:
                wanted = patch(IMAGE, row, column)
            elif BEFORE[row, column]:
                wanted = patch(coloured, row, column)
                inside = patch(view, row, column)[1:-1, 1:-1].astype(float).mean((0, 1))
                assert np.abs(inside - getrgb(part_colour(1))).max() < 60
            else:
                wanted = np.broadcast_to(np.array(getrgb(HIDDEN), np.uint8), (8, 8, 3))
            assert np.array_equal(patch(view, row, column), wanted), (row, column)
    assert np.array_equal(removal_view(IMAGE, MAPS, BEFORE, BEFORE), mask_view(IMAGE, BEFORE))


def examples(mask: torch.Tensor, predictions: Sequence[str]) -> list[Example]:
    return [Example(IMAGE, "robin", name, 0.75, "garden", MAPS, mask) for name in predictions]


def crosses(tile: np.ndarray) -> bool:
    return bool((tile[:30, -30:] == getrgb(BAD)).all(axis=2).any())


def test_the_sheet_has_a_row_for_each_setting_and_a_cross_for_each_wrong_prediction(tmp_path: Path) -> None:
    settings = {
        "unmodified": examples(BEFORE, ["robin", "robin"]),
        "thresholds, without part 1": examples(WITHOUT_1, ["crow", "robin"]),
    }
    sheet = np.asarray(Image.open(removal_sheet(settings, tmp_path / "sheet.png")).convert("RGB"))
    left, top = sheet.shape[1] - PAD - 2 * TILE - GAP, PAD + 40
    tiles = [
        [sheet[y : y + TILE, x : x + TILE] for x in (left, left + TILE + GAP)]
        for y in (top + row * (TILE + GAP) for row in range(4))
    ]
    big = np.asarray(Image.fromarray(IMAGE).resize((TILE, TILE), Image.Resampling.LANCZOS))
    expected = [
        big,
        part_overlay(big, MAPS, BEFORE),
        mask_view(big, BEFORE),
        removal_view(big, MAPS, BEFORE, WITHOUT_1),
    ]
    for row, wanted in zip(tiles, expected, strict=True):
        assert np.array_equal(row[1], wanted)
    assert [[crosses(tile) for tile in row] for row in tiles] == [[False, False]] * 3 + [[True, False]]


def test_no_examples_no_sheet(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        removal_sheet({"unmodified": []}, tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []


def test_the_report_holds_the_table_and_the_image(tmp_path: Path) -> None:
    records = [
        {"row": "unmodified", "removed_parts": "", "accuracy": 0.9, "accuracy/class/robin": 0.8, "empty_ratio": 0.0},
        {
            "row": "without part 1",
            "removed_parts": "1",
            "accuracy": 0.5,
            "accuracy/class/robin": 0.25,
            "empty_ratio": 1,
        },
    ]
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(png_bytes(Image.fromarray(IMAGE)))
    page = write_removal_report(tmp_path, "mine", records, sheet, {"thresholds": "t.json"}, "data: {}").read_text()
    for text in ("without part 1", "90.0", "50.0", "data:image/png;base64", "t.json"):
        assert text in page
    assert "robin" not in page and "robin" not in (tmp_path / "table.md").read_text()
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["row"], row["removed_parts"], row["accuracy/class/robin"]) for row in rows] == [
        ("unmodified", "", "0.8"), ("without part 1", "1", "0.25"),
    ]  # fmt: skip
    assert json.loads((tmp_path / "table.json").read_text())["runs"] == records
