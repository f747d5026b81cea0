"""The report of a study: its rows (settings) side by side."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from common.errors import UserError
from common.files import parse_json, read_file
from report.curves import compare_runs, has_curves, training_curves
from report.files import check_folder, png_bytes, write_atomic
from report.html import Card, Cards, Code, Figure, Section, Table, Text, write_report
from report.names import number
from report.tables import present, table_text, write_tables

STUDY_COLUMNS = (
    "diverged",
    "test/accuracy",
    "test/mean_average_precision",
    "test/macro_f1",
    "test/agreement",
    "test/consistency",
    "test/worst_group_accuracy",
    "test/worst_group_accuracy_paper",
    "test/mask_iou",
    "test/mask_dice",
    "test/keep_ratio",
    "test/keep_ratio_pixels",
    "test/parts_used",
    "best_epoch",
    "train_seconds",
    "wall_seconds",
)
WORST = "test/worst_group_accuracy"


@dataclass(frozen=True)
class StudyRun:
    """One finished run of a study."""

    row: str
    seed: int
    results: Mapping[str, Any]
    """The content of its results.json."""
    history: Sequence[Mapping[str, Any]]
    """The rows of its metrics.jsonl."""
    sheet: Path | None
    """Its last contact sheet."""
    config: str
    """Its resolved config, YAML."""


def write_study_report(
    out: Path, title: str, about: str, runs: Sequence[StudyRun], differences: Sequence[Mapping[str, Any]] = ()
) -> Path:
    """Write table.{json,csv,md}, curves and report.html to `out`; returns the path of the report.

    `differences`: pairs of rows ("row") with the differences of their metrics and their intervals, for a table of their
    own, also written as differences.{json,csv,md}.
    """
    records = [
        {"row": run.row, "seed": run.seed, **{key: run.results[key] for key in STUDY_COLUMNS if key in run.results}}
        for run in runs
    ]
    if any("diverged" in record for record in records):
        records = [{"diverged": 0.0, **record} for record in records]
    keys = present(STUDY_COLUMNS, records)
    write_tables(records, out / "table", keys=keys)
    if differences:
        write_tables(differences, out / "differences")
    caption = "Validation split: image, parts, patches that the classifier sees, true object."
    sections: list[Section] = [
        Cards([_card(row, runs) for row in _rows(runs)]),
        Text(about),
        Table(
            table_text(records, keys=keys),
            title="Metrics",
            caption="Checkpoints chosen by validation metrics. Mean ± sample standard deviation over seeds.",
        ),
        *([_differences(differences)] if differences else []),
        *_curves(out, runs),
        *(Figure(run.sheet, f"{run.row}: examples", caption) for run in _firsts(runs) if run.sheet),
        *(
            Figure(training_curves(run.history, out / f"curves_{run.row}.png"), title=f"{run.row}: training")
            for run in _firsts(runs)
            if has_curves(run.history)
        ),
        Code(json.dumps(runs[0].results.get("provenance", {}), indent=2), title="Provenance"),
        *(Code(run.config, title=f"Config of {run.row}") for run in _firsts(runs)),
    ]
    return write_report(out / "report.html", title, sections)


def check_publish(target: Path, runs: Iterable[tuple[str, int]]) -> None:
    """Raise UserError if `target` cannot be written, or holds a table with other runs (row, seed) than `runs`, which
    `publish` would replace.
    """
    table = check_folder(target, "--publish") / "table.json"
    if not table.exists():
        return
    try:
        published = [(str(record["row"]), int(record["seed"])) for record in parse_json(read_file(table))["runs"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"--publish: {table} is not the table of a study; choose another folder") from None
    planned = set(runs)
    if lost := [run for run in published if run not in planned]:
        raise UserError(
            f"--publish: {table} also holds {len(lost)} run(s) that this call does not have, such as {lost[0][0]}, "
            f"seed {lost[0][1]}; run them too, choose another folder, or delete the table"
        )


def publish(out: Path, runs: Sequence[StudyRun], target: Path, sheets: bool = True) -> None:
    """Copy the small files of a study from `out` to `target`: tables, comparisons, with `sheets` one sheet per row."""
    target.mkdir(parents=True, exist_ok=True)
    tables = (f"{stem}.{suffix}" for stem in ("table", "differences") for suffix in ("json", "csv", "md"))
    for name in (*tables, "worst_group.png", "worst_group_by_time.png"):
        if (out / name).is_file():
            shutil.copyfile(out / name, target / name)
    for run in _firsts(runs):
        if sheets and run.sheet is not None:
            small = Image.open(run.sheet).convert("RGB").quantize(256)  # small, for version control
            write_atomic(target / f"sheet_{run.row}.png", png_bytes(small))


def _rows(runs: Sequence[StudyRun]) -> list[str]:
    return list(dict.fromkeys(run.row for run in runs))


def _firsts(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """The first run of each row."""
    return [next(run for run in runs if run.row == row) for row in _rows(runs)]


def _differences(records: Sequence[Mapping[str, Any]]) -> Table:
    caption = "Difference of the means over seeds, test split; 95 % interval: bootstrap over images and seeds."
    return Table(table_text(records), title="Differences", caption=caption)


def _card(row: str, runs: Sequence[StudyRun]) -> Card:
    found = [run.results[WORST] for run in runs if run.row == row and WORST in run.results]
    values = [value for value in found if isinstance(value, int | float)]  # None: not a number
    mean = sum(values) / len(values) if values else float("nan")
    return Card(row, number(mean, percent=True) + " %", f"worst-group accuracy, test, {len(values)} seed(s)")


def _curves(out: Path, runs: Sequence[StudyRun]) -> list[Section]:
    """Worst-group accuracy on the test split over epochs and over seconds, if it was logged."""
    if not any(WORST in row for run in runs for row in run.history):
        return []
    several = len({run.seed for run in runs}) > 1
    lines = {f"{run.row} (seed {run.seed})" if several else run.row: run.history for run in runs}
    by_epoch = compare_runs(lines, WORST, out / "worst_group.png")
    by_time = compare_runs(lines, WORST, out / "worst_group_by_time.png", x="train_seconds")
    caption = "Logged during training; not used to choose checkpoints."
    return [
        Figure(by_epoch, title="Worst-group accuracy on the test split", caption=f"By epoch. {caption}"),
        Figure(by_time, caption="By seconds of training, without validation."),
    ]
