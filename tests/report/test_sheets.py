"""Contact sheets: size, positions of the tiles, fitted text, order of the examples."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ImageColor import getrgb

from common.errors import UserError
from report.examples import TILE, Example, example_sheet, failure_sheet
from report.files import png_bytes, png_layout
from report.legend import LABEL, LegendEntry, fit, wrap
from report.overlays import mask_view, part_overlay, resize_shorter
from report.sheets import GAP, GROUP_GAP, PAD, Column, contact_sheet
from report.style import BAD, GOOD, HIDDEN, part_colour

RED = np.full((20, 30, 3), (200, 0, 0), dtype=np.uint8)
BLUE = np.full((20, 30, 3), (0, 0, 200), dtype=np.uint8)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def count(image: np.ndarray, colour: tuple[int, ...]) -> int:
    return int((image == colour).all(axis=2).sum())


def example(**more: object) -> Example:
    g = torch.Generator().manual_seed(0)
    base = Example(
        image=torch.randint(40, 200, (48, 48, 3), generator=g, dtype=torch.uint8).numpy(),
        label="land",
        predicted="land",
        confidence=0.9,
        group="land on water",
        maps=torch.rand(4, 6, 6, generator=g),
        mask=torch.rand(6, 6, generator=g) > 0.5,
        truth=torch.rand(48, 48, generator=g) > 0.5,
    )
    return replace(base, **more)


def test_every_tile_lies_where_it_should(tmp_path: Path) -> None:
    columns = [Column((RED, BLUE), "a"), Column((RED, None), "a"), Column((BLUE, BLUE), "b")]
    sheet = pixels(contact_sheet(columns, ("", ""), tmp_path / "sheet.png"))
    assert sheet.shape == (PAD + 40 + 2 * (20 + GAP) + PAD, 2 * PAD + 3 * 30 + GAP + GROUP_GAP, 3)
    top, second, third = PAD + 40, PAD + 30 + GAP, PAD + 60 + GAP + GROUP_GAP
    assert np.array_equal(sheet[top : top + 20, PAD : PAD + 30], RED)
    assert np.array_equal(sheet[top + 20 + GAP : top + 40 + GAP, PAD : PAD + 30], BLUE)
    assert (sheet[top + 20 + GAP : top + 40 + GAP, second : second + 30] == getrgb(HIDDEN)).all()
    assert np.array_equal(sheet[top : top + 20, third : third + 30], BLUE)


def test_bands_captions_marks_and_legend(tmp_path: Path) -> None:
    columns = [Column((RED,), caption="a b", correct=i % 2 == 0) for i in range(5)]
    one = pixels(contact_sheet(columns, ("image",), tmp_path / "one.png"))
    two = pixels(contact_sheet(columns, ("image",), tmp_path / "two.png", per_band=3))
    assert two.shape[0] > 1.5 * one.shape[0] - 2 * PAD and two.shape[1] < one.shape[1]
    assert count(one, (200, 0, 0)) == count(two, (200, 0, 0)) == 5 * 20 * 30
    assert count(one, getrgb(GOOD)) > 100 and count(one, getrgb(BAD)) > 50
    legend = pixels(contact_sheet(columns, ("image",), tmp_path / "l.png", "T", [LegendEntry("#123456", "part")]))
    assert count(legend, getrgb("#123456")) > 200
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ([], "at least one column"),
        ([Column((RED,))], "one tile"),
        ([Column((RED, BLUE[:5]))], "must have one size"),
        ([Column((None, None))], "must have one size"),
    ],
)
def test_sheets_that_cannot_be_drawn(columns: list[Column], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        contact_sheet(columns, ("image", "parts"), tmp_path / "x.png")


def test_text_is_wrapped_and_cut() -> None:
    assert wrap("one two", 1000, LABEL, 2) == ["one two"]
    assert wrap("one two\nthree", 55, LABEL, 3) == ["one", "two", "three"]
    cut = wrap("Black_footed_Albatross of the northern seas", 120, LABEL, 2)
    assert len(cut) == 2 and all(LABEL.getlength(line) <= 120 for line in cut)
    assert cut[1].endswith("…") and "".join(cut)[:-1] in "Black_footed_Albatross"
    assert fit("abc", 1, LABEL) == "…"


def test_example_sheet_shows_hidden_patches_and_parts(tmp_path: Path) -> None:
    shown = example(mask=torch.zeros(6, 6, dtype=torch.bool).index_fill(0, torch.tensor([0]), True))
    sheet = pixels(example_sheet([shown, example()], tmp_path / "sheet.png"))
    assert sheet.shape[1] > 2 * TILE + GAP and sheet.shape[0] > 4 * (TILE + GAP)
    # 5 of 6 rows of patches of the first image are hidden, about half of the second's and of both true objects.
    assert count(sheet, getrgb(HIDDEN)) > 0.8 * TILE * TILE + 1.3 * TILE * TILE
    assert count(sheet, getrgb(part_colour(2))) > 200  # the legend
    assert count(sheet, getrgb(part_colour(3))) < 200
    plain = example(maps=None, mask=None, truth=None)
    without = pixels(example_sheet([plain], tmp_path / "plain.png"))
    assert without.shape[0] < 3 * TILE and count(without, getrgb(HIDDEN)) == 0


def test_groups_stand_together_in_order_of_appearance(tmp_path: Path) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    examples = [
        Example(np.full((8, 8, 3), colour, dtype=np.uint8), "land", "land", group=group)
        for colour, group in zip(colours, ("b", "a", "b"), strict=True)
    ]
    sheet = pixels(example_sheet(examples, tmp_path / "s.png"))
    lefts = [int(np.argwhere((sheet == colour).all(axis=2))[:, 1].min()) for colour in colours]
    assert lefts[0] < lefts[2] < lefts[1]


def test_failures_keep_their_order_and_show_their_group_in_the_caption(tmp_path: Path) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    failures = [
        Example(np.full((8, 8, 3), colour, dtype=np.uint8), "land", "water", group=group)
        for colour, group in zip(colours, ("b", "a", "b"), strict=True)
    ]
    sheet = pixels(failure_sheet(failures, tmp_path / "deep" / "f.png"))
    lefts = [int(np.argwhere((sheet == colour).all(axis=2))[:, 1].min()) for colour in colours]
    assert lefts == sorted(lefts) and count(sheet, getrgb(BAD)) > 10
    other = pixels(failure_sheet([replace(f, group="c") for f in failures], tmp_path / "g.png"))
    assert other.shape == sheet.shape and not np.array_equal(other, sheet)
    for draw in (example_sheet, failure_sheet):
        with pytest.raises(ValueError, match="at least one example"):
            draw([], tmp_path / "x.png")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*sheet.png"):
        example_sheet([example()], tmp_path / "file" / "sheet.png")


def test_the_sheet_says_where_its_tiles_are(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(1)
    examples = [example(), example(group=None, predicted="sea\u202e", maps=torch.rand(4, 6, 6, generator=g), mask=None)]
    content = example_sheet(examples, tmp_path / "sheet.png").read_bytes()
    layout, sheet = png_layout(content), pixels(tmp_path / "sheet.png")
    assert layout is not None and layout["views"] == ["image", "parts", "what stage 2 sees", "true object"]
    width, height = layout["size"]
    for shown, column in zip(examples, layout["columns"], strict=True):
        image = resize_shorter(shown.image, TILE)
        assert shown.maps is not None and shown.truth is not None
        stage_2 = np.full_like(image, getrgb(HIDDEN)) if shown.mask is None else mask_view(image, shown.mask)
        views = (image, part_overlay(image, shown.maps, shown.mask), stage_2, mask_view(image, shown.truth))
        for number, view in enumerate(views):
            top = column["y"] + number * layout["step"]
            assert np.array_equal(sheet[top : top + height, column["x"] : column["x"] + width], view)
    first, second = ((column["caption"], column["tags"]) for column in layout["columns"])
    assert first == ("land on water: land 90%", {"group": "land on water", "class": "land", "prediction": "correct"})
    assert second == ("sea\\u202e 90%, is land", {"class": "land", "prediction": "wrong"})
    x, y, legend_width, legend_height = layout["legend"]
    legend = sheet[y : y + legend_height, x : x + legend_width]
    assert count(legend, getrgb(part_colour(2))) > 200 and count(legend, getrgb(HIDDEN)) > 200
    assert png_layout(png_bytes(Image.new("RGB", (4, 4)))) is None and png_layout(content[:40]) is None
