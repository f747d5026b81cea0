"""Sheets of answered images: a selection of them, the worst failures, what was taken away from them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from report.overlays import Array, heat_overlay, mask_view, part_overlay, removal_view, resize, truth_view
from report.sheets import Column, LegendEntry, contact_sheet, draw_mark, part_legend
from report.style import BAD, PAPER

TILE = 168
"""Pixels of a tile's shorter side; a multiple of the usual patch grids 12, 14 and 28."""


@dataclass(frozen=True)
class Example:
    """One image with its answer; views that nobody has are None."""

    image: np.ndarray
    """[H, W, 3] uint8, see `overlays.denormalise`."""
    label: str
    """Name of the true class."""
    predicted: str
    """Name of the predicted class."""
    confidence: float | None = None
    """Probability of the predicted class."""
    group: str | None = None
    maps: Array | None = None
    """[K+1, h, w], last = background."""
    mask: Array | None = None
    """[h, w] bool: what stage 2 saw."""
    truth: Array | None = None
    """[H, W] bool: the object."""
    heat: Array | None = None
    """[h, w], an explanation's map."""

    @property
    def correct(self) -> bool:
        """Whether the predicted class is the true one."""
        return self.label == self.predicted


def worst_failures(examples: Iterable[Example], limit: int = 12) -> list[Example]:
    """The wrongly answered, most confident first. Works on parts of a data set too: feed the kept and the new ones.

    An example without a confidence counts as least confident.
    """
    wrong = [example for example in examples if not example.correct]
    return sorted(wrong, key=lambda e: -1.0 if e.confidence is None else e.confidence, reverse=True)[:limit]


def example_sheet(examples: Sequence[Example], path: Path, title: str = "", per_band: int = 12) -> Path:
    """Image, parts, what stage 2 sees and true object (those that any example has), grouped by `Example.group`.

    The examples keep their order within a group. Raises ValueError without examples.
    """
    order = {group: place for place, group in enumerate(dict.fromkeys(example.group for example in examples))}
    by_group = sorted(examples, key=lambda example: order[example.group])
    return _sheet(by_group, path, title, [example.group or "" for example in by_group], per_band)


def failure_sheet(
    examples: Iterable[Example], path: Path, title: str = "Worst failures", limit: int = 12, per_band: int = 12
) -> Path | None:
    """The `worst_failures` of the examples as a sheet, or None where nothing is wrong."""
    worst = worst_failures(examples, limit)
    return _sheet(worst, path, title, [""] * len(worst), per_band) if worst else None


def removal_sheet(answers: Mapping[str, Sequence[Example]], path: Path, title: str = "") -> Path:
    """Image, parts and mask of the first setting, then a row for every other: what stage 2 sees, and what went.

    `answers`: setting to its examples, all with maps and masks, the same images for each. A patch that only the first
    setting shows is in the colour of its part; a cross marks a wrong answer. Raises ValueError without examples.
    """
    first, *others = answers
    columns = []
    for i, before in enumerate(answers[first]):
        image = _at_tile_size(before.image)
        assert before.maps is not None and before.mask is not None
        tiles = [image, part_overlay(image, before.maps, before.mask), _seen(image, before, before)]
        tiles += [_seen(image, before, answers[row][i]) for row in others]
        heading = before.group or ""
        columns.append(Column(tiles, heading, _caption(before, heading), before.correct))
    titles = ["image", "parts", *(row.replace("thresholds, ", "thresholds,\n") for row in answers)]
    return contact_sheet(columns, titles, path, title, [*_legend(answers[first]), LegendEntry(BAD, "× wrong answer")])


def _seen(image: np.ndarray, before: Example, after: Example) -> np.ndarray:
    """`removal_view`, with a cross where the answer is wrong."""
    assert before.maps is not None and before.mask is not None and after.mask is not None
    view = Image.fromarray(removal_view(image, before.maps, before.mask, after.mask))
    if not after.correct:
        draw, x, y = ImageDraw.Draw(view), view.width - 14, 14
        draw.ellipse((x - 11, y - 11, x + 11, y + 11), fill=PAPER)
        draw_mark(draw, False, x, y)
    return np.asarray(view)


def _sheet(
    examples: Sequence[Example],
    path: Path,
    title: str,
    headings: Sequence[str],
    per_band: int,
) -> Path:
    if not examples:
        raise ValueError("a sheet needs at least one example")
    images = [_at_tile_size(example.image) for example in examples]
    rows: list[tuple[str, list[np.ndarray | None]]] = [("image", list(images))]
    pairs = list(zip(examples, images, strict=True))
    for name, row in (
        ("parts", [None if e.maps is None else part_overlay(p, e.maps, e.mask) for e, p in pairs]),
        ("what stage 2\nsees", [None if e.mask is None else mask_view(p, e.mask) for e, p in pairs]),
        ("explanation", [None if e.heat is None else heat_overlay(p, e.heat) for e, p in pairs]),
        ("true object", [None if e.truth is None else truth_view(p, e.truth) for e, p in pairs]),
    ):
        if any(tile is not None for tile in row):
            rows.append((name, row))
    columns = [
        Column([row[i] for _, row in rows], headings[i], _caption(example, headings[i]), example.correct)
        for i, example in enumerate(examples)
    ]
    return contact_sheet(columns, [name for name, _ in rows], path, title, _legend(examples), per_band)


def _caption(example: Example, heading: str) -> str:
    """What was said and, where that is wrong, what is true; with the group where no heading tells it."""
    share = "" if example.confidence is None else f" {example.confidence:.0%}"
    truth = example.label
    if example.group and not heading:  # many a group's name tells the class too
        truth = example.group if example.label in example.group else f"{example.label} ({example.group})"
    return f"{example.predicted}{share}" + ("" if example.correct else f"\nis {truth}")


def _legend(examples: Sequence[Example]) -> list[LegendEntry]:
    parts = max((len(example.maps) - 1 for example in examples if example.maps is not None), default=0)
    return part_legend(parts)


def _at_tile_size(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    scale = TILE / min(height, width)
    return resize(image, (round(height * scale), round(width * scale)))
