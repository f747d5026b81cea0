"""Index files of data sets: every cell is checked, every error is one line that names file and line."""

import csv
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from common.errors import UserError
from common.files import LONGEST_NAME, path_problem, read_file

T = TypeVar("T")

LARGEST = 1 << 24
"""Numbers of an index file are smaller, so that float32 holds integers exactly."""


@dataclass(frozen=True)
class IndexRow:
    """One line of an index file. The methods return a checked cell and raise UserError."""

    path: Path
    line: int
    cells: dict[str, str]

    def error(self, message: str) -> UserError:
        """A UserError that begins with the file and the line."""
        return UserError(f"{self.path} line {self.line}: {message}")

    def text(self, column: str) -> str:
        """A cell that is not empty."""
        if not self.cells[column]:
            raise self.error(f"column {column} is empty; restore the file as published")
        return self.cells[column]

    def file(self, column: str) -> str:
        """A path that stays below the folder it is relative to."""
        cell = self.text(column)
        if leaves_folder(cell):
            raise self.error(
                f"column {column} is {cell!r}, which leaves its folder or is no path; restore the file as published"
            )
        return cell

    def integer(self, column: str, allowed: Iterable[int] | None = None) -> int:
        """An integer, one of `allowed` if given."""
        cell = self.text(column)
        try:
            value = int(cell)
        except ValueError:
            raise self.error(f"column {column} is {cell!r}, not a whole number; correct it") from None
        if allowed is not None and value not in allowed:
            known = ", ".join(map(str, allowed)) if isinstance(allowed, tuple) else "one of those in the index"
            raise self.error(f"column {column} is {value}; it must be {known}")
        return value

    def number(self, column: str) -> float:
        """A finite number of pixels below `LARGEST`."""
        cell = self.text(column)
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not abs(value) < LARGEST:  # false for NaN too
            raise self.error(f"column {column} is {cell!r}, not a number of pixels; correct it")
        return value


def leaves_folder(name: str) -> bool:
    """Whether a path, joined to a folder, may name a file outside it (or cannot be a path)."""
    outside = os.path.isabs(name) or (".." in name and ".." in PurePath(name).parts)
    return outside or "\0" in name or (len(name) > LONGEST_NAME // 4 and bool(path_problem(name)))


def read_spaced(path: Path, columns: Sequence[str]) -> Iterator[IndexRow]:
    """Rows of whitespace-separated cells, no header; the last column takes the rest of the line."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        cells = line.split(maxsplit=len(columns) - 1)
        if not cells:
            continue
        cells[-1] = cells[-1].rstrip()
        row = IndexRow(path, number, dict(zip(columns, cells, strict=False)))
        if len(cells) < len(columns):
            raise row.error(f"{len(cells)} columns, not {len(columns)} ({' '.join(columns)}); restore the file")
        yield row


def read_csv(
    path: Path, columns: Sequence[str], *others: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[IndexRow]:
    """Rows of a CSV file whose header has at least `columns`, or those of one of `others`: other names for the same.

    Cells are always found by the names in `columns`; also those of the `optional` columns that the header has.
    """
    reader = csv.DictReader(read_text(path).splitlines(), restval="")
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        found = next((names for names in (columns, *others) if set(names) <= set(header)), None)
        if found is None:
            missing = next(name for name in columns if name not in header)
            known = " or ".join(", ".join(names) for names in (columns, *others))
            raise UserError(f"{path}: no column {missing}; its header must have {known}")
        if twice := next((name for name in (*found, *optional) if header.count(name) > 1), None):
            raise UserError(f"{path}: column {twice} appears twice in the header; remove one of them")
        reader.fieldnames = header
        extra = [name for name in optional if name in header]
        for cells in reader:
            ours = {name: cells[theirs].strip() for name, theirs in zip(columns, found, strict=True)}
            yield IndexRow(path, reader.line_num, ours | {name: cells[name].strip() for name in extra})
    except csv.Error as error:
        problem = f"{path} is not valid CSV after line {reader.line_num} ({error})"
        raise UserError(f"{problem}; restore the file as published") from None


def read_text(path: Path) -> str:
    """The whole file, UTF-8, without a byte order mark. Raises UserError."""
    try:
        return read_file(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; unpack the published archive there, or correct data.root") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(f"cannot read {path} ({reason}); restore the file as published") from None


def by_id(rows: Iterable[IndexRow], column: str) -> dict[int, IndexRow]:
    """Rows by id: an integer that appears once."""
    return _by_cell(rows, column, IndexRow.integer)


def by_text(rows: Iterable[IndexRow], column: str) -> dict[str, IndexRow]:
    """Rows by the text of a column, which is not empty and appears once."""
    return _by_cell(rows, column, IndexRow.text)


def _by_cell(rows: Iterable[IndexRow], column: str, cell: Callable[[IndexRow, str], T]) -> dict[T, IndexRow]:
    found: dict[T, IndexRow] = {}
    for row in rows:
        key = cell(row, column)
        if key in found:
            raise row.error(f"{column} {key} is already in line {found[key].line}; keep one of the two")
        found[key] = row
    return found
