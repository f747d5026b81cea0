"""Index files of numbers alone, read as whole columns: as strict as `tables`, and fast enough for 500,000 lines.

Ids of images may also be texts (`TextIds`).
"""

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import UserError
from datasets.formats.tables import LARGEST, IndexRow, read_spaced, read_text


class TextIds:
    """Ids that are texts, numbered from 0 in the order in which they are first asked for."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.numbers: dict[str, int] = {}
        for text in texts:
            self.number(text)

    def number(self, text: str) -> int:
        """The number of an id; the next one for a new id."""
        return self.numbers.setdefault(text, len(self.numbers))

    def text(self, number: int) -> str:
        """The id with a number."""
        return list(self.numbers)[number]


class NumberTable:
    """Whitespace-separated numbers, no header. Errors are UserErrors that name file and line."""

    def __init__(self, path: Path, columns: Sequence[str], ids: TextIds | None = None) -> None:
        """`ids`: of the first column, which then has texts; None: it has numbers."""
        self.path, self.columns, self.ids = path, tuple(columns), ids
        self.values = _values(path, self.columns, ids)
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
            text = id_text(own[second], self.ids)
            raise self.row(second).error(f"id {text} is already in line {line}; keep one of the two")
        check_ids(ids, index, values, self.path, self.ids)
        return first[np.searchsorted(values, ids)], len(own) - len(ids)


def check_ids(ids: np.ndarray, index: Path, there: np.ndarray, path: Path, texts: TextIds | None = None) -> None:
    """Raise UserError unless every id of the file `index` is among those of the file `path`."""
    lacking = np.setdiff1d(ids, there)
    if len(lacking):
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        first = id_text(lacking[0], texts)
        raise UserError(f"{path}: no line for id {first}{more}, which {index.name} has; restore both files")


def id_text(number: int, texts: TextIds | None) -> str:
    """An id as its file has it."""
    return str(number) if texts is None else texts.text(number)


def _values(path: Path, columns: tuple[str, ...], ids: TextIds | None) -> np.ndarray:
    """Parsed by pandas where every cell is a plain number, else row by row, which raises for the first wrong cell."""
    names = [*columns, "more"]  # one column too many, to see lines that are too long
    content = read_text(path)
    if ids:
        lines = (line.split(maxsplit=1) for line in content.splitlines())
        content = "\n".join(" ".join((str(ids.number(cells[0])), *cells[1:])) for cells in lines if cells)
    try:
        frame = pd.read_csv(
            io.StringIO(content), sep=r"\s+", header=None, names=names, index_col=False, dtype=np.float64,
            quoting=csv.QUOTE_NONE,
        )  # fmt: skip
        values = frame[list(columns)].to_numpy()
        if frame["more"].isna().all() and (np.abs(values) < LARGEST).all():  # false for NaN too
            return values
    except ValueError:  # pandas' errors are such
        pass
    first = columns[0] if ids else None
    rows = [
        [ids.number(row.text(column)) if ids and column == first else row.number(column) for column in columns]
        for row in read_spaced(path, columns)
    ]
    return np.array(rows, np.float64).reshape(-1, len(columns))
