"""The report on explanation methods: a table methods x metrics, and the maps side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.metric_info import headlines
from report.files import write_atomic
from report.html import Figure, Section, Table, Text, provenance_sections, write_report
from report.legend import SCALED_ALONE
from report.overlays import Array, heat_overlay, mask_view, resize_shorter
from report.sheets import Column, contact_sheet
from report.tables import latex, table_text, write_tables

TILE = 168
"""Smallest shorter side of an image on the sheet, pixels."""


@dataclass(frozen=True)
class ExplainedImage:
    """One image and the maps of every method."""

    pixels: np.ndarray
    """[H, W, 3] uint8."""
    caption: str
    correct: bool
    maps: Mapping[str, Array]
    """Method to its map [h, w]."""
    truth: Array | None = None
    """[H, W] bool: the object."""


def method_sheet(images: Sequence[ExplainedImage], path: Path) -> Path:
    """Contact sheet: the image, one row per method, and the true object if known. Raises ValueError without images."""
    methods = list(images[0].maps) if images else []
    columns = []
    for image in images:
        pixels = resize_shorter(image.pixels, max(TILE, min(image.pixels.shape[:2])))
        tiles: list[np.ndarray | None] = [pixels]
        tiles += [heat_overlay(pixels, image.maps[method]) for method in methods]
        if images[0].truth is not None:
            tiles.append(None if image.truth is None else mask_view(pixels, image.truth))
        columns.append(Column(tiles, caption=image.caption, correct=image.correct))
    rows = ["image", *(method.replace("_", " ") for method in methods)]
    rows += ["true object"] if images and images[0].truth is not None else []
    return contact_sheet(columns, rows, path, notes=[SCALED_ALONE], heat=True)


def write_explanation_report(
    out: Path,
    title: str,
    records: Sequence[Mapping[str, Any]],
    sheet: Path | None,
    details: Mapping[str, Any],
    config: str | None,
) -> Path:
    """Write methods.{json,csv,md,tex} and report.html to `out`; returns the path of the report.

    `records`: one per method: its name as "row", and its metrics. The Markdown, LaTeX and HTML tables have the headline
    metrics and any counts of nan maps that are not 0; the JSON and CSV files contain all metrics. `sheet` and `config`
    are left out if None.
    """
    failed = dict.fromkeys(key for record in records for key in record if key.endswith("/nan_maps") and record[key])
    keys = headlines(key for record in records for key in record) + list(failed)
    write_tables(records, out / "methods", keys=keys)
    table = table_text(records, keys=keys)
    write_atomic(out / "methods.tex", latex(table))
    sections: list[Section] = [
        Table(table, title="Methods", caption="All metrics and confidence intervals: methods.json, methods.csv."),
        *([Figure(sheet, title="Maps", caption=SCALED_ALONE)] if sheet else []),
        Text("The protocol of each metric is listed under Protocol and provenance."),
        *provenance_sections(details, config, title="Protocol and provenance"),
    ]
    return write_report(out / "report.html", title, sections)
