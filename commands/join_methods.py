"""Join evaluations of different explanation methods, such as one job per method, into one table.

    python -m commands.join_methods runs/evaluations/runs/cub-seed0/* --out runs/evaluations/cub-seed0-methods

Each folder was written by evaluate.py --method, for the same model, images and settings; the metrics may differ. Writes
the table that one call with all the methods would write (results.json, methods.{json,csv,md,tex}), the metrics of every
image and report.html to OUT. The contact sheets stay in the folders.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from commands.compare_evaluations import read_table
from commands.method_outputs import metric_table, remove_other_methods
from commands.run_context import METHODS_FILE, check_mode
from common.errors import UserError, exit_on_user_error, printable
from common.files import parse_json, read_file
from common.flags import Parser
from engine.run.folder import RESULTS
from engine.run.machine import provenance
from report.explanations import write_explanation_report
from report.files import check_folder, json_text, write_atomic

KINDS = {
    "model": str, "images": int, "methods": dict, "model_metrics": dict, "protocol": dict, "inputs": dict, "rows": list,
}  # fmt: skip
OF_A_FOLDER = ("maps", "methods", "provenance", "rows", "joined")
"""Keys of results.json that differ between the folders."""
BY_METRIC = ("model_metrics", "protocol")
"""Keys whose entries must agree where two folders have the same ones."""


@dataclass(frozen=True)
class Evaluation:
    """What evaluate.py --method wrote to a folder."""

    folder: Path
    results: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    """Row of the table -> metrics: the methods, and masks that no method made."""
    images: dict[str, pd.DataFrame]
    """Method -> the metrics of every image, by path; without methods that have none."""

    @classmethod
    def read(cls, folder: Path) -> "Evaluation":
        """Raises UserError if the folder holds no results of evaluate.py --method."""
        path = folder / RESULTS
        try:
            results = parse_json(read_file(path))
            if wrong := [key for key, kind in KINDS.items() if not isinstance(results[key], kind)]:
                raise TypeError(wrong[0])
            rows = {str(row["row"]): dict(row) for row in results["rows"]}
            if wrong := [name for name in results["methods"] if name not in rows]:
                raise KeyError(wrong[0])
            if not all(has_numbers(row) for row in rows.values()):
                raise TypeError("rows")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"damaged or of an earlier version: {error}"
            raise UserError(f"cannot read {path} ({reason}); give a folder of evaluate.py --method") from None
        tables = {path.stem: path for path in (folder / "per_image").glob("*.csv")}
        return cls(
            folder, results, rows, {name: read_table(tables[name]) for name in results["methods"] if name in tables}
        )

    def sources(self) -> list[dict[str, Any]]:
        """The folder with its methods and provenance; of joined folders those that were joined."""
        own = {key: self.results.get(key) for key in ("methods", "maps", "provenance")}
        earlier: list[dict[str, Any]] = self.results.get("joined") or [{"folder": str(self.folder), **own}]
        return earlier

    def check(self, other: "Evaluation") -> None:
        """Raise UserError unless the tables of both can be joined."""
        both = f"{self.folder} and {other.folder}"
        if twice := [name for name in self.results["methods"] if name in other.results["methods"]]:
            raise UserError(f"{twice[0]} is in {both}; leave one of them out")
        if found := self._difference(other):
            raise UserError(
                f"{both} cannot be joined: {found}; evaluate again with the same model, images and settings"
            )

    def _difference(self, other: "Evaluation") -> str | None:
        ours, theirs = self.results, other.results
        for key in [key for key in dict.fromkeys((*ours, *theirs)) if key not in (*OF_A_FOLDER, *BY_METRIC)]:
            if ours.get(key) != theirs.get(key):
                return f"{key} {_changed(ours.get(key), theirs.get(key))}"
        shared = {key: (ours[key], theirs[key]) for key in BY_METRIC}
        shared |= {f"row {name}": (row, other.rows[name]) for name, row in self.rows.items() if name in other.rows}
        for name, (first, second) in shared.items():
            for key in [key for key in first if key in second and not _same(first[key], second[key])]:
                return f"{name}: {key} {_changed(first[key], second[key])}"
        tables = [next(iter(evaluation.images.values()), None) for evaluation in (self, other)]
        if tables[0] is not None and tables[1] is not None and list(tables[0].index) != list(tables[1].index):
            return "their images differ"
        return None


def has_numbers(row: dict[str, Any]) -> bool:
    """Whether all metrics of a row are numbers, or None for nan."""
    return all(value is None or isinstance(value, int | float) for key, value in row.items() if key != "row")


def _same(first: Any, second: Any) -> bool:
    """Equal up to rounding: jobs may run on different devices. One image more or less is no rounding."""
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-6)
    return bool(first == second)


def _changed(first: Any, second: Any) -> str:
    """What differs: of two nested values the first entry that is not the same in both."""
    if isinstance(first, dict) and isinstance(second, dict):
        key = next(key for key in (*first, *second) if first.get(key) != second.get(key))
        return f"{key} {_changed(first.get(key), second.get(key))}"
    return f"is {first} and {second}"


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="folders of evaluate.py --method")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    """Command line."""
    args = parse_args()
    out = check_out(args.out)
    evaluations = [Evaluation.read(folder) for folder in args.folders]
    for first, second in combinations(evaluations, 2):
        first.check(second)
    results = joined(evaluations)
    remove_other_methods(out, results["methods"])
    write_atomic(out / RESULTS, json_text(results))
    for evaluation in evaluations:
        for name in evaluation.images:
            table = f"per_image/{name}.csv"
            write_atomic(out / table, read_file(evaluation.folder / table))
    records, details = results.pop("rows"), results
    report = write_explanation_report(out, f"Explanations of {results['model']}", records, None, details, None)
    print("\n".join(map(printable, metric_table(records).split("\n"))))
    print(printable(f"{results['images']} images, {len(results['methods'])} methods; report: {report}"))


def check_out(out: Path) -> Path:
    """The output folder. Raises UserError if it holds an evaluation, which would be overwritten."""
    check_mode(check_folder(out, "--out"), METHODS_FILE)
    if (out / RESULTS).exists() and "joined" not in Evaluation.read(out).results:
        raise UserError(f"--out: {out} holds an evaluation; choose another folder")
    return out


def joined(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The content of results.json."""
    results = {key: value for key, value in evaluations[0].results.items() if key not in OF_A_FOLDER}
    methods: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    for evaluation in evaluations:
        methods |= evaluation.results["methods"]
        for key in BY_METRIC:
            results[key] = results[key] | evaluation.results[key]
        for name, row in evaluation.rows.items():
            rows[name] = rows.get(name, {}) | row
    sources = [source for evaluation in evaluations for source in evaluation.sources()]
    order = [*methods, *(name for name in rows if name not in methods)]
    return results | {
        "methods": methods, "joined": sources, "provenance": provenance(), "rows": [rows[name] for name in order],
    }  # fmt: skip


if __name__ == "__main__":
    main()
