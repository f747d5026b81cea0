"""The style of all images: a font, and colours that colour-blind readers can distinguish."""

from functools import cache
from pathlib import Path
from typing import Literal

import matplotlib
from PIL import ImageFont

INK = "#1d2433"
MUTED = "#667085"
RULE = "#d5dae1"
PAPER = "#ffffff"
HIDDEN = "#e6e9ee"
"""What covers a patch that stage 2 does not see."""
GOOD = "#0072b2"
BAD = "#d55e00"

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#882255")
"""Line colours, after Okabe & Ito (2008); they repeat from the ninth line on."""

PARTS = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#882255",
    "#44aa99", "#332288", "#ddcc77", "#117733", "#aa4499", "#88ccee", "#999933", "#cc6677",
)  # fmt: skip
"""Colour of part 0, 1, ...: Okabe & Ito, then Tol's muted scheme; they repeat from part 16 on."""


def part_colour(part: int) -> str:
    """Colour of the part with index `part` (from 0)."""
    return PARTS[part % len(PARTS)]


@cache
def font(size: int, weight: Literal["regular", "bold"] = "regular") -> ImageFont.FreeTypeFont:
    """DejaVu Sans at `size` pixels, from the file in matplotlib, so that sheets look the same on every machine."""
    name = {"regular": "DejaVuSans.ttf", "bold": "DejaVuSans-Bold.ttf"}[weight]
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
