"""Test whether two models differ on the same images: bootstrap tests of two files written by evaluate.py.

    python -m commands.compare_evaluations runs/a/evaluation/test/predictions.csv runs/b/evaluation/test/predictions.csv
    python -m commands.compare_evaluations runs/{a,b}/evaluation/test-methods/per_image/lrp.csv --out runs/comparison

For predictions.csv: accuracy, worst-group accuracy and F1, or average precision and F1 for multi-label data. For
per_image/METHOD.csv: the mean of each column over the images for which both files have a value. Prints for each metric
the difference with its 95 % bootstrap interval over images, and the p-value of the pooled bootstrap of the absolute
difference (docs/atcon.md).
"""

import argparse
import csv
import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import UserError, exit_on_user_error, printable
from common.files import read_file
from common.flags import Parser
from metrics.comparison import LOGIT, PRESENT, Difference, column_means, compare, prediction_metrics
from report.files import check_folder
from report.tables import write_tables

LARGEST_CLASS = 9999
"""Counts are kept for every pair of classes."""


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="predictions.csv or per_image/METHOD.csv of one evaluation")
    parser.add_argument("second", type=Path, help="the same file of another evaluation of the same images")
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="bootstrap resamples; default: 1000")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write comparison.{json,csv,md} to this folder")
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    """Compare the files and print the differences."""
    args = parse_args()
    if args.resamples < 1:
        raise UserError("--resamples must be at least 1")
    out = check_folder(args.out, "--out") if args.out else None
    first, second = read_table(args.first), read_table(args.second)
    differences = compare_tables(first, matched(first, second, args.second), args.resamples)
    records = [{"row": name, **asdict(difference)} for name, difference in differences.items()]
    print(f"{len(first)} images; first - second, 95 % interval, p")
    for name, found in differences.items():
        change = f"{found.first - found.second:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
        print(f"{printable(name)}: {found.first:.4f} - {found.second:.4f} = {change}, p {found.p:.3g}")
    if out:
        write_tables(records, out / "comparison")


def read_table(path: Path) -> pd.DataFrame:
    """One row per image, indexed by path. Raises UserError for a file that evaluate.py did not write."""
    try:
        content = read_file(path)
        names = next(csv.reader(content.decode().splitlines()), [])
        table = pd.read_csv(io.BytesIO(content), dtype={"path": str}).set_index("path")
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"cannot read {path} ({' '.join(str(error).split())}); give a file of evaluate.py") from None
    if not len(table) or not table.index.is_unique or table.index.hasnans:
        what = (
            "no images" if table.empty else "an image twice" if table.index.notna().all() else "an image without path"
        )
        raise UserError(f"{path} contains {what}; run evaluate.py again")
    problem = f"column {names[-1]} twice" if len(set(names)) < len(names) else None
    if problem := problem or (_of_predictions(table) if "predicted" in table else _of_numbers(table)):
        raise UserError(f"{path} contains {problem}; give a file of evaluate.py")
    return table


def _of_predictions(table: pd.DataFrame) -> str | None:
    """What is wrong with a predictions.csv."""
    if lacking := [name for name in ("label", "group") if name not in table]:
        return f"no column {lacking[0]}"
    for name in ("label", "predicted"):
        if table[name].dtype.kind not in "iu" or not table[name].between(0, LARGEST_CLASS).all():
            return f"a value of {name} that is no class"
    scores = table.filter(regex=f"^({PRESENT}|{LOGIT})")
    columns = [str(name) for name in scores]
    named = [sorted(c.removeprefix(kind) for c in columns if c.startswith(kind)) for kind in (PRESENT, LOGIT)]
    if named[0] != named[1]:
        return f"other classes in {PRESENT} than in {LOGIT}"
    others = scores if table["group"].isna().all() else scores.assign(group=table["group"])
    if others.isna().any(axis=None):
        return "an empty cell"
    return _of_numbers(others) if len(others.columns) else None


def _of_numbers(table: pd.DataFrame) -> str | None:
    """What is wrong with columns of numbers, which may be empty for some images."""
    if not len(table.columns):
        return "no values"
    for name in table:
        if table[name].dtype.kind not in "biuf" or np.isinf(table[name].to_numpy(float)).any():
            return f"a value of {name} that is no finite number"
    return None


def matched(first: pd.DataFrame, second: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The second table in the order of the first. Raises UserError if images, columns, labels or groups differ."""
    if set(first.index) != set(second.index):
        odd = sorted(set(first.index) ^ set(second.index))[0]
        raise UserError(f"{path}: {odd} is in only one of the two files; evaluate both on the same images")
    second = second.loc[first.index]
    truth = first.columns[first.columns.str.match("(label|group)$|present/")]
    if list(first) != list(second) or not first[truth].equals(second[truth]):
        raise UserError(f"{path} has other columns or labels than the first file; compare files of one data set")
    return second


def compare_tables(first: pd.DataFrame, second: pd.DataFrame, resamples: int) -> dict[str, Difference]:
    """Metric name to the difference of the two tables."""
    if "predicted" in first:
        return compare(prediction_metrics(pd.concat([first, second], ignore_index=True)), len(first), resamples)
    results: dict[str, Difference] = {}
    for name in first:
        known = (first[name].notna() & second[name].notna()).to_numpy()
        if known.any():
            values = np.concatenate([first[name][known], second[name][known]]).astype(np.float64)
            results |= compare(column_means(values, str(name)), int(known.sum()), resamples)
    return results


if __name__ == "__main__":
    main()
