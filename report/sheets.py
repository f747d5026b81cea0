"""Contact sheets: one column per image, one row per view, as one PNG."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from common.errors import printable
from report.files import LAYOUT, png_bytes, write_atomic
from report.legend import CORRECT, LABEL, LINE, WRONG, LegendEntry, draw_legend, draw_mark, wrap
from report.style import HIDDEN, INK, MUTED, PAPER, font

PAD, GAP, GROUP_GAP = 28, 6, 22
HEADING_LINES, CAPTION_LINES = 4, 12
"""At most; longer text is cut off."""
SOFTWARE = "Faithful ViT contact sheet"
"""Text chunk "Software" of the PNG files written here."""
TITLE, HEADING = font(28, "bold"), font(21, "bold")


@dataclass(frozen=True)
class Column:
    """One image of a sheet."""

    tiles: Sequence[np.ndarray | None]
    """One image [H, W, 3] uint8 per row of the sheet, all of one size; None leaves the tile grey."""
    heading: str = ""
    """Neighbouring columns with the same heading share it; wrapped."""
    caption: str = ""
    """Text below the column; wrapped."""
    correct: bool | None = None
    """Whether the prediction is correct: a dot (True) or a cross (False) before the caption."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """By what report.html can filter the images: "class" to the name of its class, for example."""


def contact_sheet(
    columns: Sequence[Column],
    row_titles: Sequence[str],
    path: Path,
    title: str = "",
    legend: Sequence[LegendEntry] = (),
    per_band: int = 12,
    notes: Sequence[str] = (),
    heat: bool = False,
) -> Path:
    """Write the sheet, with at most `per_band` columns side by side; further columns go into bands below.

    Below stand the colours of heat maps if `heat`, the legend, the meaning of the marks that appear, and the notes.
    The PNG's text chunk "Software" is `SOFTWARE`; "Layout" says where the tiles are (see `_layout`). Raises ValueError
    without columns, or if their tiles do not match the row titles or differ in size.
    """
    height, width = _tile_size(columns, len(row_titles))
    bands = [columns[start : start + per_band] for start in range(0, len(columns), per_band)]
    captions = max(len(_caption_lines(column, width)) for column in columns)
    headings = max((len(lines) for band in bands for *_, lines in _headings(band, width)), default=0)
    plan = _Plan(height, width, tuple(row_titles), captions, headings)
    top, total = PAD + (48 if title else 0), max(map(plan.band_width, bands))
    marks = [
        entry for entry, correct in ((CORRECT, True), (WRONG, False)) if any(c.correct is correct for c in columns)
    ]
    entries = dict.fromkeys([*legend, *marks])
    below = draw_legend(total - 2 * PAD - plan.gutter, list(entries), notes, heat)
    bottom = top + len(bands) * plan.band_height - GROUP_GAP
    sheet = Image.new("RGB", (total, bottom + (GROUP_GAP + below.height if below else 0) + PAD), PAPER)
    ImageDraw.Draw(sheet).text((PAD, PAD - 6), title, fill=INK, font=TITLE)
    for number, band in enumerate(bands):
        _draw_band(sheet, plan, band, top + number * plan.band_height)
    layout = _layout(plan, bands, top)
    if below:
        corner = (PAD + plan.gutter, bottom + GROUP_GAP)
        sheet.paste(below, corner)
        layout["legend"] = [*corner, *below.size]
    return write_atomic(path, png_bytes(sheet, {"Software": SOFTWARE, LAYOUT: json.dumps(layout)}))


@dataclass(frozen=True)
class _Plan:
    """The layout, in pixels."""

    height: int
    width: int
    row_titles: tuple[str, ...]
    caption_lines: int
    heading_lines: int

    @property
    def gutter(self) -> int:
        lines = [line for title in self.row_titles for line in title.split("\n")]
        return int(max((LABEL.getlength(line) for line in lines), default=0)) + (20 if any(lines) else 0)

    @property
    def heading_height(self) -> int:
        return 13 + LINE * self.heading_lines if self.heading_lines else 0

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


def _headings(band: Sequence[Column], width: int) -> Iterator[tuple[int, int, list[str]]]:
    """Each heading's first column, number of columns and lines."""
    first = 0
    for heading, run in groupby(column.heading for column in band):
        count = len(list(run))
        if heading:
            yield first, count, wrap(heading, count * (width + GAP) - GAP, HEADING, HEADING_LINES)
        first += count


def _layout(plan: _Plan, bands: Sequence[Sequence[Column]], top: int) -> dict[str, Any]:
    """Where the tiles are, in pixels: of column c and view v the one at x, y + v * step, of `size` (width, height)."""
    columns = []
    for number, band in enumerate(bands):
        y = top + number * plan.band_height + plan.heading_height
        for column, x in zip(band, plan.lefts(band), strict=True):
            tags = {name: printable(value) for name, value in column.tags.items()}
            if column.correct is not None:
                tags["prediction"] = "correct" if column.correct else "wrong"
            caption = ", ".join(printable(line) for line in column.caption.split("\n") if line)
            if column.heading:
                caption = f"{printable(column.heading)}: {caption}"
            columns.append({"x": x, "y": y, "caption": caption, "tags": tags})
    views = [printable(title.replace("\n", " ")) for title in plan.row_titles]
    return {"views": views, "size": [plan.width, plan.height], "step": plan.height + GAP, "columns": columns}


def _draw_headings(draw: ImageDraw.ImageDraw, plan: _Plan, band: Sequence[Column], lefts: list[int], top: int) -> None:
    for first, count, lines in _headings(band, plan.width):
        left, right, base = lefts[first], lefts[first + count - 1] + plan.width - 1, top + plan.heading_height - 10
        for number, line in enumerate(reversed(lines)):
            draw.text((left, base - 30 - number * LINE), line, fill=INK, font=HEADING)
        draw.line((left, base, right, base), fill=INK, width=2)


def _draw_caption(draw: ImageDraw.ImageDraw, column: Column, x: int, y: int, width: int) -> None:
    if column.correct is not None:
        draw_mark(draw, column.correct, x + 7, y + 12)
    for number, line in enumerate(_caption_lines(column, width)):
        draw.text((x + _indent(column), y + number * LINE), line, fill=INK if number == 0 else MUTED, font=LABEL)


def _indent(column: Column) -> int:
    return 0 if column.correct is None else 20


def _caption_lines(column: Column, width: int) -> list[str]:
    return wrap(column.caption, width - _indent(column), LABEL, CAPTION_LINES) if column.caption else []
