"""The page: it parses, carries everything in itself, and escapes what it is given."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from common.errors import UserError
from report.files import png_bytes
from report.html import Card, Cards, Code, Figure, Table, Text, provenance_sections, write_report
from report.tables import TableText

PNG = png_bytes(Image.new("RGB", (40, 20), "red"))
EVIL = "<script>alert('x')</script> & \"quoted\""
VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Checks that tags close in order, and notes tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.texts.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    (tmp_path / "figure.png").write_bytes(PNG)
    sections = [
        Cards([Card(f"label {EVIL}", f"value {EVIL}", f"note {EVIL}")]),
        Text(f"first {EVIL}\n\n\n\nsecond", "Summary"),
        Table(TableText((f"head {EVIL}", "b"), ((f"cell {EVIL}", "2"), ("x", "–"))), "Results", f"caption {EVIL}"),
        Figure(tmp_path / "figure.png", f"title {EVIL}", f"figure {EVIL}"),
        Figure(PNG, caption="a red image"),
        Code(f"a: <b>\n  c: {EVIL}", f"Config {EVIL}"),
        *provenance_sections({"torch": "2", "folder": Path("a") / EVIL}, "epochs: 2", "Versions"),
    ]
    path = write_report(tmp_path / "out" / "report.html", f"Report {EVIL}", sections)
    return Page(path.read_text())


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    sources = [value or "" for _, attributes in page.tags for name, value in attributes.items() if name == "src"]
    assert len(sources) == 2 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert base64.b64decode(sources[0].partition(",")[2]) == PNG
    links = [a["href"] or "" for a in [*page.all("a"), *page.all("link")]]
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert not page.all("script") and not page.all("iframe")
    template = (Path("report") / "template.html.j2").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", template)


def test_everything_given_is_text(page: Page) -> None:
    shown = "\n".join(page.texts)
    for start in (
        "Report",
        "label",
        "value",
        "note",
        "first",
        "head",
        "cell",
        "caption",
        "figure",
        "Config",
    ):
        assert f"{start} {EVIL}" in shown
    assert page.all("img")[0]["alt"] == f"figure {EVIL}"
    assert f"a: <b>\n  c: {EVIL}" in page.texts
    assert page.texts.count("second") == 1 and len(page.all("p")) == 3
    assert json.dumps({"torch": "2", "folder": f"a/{EVIL}"}, indent=2) in page.texts


def test_structure(page: Page) -> None:
    assert [image["width"] for image in page.all("img")] == ["40", "40"]
    assert len(page.all("details")) == 3 and {"Versions", "Config", "epochs: 2"} <= set(page.texts)
    anchors = [(a["href"] or "")[1:] for a in page.all("a")]
    assert anchors == [heading["id"] for heading in page.all("h2")] == ["s1", "s2", "s3"]
    assert {a["scope"] for a in page.all("th")} == {"col", "row"}
    assert page.all("html")[0]["lang"] == "en" and any(m.get("name") == "viewport" for m in page.all("meta"))


def test_figures_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read figure .*no\.png"):
        write_report(tmp_path / "r.html", "T", [Figure(tmp_path / "no.png")])
    with pytest.raises(UserError, match="given as bytes is not a PNG"):
        write_report(tmp_path / "r.html", "T", [Figure(b"GIF89a")])
    assert not list(tmp_path.iterdir())


def test_an_empty_report(tmp_path: Path) -> None:
    assert Page(write_report(tmp_path / "r.html", "T", []).read_text()).all("h1")
