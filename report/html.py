"""One self-contained report.html: images, style and script embedded, no network access; readable without scripts."""

import base64
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from jinja2 import Environment, StrictUndefined

from common.errors import UserError
from report.files import png_layout, write_atomic
from report.tables import TableText

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Text:
    """Paragraphs of plain text, separated by empty lines."""

    text: str
    title: str = ""
    kind: ClassVar[str] = "text"

    @property
    def paragraphs(self) -> list[str]:
        """The non-empty paragraphs."""
        return [part.strip() for part in self.text.split("\n\n") if part.strip()]


@dataclass(frozen=True)
class Card:
    """One value of the summary."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Cards:
    """The main metrics, in large type."""

    cards: Sequence[Card]
    title: str = ""
    kind: ClassVar[str] = "cards"


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows, the others are right-aligned."""

    table: TableText
    title: str = ""
    caption: str = ""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Panel:
    """The values of one panel of curves."""

    title: str
    table: TableText
    place: str
    """As JSON: the panel's place on the image (see `curves`), and the x of every row."""


@dataclass(frozen=True)
class Figure:
    """A PNG, from a file or as bytes."""

    png: Path | bytes
    title: str = ""
    caption: str = ""
    kind: ClassVar[str] = "figure"

    @property
    def content(self) -> bytes:
        """The bytes of the PNG. Raises UserError that names a file that is missing or not a PNG."""
        source = self.png if isinstance(self.png, Path) else "given as bytes"
        try:
            content = self.png.read_bytes() if isinstance(self.png, Path) else self.png
        except OSError as error:
            raise UserError(f"cannot read image {source}: {error.strerror or error}") from None
        if not content.startswith(PNG_MAGIC):
            raise UserError(f"image {source} is not a PNG")
        return content

    @property
    def data_uri(self) -> str:
        """The PNG as a data: URI."""
        return "data:image/png;base64," + base64.b64encode(self.content).decode()

    @property
    def layout(self) -> str:
        """Where the tiles of a contact sheet are, as JSON; empty for another image."""
        layout = png_layout(self.content) or {}
        return json.dumps(layout) if "columns" in layout else ""

    @property
    def panels(self) -> list[Panel]:
        """The values of curves; empty for another image."""
        return [
            Panel(
                panel["title"],
                TableText(tuple(panel["header"]), tuple(map(tuple, panel["rows"]))),
                json.dumps({key: panel[key] for key in ("box", "limits", "at")}),
            )
            for panel in (png_layout(self.content) or {}).get("panels", [])
        ]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the PNG header; with them the page layout is fixed before images load."""
        width, height = struct.unpack(">II", self.content[16:24])
        return width, height


@dataclass(frozen=True)
class Code:
    """Preformatted text such as a config, collapsed."""

    text: str
    title: str = ""
    kind: ClassVar[str] = "code"


Section: TypeAlias = Text | Cards | Table | Figure | Code


def provenance_sections(details: Mapping[str, Any], config: str | None, title: str = "Provenance") -> list[Section]:
    """The last sections of a report: what was measured, as JSON, and the config (YAML), if there is one."""
    measured = Code(json.dumps(details, indent=2, default=str), title=title)
    return [measured] if config is None else [measured, Code(config, title="Config")]


def write_report(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page atomically, with all texts escaped. A section without a title continues the one before.

    Raises UserError for a figure that cannot be read or a page that cannot be written.
    """
    folder = Path(__file__).parent
    style, script = ((folder / name).read_text() for name in ("page.css", "page.js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "template.html.j2").read_text())
    embedded = {"policy": _policy(style, script), "style": style, "script": script}
    return write_atomic(path, template.render(title=title, sections=sections, **embedded))


def _policy(style: str, script: str) -> str:
    """The content security policy: this style, this script and embedded images, nothing else; no network."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
