"""Tables of results, averaged over seeds, as JSON, CSV, Markdown and LaTeX."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from common.errors import printable
from report.files import json_text, write_atomic
from report.names import interval, is_fraction, number, pretty, with_std

Record = Mapping[str, Any]
"""The results of one run: "row" (the name of the method or setting), optionally "seed", and metrics by key."""


@dataclass(frozen=True)
class TableText:
    """A table as formatted text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """(row, column) to a note on that cell, such as its interval; for HTML only."""


def average(records: Sequence[Record]) -> pd.DataFrame:
    """One line per value of "row", in order of appearance: `seeds`, and `<key>`, `<key>_std` per numeric key.

    The mean is over the runs that have a finite value; std is the sample standard deviation (n - 1), nan for one run.
    A value that is not a number is kept if all runs of the row agree, else left empty. Raises ValueError without
    records, or for a record without "row".
    """
    if not records or any("row" not in record for record in records):
        raise ValueError("a table needs records, each with a 'row'")
    keys = [key for key in dict.fromkeys(key for record in records for key in record) if key not in ("row", "seed")]
    lines = []
    for name in dict.fromkeys(record["row"] for record in records):
        runs = [record for record in records if record["row"] == name]
        line: dict[str, Any] = {"row": name, "seeds": len(runs)}
        for key in keys:
            line |= _cell(key, [run[key] for run in runs if run.get(key) is not None], _is_numeric(key, records))
        lines.append(line)
    return pd.DataFrame(lines)


def table_text(records: Sequence[Record], keys: Sequence[str] | None = None) -> TableText:
    """The averaged table as text: fractions in percent with one decimal, mean ± std if a row has several runs.

    `keys` selects and orders the columns; default: all. An interval (`<key>/low`, `<key>/high`) without columns of its
    own is a note on the value, if that is of one run: means of bounds are no bounds of the mean.
    """
    frame = average(records)
    found = [key for key in frame.columns if key not in ("row", "seeds") and f"{key}_std" in frame.columns]
    other = [key for key in frame.columns if key not in ("row", "seeds", *found, *(f"{key}_std" for key in found))]
    shown = [key for key in (keys if keys is not None else [*other, *found]) if key in frame.columns]
    several = bool((frame["seeds"] > 1).any())
    header = ["", *(_title(key) for key in shown), *(["seeds"] if several else [])]
    rows, notes = [], {}
    for place, record in enumerate(frame.to_dict("records")):
        line = {str(key): value for key, value in record.items()}
        cells = [str(line["row"]), *(_shown(line, key) for key in shown)]
        rows.append((*cells, *([str(line["seeds"])] if several else [])))
        for column, key in enumerate(shown, start=1):
            if line["seeds"] == 1 and f"{key}/low" not in shown and (note := interval(line, key)):
                notes[place, column] = note
    return TableText(tuple(header), tuple(rows), notes)


def write_tables(records: Sequence[Record], out_stem: Path, keys: Sequence[str] | None = None) -> list[Path]:
    """Write `<out_stem>.json` (averages and single runs), `.csv` (averages) and `.md` (formatted, columns `keys`).

    Atomic writes. Returns the three paths. Raises ValueError as `average` does.
    """
    frame = average(records)
    texts = {
        ".json": json_text({"rows": frame.to_dict("records"), "runs": records}),
        ".csv": frame.to_csv(index=False),
        ".md": markdown(table_text(records, keys)),
    }
    return [write_atomic(out_stem.with_name(out_stem.name + end), text) for end, text in texts.items()]


def present(keys: Sequence[str], records: Sequence[Record]) -> list[str]:
    """Those of the keys that any record has, in their order."""
    return [key for key in keys if any(key in record for record in records)]


def markdown(table: TableText) -> str:
    """The table as GitHub Markdown, numbers right-aligned."""

    def line(cells: Sequence[str]) -> str:
        safe = (printable(cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")) for cell in cells)
        return f"| {' | '.join(safe)} |"

    rule = ["---", *["---:"] * (len(table.header) - 1)]
    return "\n".join([line(table.header), line(rule), *(line(row) for row in table.rows)]) + "\n"


def latex(table: TableText) -> str:
    """The table as a LaTeX tabular (booktabs rules), numbers right-aligned."""
    cells = [[printable(cell) for cell in row] for row in (table.header, *table.rows)]
    frame = pd.DataFrame(cells[1:], columns=cells[0])
    return frame.to_latex(index=False, escape=True, column_format="l" + "r" * (len(table.header) - 1))


def _is_numeric(key: str, records: Sequence[Record]) -> bool:
    values = [record[key] for record in records if record.get(key) is not None]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _cell(key: str, values: Sequence[Any], numeric: bool) -> dict[str, Any]:
    if not numeric:
        return {key: values[0] if values and all(value == values[0] for value in values) else None}
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite:
        return {key: math.nan, f"{key}_std": math.nan}
    # Not from pandas: its rounding gives equal values a std of 3e-17, statistics gives exactly 0.
    return {key: mean(finite), f"{key}_std": stdev(finite) if len(finite) > 1 else math.nan}


def _title(key: str) -> str:
    return f"{pretty(key)} (%)" if is_fraction(key) else pretty(key)


def _shown(line: Record, key: str) -> str:
    value, std = line[key], line.get(f"{key}_std")
    if std is None:
        return "" if value is None or value != value else str(value)
    return number(value, is_fraction(key)) if math.isnan(std) else with_std(value, std, is_fraction(key))
