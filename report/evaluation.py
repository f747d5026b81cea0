"""The report of one evaluation: metrics, curves, what the model saw and where it failed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report.curves import training_curves
from report.html import Card, Cards, Code, Figure, Section, Table, write_report
from report.names import is_fraction, number, pretty
from report.tables import TableText, table_text, write_tables

HEADLINES = (
    "accuracy", "mean_average_precision", "macro_f1", "micro_f1", "worst_group_accuracy", "balanced_accuracy", "auroc",
    "mask_iou", "mask_dice", "keep_ratio",
    "foreground_iou", "part_nmi", "part_ari", "part_nmi_pixels", "part_ari_pixels", "keypoint_error",
)  # fmt: skip


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
    """Write metrics.{json,csv,md}, curves.png and report.html to `out`; the report's path.

    `results`: name to value. `details`: what was measured and from what. `history`: the run's metrics.jsonl.
    """
    write_tables([{"row": title, **results}], out / "metrics")
    sections: list[Section] = [
        Cards([Card(pretty(key), _shown(key, results[key])) for key in HEADLINES if key in results]),
        Figure(sheet, title="What it saw", caption="Image, parts, what the classifier sees, true object."),
    ]
    if failures is not None:
        sections.append(Figure(failures, title="Worst failures", caption="The most confident wrong answers first."))
    sections.append(Table(_table(results), title="All metrics"))
    if history:
        sections.append(Figure(training_curves(history, out / "curves.png"), title="Training"))
    sections += [Code(json.dumps(details, indent=2), title="Provenance"), Code(config, title="Config")]
    return write_report(out / "report.html", title, sections)


def _table(results: Mapping[str, float]) -> TableText:
    return TableText(("figure", "value"), tuple((pretty(key), _shown(key, value)) for key, value in results.items()))


def _shown(key: str, value: float) -> str:
    share = is_fraction(key)
    return number(value, share) + (" %" if share else "")


BACKGROUND_COLUMNS = ("accuracy", "stage_1/accuracy", "mask_iou", "keep_ratio", "empty_ratio", "count/images")
"""The metrics of the table for people; the JSON and the CSV hold all."""


def write_background_report(
    out: Path,
    title: str,
    records: Sequence[Mapping[str, Any]],
    summary: Mapping[str, float],
    details: Mapping[str, Any],
    config: str,
) -> Path:
    """Write table.{json,csv,md} and report.html to `out`; the report's path.

    `records`: one per set: "row", metrics. `summary`: shares and differences of shares by name.
    """
    keys = [key for key in BACKGROUND_COLUMNS if any(key in record for record in records)]
    write_tables(records, out / "table", keys=keys)
    caption = "BG-gap: accuracy on mixed_same minus accuracy on mixed_rand, percentage points."
    sections: list[Section] = [
        Cards([Card(pretty(key), f"{number(value, True)} %") for key, value in summary.items()]),
        Table(table_text(records, keys=keys), title="By set", caption=caption),
        Code(json.dumps(details, indent=2, default=str), title="Provenance"),
        Code(config, title="Config"),
    ]
    return write_report(out / "report.html", title, sections)


REMOVAL_COLUMNS = (*HEADLINES, "empty_ratio", "changed_predictions_ratio")
"""The metrics of the table for people; the JSON and the CSV hold all."""


def write_removal_report(
    out: Path,
    title: str,
    records: Sequence[Mapping[str, Any]],
    sheet: Path,
    details: Mapping[str, Any],
    config: str,
) -> Path:
    """Write table.{json,csv,md} and report.html to `out`; the report's path.

    `records`: one per setting, the unmodified model first: "row", "removed_parts", metrics.
    """
    keys = [key for key in REMOVAL_COLUMNS if key in records[0]]
    write_tables(records, out / "table", keys=keys)
    sections: list[Section] = [
        Table(
            table_text(records, keys=keys),
            title="Without each part",
            caption="Empty: images of which nothing is left. All other metrics, of groups too: table.json, table.csv.",
        ),
        Figure(
            sheet,
            title="What went",
            caption="Grey was never shown to the classifier; colour went, and tells the part. A cross: wrong answer.",
        ),
        Code(json.dumps(details, indent=2, default=str), title="Provenance"),
        Code(config, title="Config"),
    ]
    return write_report(out / "report.html", title, sections)
