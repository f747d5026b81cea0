"""The index file of a user's own data: CSV as spreadsheets and pandas write it."""

import codecs
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.errors import UserError
from datasets.formats.tables import IndexRow

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""Byte order mark -> encoding; without a mark it is UTF-8."""


def read_own_table(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[IndexRow]:
    """Rows with the cells of `columns` and of those of `optional` that the header has; other columns are ignored.

    Comma, semicolon or tab, by the header; UTF-8 or UTF-16 with a byte order mark; names of columns in any case, blanks
    around cells do not matter, empty lines are skipped. Raises UserError naming file and line.
    """
    lines = _text(path).splitlines()
    delimiter, header = _header(path, lines[0] if lines else "", columns)
    wanted = [name for name in (*columns, *optional) if name in header]
    reader = csv.reader(lines[1:], delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            row = IndexRow(path, reader.line_num + 1, {})
            if len(cells) != len(header):
                raise row.error(f"{len(cells)} cells, but the header has {len(header)}; correct it")
            row.cells.update((name, cells[header.index(name)].strip()) for name in wanted)
            yield row
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num + 1}: not valid CSV ({error}); correct it") from None


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        encoding = next((name for mark, name in ENCODINGS.items() if content.startswith(mark)), "utf-8")
        return content.decode(encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({type(error).__name__}); save it as UTF-8") from None


def _header(path: Path, line: str, columns: Sequence[str]) -> tuple[str, list[str]]:
    """The delimiter and the names of the columns, in lower case."""
    for delimiter in DELIMITERS:
        names = [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter), [])]
        if set(columns) <= set(names):
            if doubled := [name for name in columns if names.count(name) > 1]:
                raise UserError(f"{path}: two columns are named {doubled[0]}; remove one")
            return delimiter, names
    kinds = ", ".join(DELIMITERS.values())
    raise UserError(f"{path}: its first line must name the columns {', '.join(columns)}, separated by one of {kinds}")
