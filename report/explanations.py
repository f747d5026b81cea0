"""The report of an evaluation of explanation methods: one table methods x metrics, and their maps side by side."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from report.files import write_atomic
from report.html import Code, Figure, Section, Table, Text, write_report
from report.overlays import Array, heat_overlay, truth_view
from report.sheets import Column, contact_sheet
from report.tables import latex, table_text, write_tables

HEADLINES = (
    "localization/mask/iou",
    "localization/boxes/iou",
    "segmentation/miou",
    "segmentation/map",
    "pointing/mask/hit",
    "pointing/mask/energy",
    "abpc",
    "perturbation/positive_auc",
    "perturbation/negative_auc",
    "insertion_deletion/insertion",
    "insertion_deletion/deletion",
    "certificate/holds",
    "certificate/probability_change",
    "certificate/flipped",
    "as_mask/accuracy",
    "as_mask/worst_group_accuracy",
    "as_mask/mask_iou",
    "seconds_per_map",
)
"""The metrics of the tables for people, in their order."""


@dataclass(frozen=True)
class ExplainedImage:
    """One image and what every method says of it."""

    pixels: np.ndarray
    """[H, W, 3] uint8."""
    caption: str
    correct: bool
    maps: Mapping[str, Array]
    """Method to its map [h, w]."""
    truth: Array | None = None
    """[H, W] bool: the object."""


def method_sheet(images: Sequence[ExplainedImage], path: Path, title: str = "") -> Path:
    """Image, one row per method, and the true object where it is known. Raises ValueError without images."""
    methods = list(images[0].maps) if images else []
    columns = []
    for image in images:
        tiles: list[np.ndarray | None] = [image.pixels]
        tiles += [heat_overlay(image.pixels, image.maps[method]) for method in methods]
        if images[0].truth is not None:
            tiles.append(None if image.truth is None else truth_view(image.pixels, image.truth))
        columns.append(Column(tiles, caption=image.caption, correct=image.correct))
    rows = ["image", *(method.replace("_", "\n", 1) for method in methods)]
    rows += ["true object"] if images and images[0].truth is not None else []
    return contact_sheet(columns, rows, path, title)


def write_explanation_report(
    out: Path,
    title: str,
    records: Sequence[Mapping[str, Any]],
    headlines: Sequence[str],
    sheet: Path,
    details: Mapping[str, Any],
    config: str,
) -> Path:
    """Write methods.{json,csv,md,tex} and report.html to `out`; the report's path.

    `records`: one per method, "row" its name, then metrics. `headlines`: the metrics of the tables for people, beside
    counts of nan maps that are not 0; the JSON and the CSV hold all.
    """
    failed = dict.fromkeys(key for record in records for key in record if key.endswith("/nan_maps") and record[key])
    keys = [key for key in headlines if any(key in record for record in records)] + list(failed)
    write_tables(records, out / "methods", keys=keys)
    table = table_text(records, keys=keys)
    write_atomic(out / "methods.tex", latex(table))
    sections: list[Section] = [
        Table(table, title="Methods", caption="Intervals and all other metrics: methods.json, methods.csv."),
        Figure(sheet, title="Maps", caption="Each map from its smallest to its largest value."),
        Text("How each figure was measured stands under Protocol."),
        Code(json.dumps(details, indent=2, default=str), title="Protocol and provenance"),
        Code(config, title="Config"),
    ]
    return write_report(out / "report.html", title, sections)
