"""Curves over training: one run in small panels, and several runs in one figure."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from common.errors import printable
from common.metric_info import metric_info, panels
from report.files import LAYOUT, png_bytes, write_atomic
from report.names import is_fraction, number, pretty
from report.style import INK, LINES, MUTED, RULE

Row: TypeAlias = Mapping[str, Any]
"""One epoch: "epoch", and any numbers by name ("train/loss", "val/accuracy", ...)."""

PANEL_ORDER = ("loss", "accuracy", "several classes", "agreement", "mask")
"""Order of the panels that metrics declare (`MetricInfo.panel`); others follow, then accuracy by group, then one panel
for each remaining "train/" and "lr" key."""
GROUPS = "val/accuracy/group/"
PANEL = (3.3, 2.45)
"""Width and height of a panel with its labels, inches."""
NOT_A_CURVE = ("/seconds", "/images_per_second", "/skipped")
X_LABELS = {"epoch": "epoch", "train_seconds": "training time in seconds", "wall_seconds": "wall time in seconds"}


plain_text = matplotlib.rc_context({"text.parse_math": False})
"""A class may be called cat($^$), which is no formula."""


@dataclass(frozen=True)
class Line:
    """One curve: its name and its points."""

    name: str
    x: list[float]
    y: list[float]


def has_curves(rows: Sequence[Row], x: str = "epoch") -> bool:
    """Whether `training_curves` has anything to draw: rows may be of a damaged file."""
    return bool(_panels(_last_of_each(rows, x), x))


@plain_text
def training_curves(rows: Sequence[Row], path: Path, x: str = "epoch") -> Path:
    """One run, one small panel per subject (losses, accuracies, mask, learning rate), as a PNG.

    `x` is the key of the horizontal axis: "epoch", "train_seconds", or any increasing number. Where an epoch appears
    twice (a resumed run), the last row counts. Raises ValueError where there is nothing to draw.
    """
    drawn = _panels(_last_of_each(rows, x), x)
    if not drawn:
        raise ValueError("no curves to draw: the rows have no numbers under known keys")
    across = min(len(drawn), 4)
    down = math.ceil(len(drawn) / across)
    width, height = PANEL[0] * across, PANEL[1] * down + 0.2
    figure = _figure(width, height)
    for place, (name, lines) in enumerate(drawn):
        # Not matplotlib's constrained layout: measuring every label takes longer than drawing.
        x0, top = PANEL[0] * (place % across) + 0.62, height - PANEL[1] * (place // across) - 0.32
        tall = PANEL[1] - 0.64
        axes = figure.add_axes((x0 / width, (top - tall) / height, (PANEL[0] - 0.76) / width, tall / height))
        _draw(axes, lines, percent=_is_percent(name))
        if len(lines) > 1:
            axes.legend(edgecolor="none", framealpha=0.8, fontsize=7.5, labelcolor=INK, handlelength=1.2)
        axes.set_title(name, loc="left", fontsize=10, color=INK, fontweight="bold")
        axes.set_xlabel(X_LABELS.get(x, x) if place >= len(drawn) - across else "", fontsize=8.5, color=MUTED)
    tables = [_values(name, lines, x, _is_percent(name)) for name, lines in drawn]
    return _save(figure, path, tables)


@plain_text
def compare_runs(runs: Mapping[str, Sequence[Row]], key: str, path: Path, x: str = "epoch") -> Path:
    """One line per run (by its name) of `key`, labelled with its last value, as a PNG.

    A run without the key is left out. Fractions (see `names.is_fraction`) are drawn in percent, 0 to 100. `x`: see
    `training_curves`. Raises ValueError where no run has the key.
    """
    lines = [_line(name, _last_of_each(rows, x), key, x) for name, rows in runs.items()]
    lines = [line for line in lines if line.y]
    if not lines:
        raise ValueError(f"no run has {key!r} over {x!r}")
    figure = _figure(7.2, 3.9)
    figure.set_layout_engine("constrained", w_pad=0.09, h_pad=0.09)
    axes = figure.add_subplot()
    _draw(axes, lines, percent=is_fraction(key), width=2.2)
    if is_fraction(key):
        axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(X_LABELS.get(x, x), fontsize=9.5, color=MUTED)
    axes.set_ylabel(pretty(key), fontsize=9.5, color=MUTED)
    _label_ends(axes, lines, is_fraction(key))
    return _save(figure, path, [_values(pretty(key), lines, x, is_fraction(key))])


def _last_of_each(rows: Sequence[Row], x: str) -> list[Row]:
    """The last row of each epoch, in the order of x."""
    by_epoch = {row.get("epoch", place): row for place, row in enumerate(rows)}
    return sorted((row for row in by_epoch.values() if _number(row.get(x)) is not None), key=lambda row: row[x])


def _number(value: object) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _line(name: str, rows: Sequence[Row], key: str, x: str) -> Line:
    points = [(float(row[x]), y) for row in rows if (y := _number(row.get(key))) is not None]
    return Line(name, [point[0] for point in points], [point[1] for point in points])


def _panels(rows: Sequence[Row], x: str) -> list[tuple[str, list[Line]]]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    result, used = [], {x, "epoch"}
    declared = sorted(panels().items(), key=lambda panel: (*PANEL_ORDER, panel[0]).index(panel[0]))
    for name, wanted in declared:
        found = [key for short in wanted if (key := _with_split(short, keys))]
        used |= set(found)
        result.append((name, [_line(pretty(key), rows, key, x) for key in found]))
    groups = [key for key in keys if key.startswith(GROUPS)][: len(LINES)]  # as many as there are colours
    result.append(("accuracy by group", [_line(key.removeprefix(GROUPS), rows, key, x) for key in groups]))
    single = [key for key in keys if key.startswith(("train/", "lr")) and not key.endswith(NOT_A_CURVE)]
    result += [(pretty(key), [_line(pretty(key), rows, key, x)]) for key in single if key not in used]
    filled = [(name, [line for line in lines if line.y]) for name, lines in result]
    return [(name, lines) for name, lines in filled if lines]


def _is_percent(panel: str) -> bool:
    keys = panels().get(panel, [])
    return panel == "accuracy by group" or (bool(keys) and all(metric_info(key).percent for key in keys))


def _with_split(key: str, keys: Sequence[str]) -> str | None:
    """The key as it is among `keys`: without a split, of val or of test, in this order."""
    return next((name for name in (key, f"val/{key}", f"test/{key}") if name in keys), None)


def _figure(width: float, height: float) -> Figure:
    """A figure outside pyplot: no global state, no window."""
    return Figure(figsize=(width, height), dpi=170, facecolor="white")


def _draw(axes: Axes, lines: Sequence[Line], percent: bool, width: float = 1.7) -> None:
    for place, line in enumerate(lines):
        marker = "o" if len(line.x) < 16 else ""
        colour = LINES[place % len(LINES)]
        style: dict[str, Any] = {"color": colour, "lw": width, "marker": marker, "ms": 2.4 * width}
        axes.plot(line.x, line.y, label=line.name, mec="white", mew=0.6, clip_on=False, **style)
    axes.grid(axis="y", color=RULE, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.margins(x=0.03, y=0.12)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.02))


def _label_ends(axes: Axes, lines: Sequence[Line], percent: bool) -> None:
    """Name and last value to the right of each line's end, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    right = max(line.x[-1] for line in lines)
    heights = spread([line.y[-1] for line in lines], (high - low) * 0.075, high)
    for place, (line, y) in enumerate(zip(lines, heights, strict=True)):
        colour = LINES[place % len(LINES)]
        if line.x[-1] < right:  # connects a line that ends early with its label
            axes.plot([line.x[-1], right], [line.y[-1], y], color=colour, lw=1, ls=":", alpha=0.8)
        last = f"{line.y[-1]:.1%}" if percent else f"{line.y[-1]:.3g}"
        axes.annotate(
            f"{line.name}  {last}", (right, y), xytext=(9, 0), textcoords="offset points", va="center", fontsize=9.5,
            color=colour, fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def spread(heights: Sequence[float], step: float, top: float) -> list[float]:
    """The heights moved apart to at least `step`, in the same order, up where there is room below `top`, else down."""
    moved = list(heights)
    order = sorted(range(len(moved)), key=moved.__getitem__)
    for below, here in pairwise(order):
        moved[here] = max(moved[here], moved[below] + step)
    ceiling = top
    for here in reversed(order):
        moved[here] = min(moved[here], ceiling)
        ceiling = moved[here] - step
    return moved


def _values(name: str, lines: Sequence[Line], x: str, percent: bool) -> dict[str, Any]:
    """The values of one panel as a table: a row for every x, an empty cell where a line has no point."""
    points = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    at = sorted({value for line in lines for value in line.x})
    rows = [[number(here, False), *(number(p[here], percent) if here in p else "" for p in points)] for here in at]
    header = [X_LABELS.get(x, x), *(printable(line.name) + (" (%)" if percent else "") for line in lines)]
    return {"title": printable(name), "at": at, "header": header, "rows": rows}


def _save(figure: Figure, path: Path, tables: Sequence[dict[str, Any]]) -> Path:
    """Write the PNG. Its text chunk "Layout" has the values of each panel, the pixels `box` of its axes (left, top,
    right, bottom) and the `limits` of its horizontal axis, with which report.html shows the values under the pointer.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    shown = []
    for axes, table in zip(figure.axes, tables, strict=True):
        left, bottom, right, top = axes.get_window_extent().extents
        box = [round(value, 1) for value in (left, len(pixels) - top, right, len(pixels) - bottom)]
        shown.append({**table, "box": box, "limits": list(axes.get_xlim())})
    # 256 colours draw lines and text as well as all, in a quarter of the bytes; an octree chooses them fastest.
    image = Image.fromarray(pixels).quantize(256, Image.Quantize.FASTOCTREE)
    return write_atomic(path, png_bytes(image, {LAYOUT: json.dumps({"panels": shown})}))
