"""One self-contained report.html: no network, no scripts, images inside."""

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias

from jinja2 import Environment, StrictUndefined

from common.errors import UserError
from report.files import write_atomic
from report.tables import TableText

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Text:
    """Paragraphs of plain text, separated by an empty line."""

    text: str
    title: str = ""
    kind: ClassVar[str] = "text"

    @property
    def paragraphs(self) -> list[str]:
        """The non-empty paragraphs."""
        return [part.strip() for part in self.text.split("\n\n") if part.strip()]


@dataclass(frozen=True)
class Card:
    """One figure of the summary."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Cards:
    """The few metrics that matter, large."""

    cards: Sequence[Card]
    title: str = ""
    kind: ClassVar[str] = "cards"


@dataclass(frozen=True)
class Table:
    """A table; the first column names the row, the others are right-aligned."""

    table: TableText
    title: str = ""
    caption: str = ""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Figure:
    """A PNG, from a file or as bytes."""

    png: Path | bytes
    title: str = ""
    caption: str = ""
    alt: str = ""
    """For those who cannot see it; without it the caption or the title serves."""
    max_width: int = 0
    """Pixels; 0: as wide as the page."""
    kind: ClassVar[str] = "figure"

    @property
    def content(self) -> bytes:
        """The bytes of the PNG. Raises UserError naming a file that is missing or no PNG."""
        source = self.png if isinstance(self.png, Path) else "given as bytes"
        try:
            content = self.png.read_bytes() if isinstance(self.png, Path) else self.png
        except OSError as error:
            raise UserError(f"cannot read figure {source}: {error.strerror or error}") from None
        if not content.startswith(PNG_MAGIC):
            raise UserError(f"figure {source} is no PNG")
        return content

    @property
    def data_uri(self) -> str:
        """The PNG as a data: address."""
        return "data:image/png;base64," + base64.b64encode(self.content).decode()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the PNG's header, so that the page does not jump while it loads."""
        width, height = struct.unpack(">II", self.content[16:24])
        return width, height


@dataclass(frozen=True)
class Code:
    """A text shown as it is (a config, versions), folded away unless `opened`."""

    text: str
    title: str = ""
    opened: bool = False
    kind: ClassVar[str] = "code"


Section: TypeAlias = Text | Cards | Table | Figure | Code


def write_report(path: Path, title: str, sections: Sequence[Section], subtitle: str = "") -> Path:
    """Write the page atomically; everything given is escaped. Sections without a title go on under the one before.

    Raises UserError for a figure that cannot be read or a page that cannot be written.
    """
    template = (Path(__file__).parent / "template.html.j2").read_text()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(title=title, subtitle=subtitle, sections=sections)
    return write_atomic(path, page)
