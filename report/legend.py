"""What stands below a contact sheet: the colours of heat maps, parts and marks, and notes; text fitted to a width."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from report.overlays import heat_colours
from report.style import BAD, GOOD, INK, PAPER, RULE, font, part_colour

LINE, BAR = 27, (140, 16)
LABEL, NOTE = font(20), font(16)
SCALED_ALONE = "Each map has its own scale, from its minimum to its maximum: colours of two maps are not comparable."


@dataclass(frozen=True)
class LegendEntry:
    """A colour or a mark and its meaning."""

    colour: str
    label: str
    mark: Literal["square", "dot", "cross"] = "square"


CORRECT, WRONG = LegendEntry(GOOD, "correct prediction", "dot"), LegendEntry(BAD, "wrong prediction", "cross")


def part_legend(parts: int) -> list[LegendEntry]:
    """The colours of the first `parts` parts, numbered from 0 as in flags and files."""
    return [LegendEntry(part_colour(part), f"part {part}") for part in range(parts)]


def draw_legend(width: int, entries: Sequence[LegendEntry], notes: Sequence[str], heat: bool) -> Image.Image | None:
    """An image of `width` pixels: the colours of heat maps if `heat`, the entries, and below them the notes, wrapped.

    None if there is nothing to draw.
    """
    lines = [line for note in notes for line in wrap(note, width, NOTE, 99)]
    image = Image.new("RGB", (width, LINE * (len(lines) + len(entries) + 1)), PAPER)
    draw, x, y = ImageDraw.Draw(image), 0, 0
    if heat:
        x = _write(draw, 0, 0, "lowest ") + BAR[0]
        bar = heat_colours(np.tile(np.linspace(0, 1, BAR[0], dtype=np.float32), (BAR[1], 1)))
        image.paste(Image.fromarray(bar.round().astype(np.uint8)), (x - BAR[0], 4))
        x = _write(draw, x, 0, " highest") + 26
    for entry in entries:
        length = 27 + int(LABEL.getlength(entry.label))
        if x and x + length > width:
            x, y = 0, y + LINE
        if entry.mark == "square":
            draw.rounded_rectangle((x, y + 3, x + 18, y + 21), radius=4, fill=entry.colour, outline=RULE)
        else:
            draw_mark(draw, entry.mark == "dot", x + 9, y + 12)
        x = _write(draw, x + 27, y, entry.label) + 26
    y += LINE + 4 if x else 0
    for line in lines:
        draw.text((0, y), line, fill=INK, font=NOTE)
        y += LINE - 4
    return image.crop((0, 0, width, y)) if y else None


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, text: str) -> int:
    """Write the text and return where it ends."""
    draw.text((x, y), text, fill=INK, font=LABEL)
    return x + int(LABEL.getlength(text))


def draw_mark(draw: ImageDraw.ImageDraw, correct: bool, x: int, y: int) -> None:
    """A dot if correct, else a cross: distinguishable by shape and by colour."""
    if correct:
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=GOOD)
    else:
        draw.line((x - 6, y - 6, x + 6, y + 6), fill=BAD, width=4)
        draw.line((x - 6, y + 6, x + 6, y - 6), fill=BAD, width=4)


def fit(text: str, width: float, face: ImageFont.FreeTypeFont) -> str:
    """The text, cut off with an ellipsis if it is wider than `width` pixels."""
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, width: float, face: ImageFont.FreeTypeFont, lines: int) -> list[str]:
    """The text on at most `lines` lines of `width` pixels, broken at spaces and newlines, or within words that are too
    wide; what is left over is cut off.
    """
    broken: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in (piece for whole in paragraph.split() for piece in _pieces(whole, width, face)):
            if line and face.getlength(f"{line} {word}") > width:
                broken.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        broken.append(line)
    if len(broken) > lines:
        broken = [*broken[: lines - 1], " ".join(broken[lines - 1 :])]
    return [fit(line, width, face) for line in broken]


def _pieces(word: str, width: float, face: ImageFont.FreeTypeFont) -> Iterator[str]:
    """The word in pieces of at most `width` pixels."""
    while word:
        end = len(word)
        while end > 1 and face.getlength(word[:end]) > width:
            end -= 1
        yield word[:end]
        word = word[end:]
