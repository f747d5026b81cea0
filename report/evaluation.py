"""The report of one evaluation: figures, curves, what the model saw and where it failed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report.curves import training_curves
from report.html import Card, Cards, Code, Figure, Section, Table, write_report
from report.names import is_share, number, pretty
from report.tables import TableText, write_tables

HEADLINES = (
    "accuracy", "mean_average_precision", "macro_f1", "micro_f1", "worst_group_accuracy", "balanced_accuracy", "auroc",
    "mask_iou", "mask_dice", "kept_share",
    "foreground_iou", "part_nmi", "part_ari", "part_nmi_pixels", "part_ari_pixels", "keypoint_error",
)  # fmt: skip


def write_evaluation_report(
    out: Path,
    title: str,
    figures: Mapping[str, float],
    details: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    sheet: Path,
    failures: Path | None,
    config: str,
) -> Path:
    """Write figures.{json,csv,md}, curves.png and report.html to `out`; the report's path.

    `figures`: name to value. `details`: what was measured and from what. `history`: the run's metrics.jsonl.
    """
    write_tables([{"row": title, **figures}], out / "figures")
    sections: list[Section] = [
        Cards([Card(pretty(key), _shown(key, figures[key])) for key in HEADLINES if key in figures]),
        Figure(sheet, title="What it saw", caption="Picture, parts, what the classifier sees, true object."),
    ]
    if failures is not None:
        sections.append(Figure(failures, title="Worst failures", caption="The most confident wrong answers first."))
    sections.append(Table(_table(figures), title="All figures"))
    if history:
        sections.append(Figure(training_curves(history, out / "curves.png"), title="Training"))
    sections += [Code(json.dumps(details, indent=2), title="Provenance"), Code(config, title="Config")]
    return write_report(out / "report.html", title, sections)


def _table(figures: Mapping[str, float]) -> TableText:
    return TableText(("figure", "value"), tuple((pretty(key), _shown(key, value)) for key, value in figures.items()))


def _shown(key: str, value: float) -> str:
    share = is_share(key)
    return number(value, share) + (" %" if share else "")
