"""Index files of numbers alone, read as whole columns: as strict as `tables`, and fast enough for 180,000 lines."""

import csv
import io
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import UserError
from datasets.formats.tables import LARGEST, IndexRow, read_spaced, read_text


class NumberTable:
    """Whitespace-separated numbers, no header. Errors are UserErrors that name file and line."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)
        self.values = _values(path, self.columns)
        """[N, C] float64, one row per line that is not blank."""

    def __len__(self) -> int:
        return len(self.values)

    def row(self, index: int) -> IndexRow:
        """A row by its position, read again to tell its line in an error."""
        return next(islice(read_spaced(self.path, self.columns), index, None))

    def numbers(self, *columns: str) -> np.ndarray:
        """[N, number of columns] float64."""
        return self.values[:, [self.columns.index(column) for column in columns]]

    def integers(self, column: str, allowed: Collection[int] | None = None) -> np.ndarray:
        """[N] int64. Raises UserError for the first number that is not whole, or not one of `allowed`."""
        values = self.values[:, self.columns.index(column)]
        whole = values.astype(np.int64)
        good = whole == values
        if allowed is not None:
            good &= np.isin(whole, list(allowed))
        if not good.all():
            self.row(int(np.argmin(good))).integer(column, allowed)  # raises
        return whole

    def positions(self, ids: np.ndarray, index: Path) -> tuple[np.ndarray, int]:
        """The row of each of `ids`, [len(ids)] int64, by the column "id", and the number of rows with another id.

        `index`: the file that lists the ids. Raises UserError for an id without a row or with two.
        """
        own = self.integers("id")
        values, first, counts = np.unique(own, return_index=True, return_counts=True)
        if len(values) < len(own):
            second = int(np.setdiff1d(np.arange(len(own)), first)[0])
            line = self.row(int(first[values == own[second]][0])).line
            raise self.row(second).error(f"id {own[second]} is already in line {line}; keep one of the two")
        check_ids(ids, index, values, self.path)
        return first[np.searchsorted(values, ids)], len(own) - len(ids)


def check_ids(ids: np.ndarray, index: Path, there: np.ndarray, path: Path) -> None:
    """Raise UserError unless every id of the file `index` is among those of the file `path`."""
    lacking = np.setdiff1d(ids, there)
    if len(lacking):
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        raise UserError(f"{path}: no line for id {lacking[0]}{more}, which {index.name} has; restore both files")


def _values(path: Path, columns: tuple[str, ...]) -> np.ndarray:
    """Parsed by pandas where every cell is a plain number, else row by row, which raises for the first wrong cell."""
    names = [*columns, "more"]  # one column too many, to see lines that are too long
    try:
        frame = pd.read_csv(
            io.StringIO(read_text(path)), sep=r"\s+", header=None, names=names, index_col=False, dtype=np.float64,
            quoting=csv.QUOTE_NONE,
        )  # fmt: skip
        values = frame[list(columns)].to_numpy()
        if frame["more"].isna().all() and (np.abs(values) < LARGEST).all():  # false for NaN too
            return values
    except ValueError:  # pandas' errors are such
        pass
    rows = [[row.number(column) for column in columns] for row in read_spaced(path, columns)]
    return np.array(rows, np.float64).reshape(-1, len(columns))
