"""Reading the index files of data sets: every cell checked, every complaint one line that names its place."""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from common.errors import UserError


@dataclass(frozen=True)
class IndexRow:
    """One line of an index file."""

    path: Path
    line: int
    cells: dict[str, str]

    def error(self, message: str) -> UserError:
        """A UserError that opens with this line's place."""
        return UserError(f"{self.path} line {self.line}: {message}")

    def text(self, column: str) -> str:
        """A cell that is not empty."""
        if not self.cells[column]:
            raise self.error(f"column {column} is empty; restore the file as published")
        return self.cells[column]

    def file(self, column: str) -> str:
        """A cell that names a file below the folder it belongs to."""
        cell = self.text(column)
        if leaves_folder(cell):
            raise self.error(f"column {column} is {cell!r}, which leaves its folder; restore the file as published")
        return cell

    def integer(self, column: str, allowed: Iterable[int] | None = None) -> int:
        """A whole number, one of `allowed` if given."""
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
        """A number of pixels, which float32 can hold."""
        cell = self.text(column)
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not abs(value) < 1 << 24:  # so is nan not
            raise self.error(f"column {column} is {cell!r}, not a number of pixels; correct it")
        return value


def leaves_folder(name: str) -> bool:
    """Whether a path is not one of a file below the folder it is joined to."""
    return PurePath(name).is_absolute() or ".." in PurePath(name).parts or "\0" in name


def read_spaced(path: Path, columns: Sequence[str]) -> Iterator[IndexRow]:
    """Lines of white-space separated cells without a header; the last column takes the rest of its line."""
    for number, line in enumerate(_text(path).splitlines(), start=1):
        cells = line.split(maxsplit=len(columns) - 1)
        if not cells:
            continue
        cells[-1] = cells[-1].rstrip()
        row = IndexRow(path, number, dict(zip(columns, cells, strict=False)))
        if len(cells) < len(columns):
            raise row.error(f"{len(cells)} columns, not {len(columns)} ({' '.join(columns)}); restore the file")
        yield row


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[IndexRow]:
    """Rows of a CSV file with a header that has at least `columns`."""
    reader = csv.DictReader(_text(path).splitlines(), restval="")
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        missing = [name for name in columns if name not in header]
        if missing:
            raise UserError(f"{path}: no column {missing[0]}; its header must have {', '.join(columns)}")
        reader.fieldnames = header
        for cells in reader:
            yield IndexRow(path, reader.line_num, {name: cells[name].strip() for name in columns})
    except csv.Error as error:
        raise UserError(
            f"{path} is no CSV after line {reader.line_num} ({error}); restore the file as published"
        ) from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; unpack the published archive there, or correct data.root") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({type(error).__name__}); restore the file as published") from None


def by_id(rows: Iterable[IndexRow], column: str) -> dict[int, IndexRow]:
    """Rows by their id, which must be a whole number and appear once."""
    found: dict[int, IndexRow] = {}
    for row in rows:
        key = row.integer(column)
        if key in found:
            raise row.error(f"{column} {key} stands already in line {found[key].line}; keep one of the two")
        found[key] = row
    return found


def same_ids(first: Path, first_ids: Iterable[int], second: Path, second_ids: Iterable[int]) -> None:
    """Raise a UserError unless two index files speak of the same ids."""
    a, b = set(first_ids), set(second_ids)
    for here, there, lacking in ((first, second, a - b), (second, first, b - a)):
        if lacking:
            more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
            raise UserError(f"{there}: no line for id {min(lacking)}{more}, which {here.name} has; restore both files")
