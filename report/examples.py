"""Contact sheets of predictions: example images, failures, and the effect of removed parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from report.legend import WRONG, LegendEntry, draw_mark, part_legend
from report.overlays import Array, mask_view, part_overlay, removal_view, resize_shorter
from report.sheets import Column, contact_sheet
from report.style import HIDDEN, PAPER

TILE = 168
"""Pixels of a tile's shorter side; a multiple of the usual patch grids 12, 14 and 28."""


@dataclass(frozen=True)
class Example:
    """One image with its prediction; views that do not exist are None."""

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
    """[K+1, h, w], last = background: the strength of each part."""
    mask: Array | None = None
    """[h, w] bool: the patches that stage 2 sees; or its pixels, [H, W] bool."""
    truth: Array | None = None
    """[H, W] bool: the object."""

    @property
    def correct(self) -> bool:
        """Whether the predicted class is the true one."""
        return self.label == self.predicted


def example_sheet(examples: Sequence[Example], path: Path) -> Path:
    """Image, parts, patches that stage 2 sees and true object (those that any example has), by group.

    The examples keep their order within a group. Raises ValueError without examples.
    """
    order = {group: place for place, group in enumerate(dict.fromkeys(example.group for example in examples))}
    by_group = sorted(examples, key=lambda example: order[example.group])
    return _sheet(by_group, path, "", [example.group or "" for example in by_group])


def failure_sheet(examples: Sequence[Example], path: Path) -> Path:
    """The same views in the given order, without groups. Raises ValueError without examples."""
    return _sheet(examples, path, "Worst failures", [""] * len(examples))


def removal_sheet(examples: Mapping[str, Sequence[Example]], path: Path) -> Path:
    """Image, parts and mask of the first setting, then one row per other setting: its mask and the removed patches.

    `examples`: setting to its examples, all with maps and masks, the same images for each. A patch that only the first
    setting shows is in the colour of its part; a cross marks a wrong prediction. Raises ValueError without examples.
    """
    first, *others = examples
    columns = []
    for i, before in enumerate(examples[first]):
        image = resize_shorter(before.image, TILE)
        assert before.maps is not None and before.mask is not None
        tiles = [image, part_overlay(image, before.maps, before.mask), _removed(image, before, before)]
        tiles += [_removed(image, before, examples[row][i]) for row in others]
        heading = before.group or ""
        columns.append(Column(tiles, heading, _caption(before, heading), before.correct, _tags(before)))
    titles = ["image", "parts", *(row.replace("thresholds, ", "thresholds,\n") for row in examples)]
    legend = [*_legend(examples[first]), WRONG]
    return contact_sheet(columns, titles, path, legend=legend)


def _removed(image: np.ndarray, before: Example, after: Example) -> np.ndarray:
    """`removal_view`, with a cross if the prediction is wrong."""
    assert before.maps is not None and before.mask is not None and after.mask is not None
    view = Image.fromarray(removal_view(image, before.maps, before.mask, after.mask))
    if not after.correct:
        draw, x, y = ImageDraw.Draw(view), view.width - 14, 14
        draw.ellipse((x - 11, y - 11, x + 11, y + 11), fill=PAPER)
        draw_mark(draw, False, x, y)
    return np.asarray(view)


def _sheet(examples: Sequence[Example], path: Path, title: str, headings: Sequence[str]) -> Path:
    if not examples:
        raise ValueError("a sheet needs at least one example")
    images = [resize_shorter(example.image, TILE) for example in examples]
    rows: list[tuple[str, list[np.ndarray | None]]] = [("image", list(images))]
    pairs = list(zip(examples, images, strict=True))
    for name, row in (
        ("parts", [None if e.maps is None else part_overlay(p, e.maps, e.mask) for e, p in pairs]),
        ("what stage 2\nsees", [None if e.mask is None else mask_view(p, e.mask) for e, p in pairs]),
        ("true object", [None if e.truth is None else mask_view(p, e.truth) for e, p in pairs]),
    ):
        if any(tile is not None for tile in row):
            rows.append((name, row))
    columns = [
        Column(
            [row[i] for _, row in rows], headings[i], _caption(example, headings[i]), example.correct, _tags(example)
        )
        for i, example in enumerate(examples)
    ]
    return contact_sheet(columns, [name for name, _ in rows], path, title, _legend(examples))


def _tags(example: Example) -> dict[str, str]:
    """Class and group; without groups, `group` repeats the class."""
    group = {} if example.group in (None, example.label) else {"group": str(example.group)}
    return {**group, "class": example.label}


def _caption(example: Example, heading: str) -> str:
    """The prediction and, if it is wrong, the true class; with the group if it is not in the heading."""
    confidence = "" if example.confidence is None else f" {example.confidence:.0%}"
    truth = example.label
    if example.group and not heading:  # the name of a group often includes the class
        truth = example.group if example.label in example.group else f"{example.label} ({example.group})"
    return f"{example.predicted}{confidence}" + ("" if example.correct else f"\nis {truth}")


def _legend(examples: Sequence[Example]) -> list[LegendEntry]:
    parts = max((len(example.maps) - 1 for example in examples if example.maps is not None), default=0)
    hidden = [LegendEntry(HIDDEN, "hidden from stage 2")] if any(e.mask is not None for e in examples) else []
    return [*part_legend(parts), *hidden]
