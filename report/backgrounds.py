"""The report of ImageNet-9: a table of its sets, and what follows from them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report.html import Card, Cards, Code, Section, Table, write_report
from report.names import number, pretty
from report.tables import table_text, write_tables

COLUMNS = ("accuracy", "stage_1/accuracy", "mask_iou", "kept_share", "empty_share", "count/images")
"""The figures of the table for people; the JSON and the CSV hold all."""


def write_background_report(
    out: Path,
    title: str,
    records: Sequence[Mapping[str, Any]],
    summary: Mapping[str, float],
    details: Mapping[str, Any],
    config: str,
) -> Path:
    """Write table.{json,csv,md} and report.html to `out`; the report's path.

    `records`: one per set: "row", figures. `summary`: shares and differences of shares by name.
    """
    keys = [key for key in COLUMNS if any(key in record for record in records)]
    write_tables(records, out / "table", keys=keys)
    caption = "BG-gap: accuracy on mixed_same minus accuracy on mixed_rand, percentage points."
    sections: list[Section] = [
        Cards([Card(pretty(key), f"{number(value, True)} %") for key, value in summary.items()]),
        Table(table_text(records, keys=keys), title="By set", caption=caption),
        Code(json.dumps(details, indent=2, default=str), title="Provenance"),
        Code(config, title="Config"),
    ]
    return write_report(out / "report.html", title, sections)
