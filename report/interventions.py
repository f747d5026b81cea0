"""The report of parts taken away one by one: a table, and a picture of what went."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report.evaluation import HEADLINES
from report.html import Code, Figure, Section, Table, write_report
from report.tables import table_text, write_tables

COLUMNS = (*HEADLINES, "empty_share", "share_of_answers_changed")
"""The figures of the table for people; the JSON and the CSV hold all."""


def write_removal_report(
    out: Path,
    title: str,
    records: Sequence[Mapping[str, Any]],
    sheet: Path,
    details: Mapping[str, Any],
    config: str,
) -> Path:
    """Write table.{json,csv,md} and report.html to `out`; the report's path.

    `records`: one per setting, the unmodified model first: "row", "removed_parts", figures.
    """
    keys = [key for key in COLUMNS if key in records[0]]
    write_tables(records, out / "table", keys=keys)
    sections: list[Section] = [
        Table(
            table_text(records, keys=keys),
            title="Without each part",
            caption="Empty: images of which nothing is left. All other figures, of groups too: table.json, table.csv.",
        ),
        Figure(
            sheet,
            title="What went",
            caption="Grey was never shown to the classifier; colour went, and tells the part. A cross: wrong answer.",
        ),
        Code(json.dumps(details, indent=2, default=str), title="Provenance"),
        Code(config, title="Config"),
    ]
    return write_report(out / "report.html", title, sections)
