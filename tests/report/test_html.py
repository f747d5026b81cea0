"""The page: it parses, carries everything in itself, and escapes what it is given."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import report.html
from common.errors import UserError
from report.files import png_bytes
from report.html import Card, Cards, Code, Figure, Table, Text, provenance_sections, write_report
from report.tables import TableText

PNG = png_bytes(Image.new("RGB", (40, 20), "red"))
EVIL = "<script>alert('x')</script> & \"quoted\""
REPORT = Path(report.html.__file__).parent
VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Checks that tags close in order, and notes tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.raw: dict[str, str] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script"):
            self.raw[self.open[-1]] = data
        elif data.strip():
            self.texts.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    (tmp_path / "figure.png").write_bytes(PNG)
    sections = [
        Cards([Card(f"label {EVIL}", f"value {EVIL}", f"note {EVIL}")]),
        Text(f"first {EVIL}\n\n\n\nsecond", "Summary"),
        Table(
            TableText(("", f"head {EVIL}", "b"), ((f"cell {EVIL}", "2", "3"), ("x", "–", ""))),
            "Results",
            f"caption {EVIL}",
        ),
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
    assert not page.all("iframe") and not any(script.get("src") for script in page.all("script"))
    for name in ("template.html.j2", "page.css", "page.js"):
        assert not re.search(r"https?:|//[a-z]|@import|url\(|innerHTML|fetch\(", (REPORT / name).read_text()), name


def test_the_policy_allows_this_style_this_script_and_embedded_images_only(page: Page) -> None:
    (policy,) = (meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    hashes = {
        tag: base64.b64encode(hashlib.sha256(page.raw[tag].encode()).digest()).decode() for tag in ("style", "script")
    }
    assert (policy or "").split("; ") == [
        "default-src 'none'", "img-src data:", f"style-src 'sha256-{hashes['style']}'",
        f"script-src 'sha256-{hashes['script']}'", "base-uri 'none'", "form-action 'none'",
    ]  # fmt: skip
    for _, attributes in page.tags:  # both would need 'unsafe-inline'
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


def test_images_tables_and_headers_have_names(page: Page) -> None:
    assert all(image["alt"] for image in page.all("img"))
    assert [table["aria-label"] for table in page.all("table")] == ["Results"]
    assert len(page.all("th")) == 3 + 2 and "name" in page.texts  # a column without a header is the names


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    full = colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])
    values = [int(full[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_is_aa_in_light_and_dark() -> None:
    palettes = re.findall(r":root \{(.*?)\}", (REPORT / "page.css").read_text(), re.DOTALL)
    light, dark = (dict(re.findall(r"--(\w+): (#\w+)", palette)) for palette in palettes[:2])
    assert luminance(light["paper"]) > 0.9 and luminance(dark["paper"]) < 0.05
    for palette in (light, dark):
        for behind in ("paper", "wash"):
            ratios = {}
            for name, least in {"ink": 4.5, "muted": 4.5, "accent": 4.5, "good": 4.5, "bad": 4.5, "line": 3}.items():
                low, high = sorted(luminance(palette[key]) for key in (name, behind))
                ratios[name] = (high + 0.05) / (low + 0.05) / least
            assert min(ratios.values()) >= 1, (behind, ratios)


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
    assert page.all("img")[0]["alt"] == f"title {EVIL}: figure {EVIL}"
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
    with pytest.raises(UserError, match=r"cannot read image .*no\.png"):
        write_report(tmp_path / "r.html", "T", [Figure(tmp_path / "no.png")])
    with pytest.raises(UserError, match="given as bytes is not a PNG"):
        write_report(tmp_path / "r.html", "T", [Figure(b"GIF89a")])
    assert not list(tmp_path.iterdir())


def test_an_empty_report(tmp_path: Path) -> None:
    assert Page(write_report(tmp_path / "r.html", "T", []).read_text()).all("h1")
