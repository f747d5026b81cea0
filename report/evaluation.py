"""The reports of `evaluate.py` without `--method` and of `commands.imagenet9`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.metric_info import headlines
from report.curves import has_curves, training_curves
from report.html import Card, Cards, Figure, Section, Table, provenance_sections, write_report
from report.names import interval, is_fraction, number, pretty
from report.tables import TableText, present, table_text, write_tables


def write_evaluation_report(
    out: Path,
    title: str,
    results: Mapping[str, float],
    details: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    sheet: Path,
    failures: Path | None,
    config: str,
) -> Path:
    """Write metrics.{json,csv,md}, curves.png and report.html to `out`; returns the path of the report.

    `results`: metric name to value. `details`: what was measured. `history`: the rows of the run's metrics.jsonl.
    """
    write_tables([{"row": title, **results}], out / "metrics")
    sections: list[Section] = [
        Cards([Card(pretty(key), _shown(key, results[key]), interval(results, key)) for key in headlines(results)]),
        Figure(sheet, title="Examples", caption="Image, parts, patches that the classifier sees, true object."),
    ]
    if failures is not None:
        sections.append(Figure(failures, title="Worst failures", caption="The most confident wrong predictions first."))
    sections.append(Table(_all_metrics(results), title="All metrics"))
    if has_curves(history):
        sections.append(Figure(training_curves(history, out / "curves.png"), title="Training"))
    sections += provenance_sections(details, config)
    return write_report(out / "report.html", title, sections)


def _all_metrics(results: Mapping[str, float]) -> TableText:
    """One row per metric, with its interval as a note."""
    bounds = {f"{key}/{bound}" for key in results if interval(results, key) for bound in ("low", "high")}
    keys = [key for key in results if key not in bounds]
    notes = {(row, 1): note for row, key in enumerate(keys) if (note := interval(results, key))}
    return TableText(("metric", "value"), tuple((pretty(key), _shown(key, results[key])) for key in keys), notes)


def _shown(key: str, value: float) -> str:
    percent = is_fraction(key)
    return number(value, percent) + (" %" if percent and not math.isnan(value) else "")


BACKGROUND_COLUMNS = ("accuracy", "stage_1/accuracy", "mask_iou", "keep_ratio", "empty_ratio", "count/images")
"""The metrics of the Markdown and HTML tables; the JSON and CSV files contain all."""


def write_background_report(
    out: Path,
    title: str,
    records: Sequence[Mapping[str, Any]],
    summary: Mapping[str, float],
    details: Mapping[str, Any],
    config: str,
) -> Path:
    """Write table.{json,csv,md} and report.html to `out`; returns the path of the report.

    `records`: one per image set: its name as "row", and its metrics. `summary`: name to a fraction, or to a difference
    of fractions.
    """
    keys = present(BACKGROUND_COLUMNS, records)
    write_tables(records, out / "table", keys=keys)
    caption = "BG-gap: accuracy on mixed_same minus accuracy on mixed_rand, in percentage points."
    sections: list[Section] = [
        Cards([Card(pretty(key), f"{number(value, True)} %") for key, value in summary.items()]),
        Table(table_text(records, keys=keys), title="By image set", caption=caption),
        *provenance_sections(details, config),
    ]
    return write_report(out / "report.html", title, sections)


REMOVAL_COLUMNS = ("empty_ratio", "changed_predictions_ratio")
"""Columns of the Markdown and HTML tables after the headline metrics; the JSON and CSV files contain all metrics."""


def write_removal_report(
    out: Path,
    title: str,
    records: Sequence[Mapping[str, Any]],
    sheet: Path,
    details: Mapping[str, Any],
    config: str,
) -> Path:
    """Write table.{json,csv,md} and report.html to `out`; returns the path of the report.

    `records`: one per setting, the unmodified model first: "row", "removed_parts", metrics.
    """
    keys = [*headlines(records[0]), *present(REMOVAL_COLUMNS, records)]
    write_tables(records, out / "table", keys=keys)
    sections: list[Section] = [
        Table(
            table_text(records, keys=keys),
            title="Without each part",
            caption="Empty: images without any patch left. All metrics, also by group: table.json, table.csv.",
        ),
        Figure(
            sheet,
            title="Removed patches",
            caption="Grey: hidden from the unmodified model too. Colour: removed here, in the colour of the part. "
            "Cross: wrong prediction.",
        ),
        *provenance_sections(details, config),
    ]
    return write_report(out / "report.html", title, sections)
