"""The page in a browser: Chromium runs a script that uses the page, and returns what it saw."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from report.html import Section, Table, write_report
from report.tables import TableText

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]
ROWS = (("b", "1,234"), ("a", "50.0 ± 1.0"), ("c", "–"), ("d", "9"), ("e", "-3.5e-05"), ("f10", "7"), ("f9", "8"))
ACTIONS = """
const seen = {};
const names = (table) => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
const table = document.querySelector("table");
const [byName, byValue] = table.querySelectorAll("th button");
seen.sorted = [byValue, byValue, byValue, byName, byName].map((header) => (header.click(), names(table).join(" ")));
seen.marked = [...table.querySelectorAll("thead th")].map((header) => header.getAttribute("aria-sort"));
const filter = document.querySelector("input[type=search]");
filter.value = "F 7";
filter.dispatchEvent(new Event("input"));
seen.filtered = names(table);
seen.count = document.querySelector("[role=status]").textContent;
seen.width = [document.documentElement.scrollWidth, innerWidth];
"""


def browse(page: Path, *flags: str) -> str:
    """The page's content after its scripts ran."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", *flags]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60)
    return done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sections: list[Section] = [Table(TableText(("", "value"), ROWS), "Results")]
    return write_report(tmp_path_factory.mktemp("page") / "report.html", "Title", sections)


@pytest.fixture(scope="module")
def seen(page: Path) -> dict[str, Any]:
    """What the actions saw. They are added to a copy of the page without its policy, which would forbid them."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
    report = "document.body.append(Object.assign(document.createElement('pre'), {id: 'seen', textContent: %s}));"
    failed = f"try {{ {ACTIONS} {report % 'JSON.stringify(seen)'} }} catch (e) {{ {report % 'e.stack'} }}"
    copy = page.with_name("copy.html")
    copy.write_text(text.replace("</body>", f"<script>{failed}</script></body>"))
    found = re.search(r'<pre id="seen">(.*?)</pre>', browse(copy, "--window-size=500,900"), re.DOTALL)
    assert found, "the script did not end"
    content: dict[str, Any] = json.loads(unescape(found[1]))
    return content


def test_the_policy_lets_the_own_script_run(page: Path) -> None:
    assert (
        "<button" in browse(page) and "<button" not in page.read_text().partition("<body>")[2].partition("<script>")[0]
    )


def test_tables_sort_and_filter(seen: dict[str, Any]) -> None:
    assert seen["sorted"] == [
        "e f10 f9 d a b c", "b a d f9 f10 e c", "b a c d e f10 f9", "a b c d e f9 f10", "f10 f9 e d c b a"
    ]  # fmt: skip
    assert seen["marked"] == ["descending", None]
    assert seen["filtered"] == ["f10"] and seen["count"] == "1 of 7 rows"


def test_no_sideways_scrolling_at_phone_width(seen: dict[str, Any]) -> None:
    assert seen["width"][0] <= seen["width"][1]
