"""Contact sheets: one column per image, one row per view, as one PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from report.files import png_bytes, write_atomic
from report.style import BAD, GOOD, HIDDEN, INK, MUTED, PAPER, RULE, font, part_colour

PAD, GAP, GROUP_GAP = 28, 6, 22
LINE = 27
TITLE, HEADING, LABEL = font(28, "bold"), font(21, "bold"), font(20)


@dataclass(frozen=True)
class Column:
    """One image of a sheet."""

    tiles: Sequence[np.ndarray | None]
    """One image [H, W, 3] uint8 per row of the sheet, all of one size; None leaves the tile grey."""
    heading: str = ""
    """Neighbouring columns with the same heading share it."""
    caption: str = ""
    """Text below the column; wrapped, at most three lines."""
    correct: bool | None = None
    """Whether the prediction is correct: a dot (True) or a cross (False) before the caption."""


@dataclass(frozen=True)
class LegendEntry:
    """A colour and its meaning."""

    colour: str
    label: str


def part_legend(parts: int) -> list[LegendEntry]:
    """The colours of the first `parts` parts, numbered from 0 as in flags and files."""
    return [LegendEntry(part_colour(part), f"part {part}") for part in range(parts)]


def contact_sheet(
    columns: Sequence[Column],
    row_titles: Sequence[str],
    path: Path,
    title: str = "",
    legend: Sequence[LegendEntry] = (),
    per_band: int = 12,
) -> Path:
    """Write the sheet, with at most `per_band` columns side by side; further columns go into bands below.

    Raises ValueError without columns, or if their tiles do not match the row titles or differ in size.
    """
    height, width = _tile_size(columns, len(row_titles))
    bands = [columns[start : start + per_band] for start in range(0, len(columns), per_band)]
    captions = max(len(_caption_lines(column, width)) for column in columns)
    plan = _Plan(height, width, tuple(row_titles), captions, any(c.heading for c in columns))
    top = PAD + (48 if title else 0)
    foot = 44 if legend else 0
    size = (max(map(plan.band_width, bands)), top + len(bands) * plan.band_height - GROUP_GAP + foot + PAD)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((PAD, PAD - 6), title, fill=INK, font=TITLE)
    for number, band in enumerate(bands):
        _draw_band(sheet, plan, band, top + number * plan.band_height)
    _draw_legend(draw, legend, PAD + plan.gutter, size[1] - PAD - 22)
    return write_atomic(path, png_bytes(sheet))


@dataclass(frozen=True)
class _Plan:
    """The layout, in pixels."""

    height: int
    width: int
    row_titles: tuple[str, ...]
    caption_lines: int
    has_headings: bool

    @property
    def gutter(self) -> int:
        lines = [line for title in self.row_titles for line in title.split("\n")]
        return int(max((LABEL.getlength(line) for line in lines), default=0)) + (20 if any(lines) else 0)

    @property
    def heading_height(self) -> int:
        return 40 if self.has_headings else 0

    @property
    def band_height(self) -> int:
        tiles = len(self.row_titles) * (self.height + GAP)
        return self.heading_height + tiles + (self.caption_lines * LINE + 10 if self.caption_lines else 0) + GROUP_GAP

    def lefts(self, band: Sequence[Column]) -> list[int]:
        """Left edge of each column; with a wider gap between headings."""
        x, lefts = PAD + self.gutter, []
        for before, column in zip([band[0], *band], band, strict=False):
            x += GROUP_GAP - GAP if column.heading != before.heading else 0
            lefts.append(x)
            x += self.width + GAP
        return lefts

    def band_width(self, band: Sequence[Column]) -> int:
        return self.lefts(band)[-1] + self.width + PAD


def _tile_size(columns: Sequence[Column], rows: int) -> tuple[int, int]:
    if not columns:
        raise ValueError("a contact sheet needs at least one column")
    if any(len(column.tiles) != rows for column in columns):
        raise ValueError(f"every column needs one tile (or None) for each of the {rows} rows")
    sizes = {tile.shape[:2] for column in columns for tile in column.tiles if tile is not None}
    if len(sizes) != 1:
        raise ValueError(f"the tiles of a sheet must have one size, not {sorted(sizes)}")
    return sizes.pop()


def _draw_band(sheet: Image.Image, plan: _Plan, band: Sequence[Column], top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    lefts = plan.lefts(band)
    _draw_headings(draw, plan, band, lefts, top)
    first = top + plan.heading_height
    for row, title in enumerate(plan.row_titles):
        y = first + row * (plan.height + GAP)
        text_top = y + (plan.height - LINE * (title.count("\n") + 1)) // 2
        for number, line in enumerate(title.split("\n")):
            draw.text((PAD, text_top + number * LINE), line, fill=INK, font=LABEL)
        for column, x in zip(band, lefts, strict=True):
            tile = column.tiles[row]
            if tile is None:
                draw.rectangle((x, y, x + plan.width - 1, y + plan.height - 1), fill=HIDDEN)
            else:
                sheet.paste(Image.fromarray(tile), (x, y))
    for column, x in zip(band, lefts, strict=True):
        _draw_caption(draw, column, x, first + len(plan.row_titles) * (plan.height + GAP) + 4, plan.width)


def _draw_headings(draw: ImageDraw.ImageDraw, plan: _Plan, band: Sequence[Column], lefts: list[int], top: int) -> None:
    for heading, run in groupby(zip(band, lefts, strict=True), key=lambda pair: pair[0].heading):
        xs = [x for _, x in run]
        right = xs[-1] + plan.width - 1
        if heading:
            draw.text((xs[0], top), fit(heading, right - xs[0], HEADING), fill=INK, font=HEADING)
            draw.line((xs[0], top + 30, right, top + 30), fill=INK, width=2)


def _draw_caption(draw: ImageDraw.ImageDraw, column: Column, x: int, y: int, width: int) -> None:
    if column.correct is not None:
        draw_mark(draw, column.correct, x + 7, y + 12)
    for number, line in enumerate(_caption_lines(column, width)):
        draw.text((x + _indent(column), y + number * LINE), line, fill=INK if number == 0 else MUTED, font=LABEL)


def _indent(column: Column) -> int:
    return 0 if column.correct is None else 20


def _caption_lines(column: Column, width: int) -> list[str]:
    return wrap(column.caption, width - _indent(column), LABEL, lines=3) if column.caption else []


def draw_mark(draw: ImageDraw.ImageDraw, correct: bool, x: int, y: int) -> None:
    """A dot if correct, else a cross: distinguishable by shape and by colour."""
    if correct:
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=GOOD)
    else:
        draw.line((x - 6, y - 6, x + 6, y + 6), fill=BAD, width=4)
        draw.line((x - 6, y + 6, x + 6, y - 6), fill=BAD, width=4)


def _draw_legend(draw: ImageDraw.ImageDraw, legend: Sequence[LegendEntry], x: int, y: int) -> None:
    for entry in legend:
        draw.rounded_rectangle((x, y + 2, x + 18, y + 20), radius=4, fill=entry.colour, outline=RULE)
        draw.text((x + 27, y), entry.label, fill=INK, font=LABEL)
        x += 27 + int(LABEL.getlength(entry.label)) + 26


def fit(text: str, width: float, face: ImageFont.FreeTypeFont) -> str:
    """The text, cut off with an ellipsis if it is wider than `width` pixels."""
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, width: float, face: ImageFont.FreeTypeFont, lines: int) -> list[str]:
    """The text on at most `lines` lines of `width` pixels, broken at spaces and newlines; long lines are cut off."""
    broken: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            if line and face.getlength(f"{line} {word}") > width:
                broken.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        broken.append(line)
    if len(broken) > lines:
        broken = [*broken[: lines - 1], " ".join(broken[lines - 1 :])]
    return [fit(line, width, face) for line in broken]
