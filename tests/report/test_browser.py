"""The page in a browser: Chromium runs a script that uses the page, and returns what it saw."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL.ImageColor import getrgb

from report.curves import compare_runs
from report.examples import Example, example_sheet, failure_sheet
from report.html import Figure, Section, Table, write_report
from report.style import HIDDEN
from report.tables import TableText

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]
RED, GREEN = (200, 0, 0), (0, 200, 0)
EVIL = "<img src=x onerror=alert(1)>"
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
const [sheet, failures] = document.querySelectorAll("figure");
const all = (scope, what) => [...scope.querySelectorAll(what)];
const press = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const pixel = (canvas) => [...canvas.getContext("2d").getImageData(5, 5, 1, 1).data].slice(0, 3);
seen.views = all(sheet, ".tools button").map((button) => button.textContent);
seen.hidden = [sheet.querySelector(".grid").hidden, sheet.querySelector(".zoom").hidden];
const tiles = () => all(sheet, ".grid canvas").map(pixel);
seen.pixels = ["1", "2", "1"].map((key) => (press(sheet.querySelector(".zoom"), key), tiles()));
seen.pressed = all(sheet, "[aria-pressed=true]").map((button) => button.textContent);
seen.labels = all(sheet, ".grid canvas").map((canvas) => canvas.getAttribute("aria-label"));
const menus = all(failures, "select");
seen.menus = menus.map((menu) => [menu.name, ...[...menu.options].map((option) => option.value)]);
menus[0].value = menus[0].options[1].value;
menus[0].dispatchEvent(new Event("change"));
seen.failures = all(failures, ".grid button span").map((span) => span.textContent);
const dialog = document.querySelector("dialog");
const large = () => [dialog.open, dialog.getAttribute("aria-label"), pixel(dialog.querySelector("canvas"))];
sheet.querySelector(".grid button").click();
seen.large = [large()];
const next = all(dialog, "button").find((button) => button.textContent.startsWith("next"));
next.focus();
next.click();
seen.focus = document.activeElement.textContent;
for (const key of ["2", "ArrowLeft"]) seen.large.push((press(document.activeElement, key), large()));
all(dialog, "button")[0].click();
press(sheet.querySelector(".grid"), "0");
sheet.querySelector(".zoom").click();
seen.whole = [dialog.open, dialog.querySelector("img").naturalWidth];
dialog.close();
const curves = document.querySelector("figure:has([data-panel])");
const [{ box, limits, at }] = all(curves, "[data-panel]").map((table) => JSON.parse(table.dataset.panel));
const image = curves.querySelector("img");
const hover = (x, y) => {
  const frame = image.getBoundingClientRect();
  const scale = frame.width / image.naturalWidth;
  const place = { clientX: frame.left + x * scale, clientY: frame.top + y * scale, bubbles: true };
  image.dispatchEvent(new PointerEvent("pointermove", place));
  const tip = curves.querySelector(".values");
  return tip.hidden ? null : tip.textContent.split("\\n");
};
const across = (value) => box[0] + ((value - limits[0]) / (limits[1] - limits[0])) * (box[2] - box[0]);
seen.hover = [hover(across(1.2), box[1] + 5), hover(across(2.6), box[1] + 5), hover(2, 2)];
seen.width = [document.documentElement.scrollWidth, innerWidth];
"""


def browse(page: Path, *flags: str) -> str:
    """The page's content after its scripts ran."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *flags]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    return done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    examples = [flat(RED, "a", "a", "a on b"), flat(GREEN, "b", "a", "b on b"), flat(RED, "b", "a", EVIL)]
    history = [{"epoch": epoch, "val/accuracy": epoch / 4} for epoch in (1, 2, 3)]
    sections: list[Section] = [
        Table(TableText(("", "value"), ROWS, {(3, 1): "95 % interval: f to 7"}), "Results"),
        Figure(example_sheet(examples, folder / "sheet.png"), "Examples"),
        Figure(failure_sheet(examples[1:], folder / "failures.png"), "Failures"),
        Figure(compare_runs({"a": history, EVIL: history[:2]}, "val/accuracy", folder / "curves.png"), "Curves"),
    ]
    return write_report(folder / "report.html", "Title", sections)


def flat(colour: tuple[int, int, int], label: str, predicted: str, group: str) -> Example:
    """An image of one colour; the true object does not cover its corner."""
    image = np.full((24, 24, 3), colour, np.uint8)
    return Example(image, label, predicted, group=group, truth=np.pad(np.ones((12, 12), bool), 6))


@pytest.fixture(scope="module")
def seen(page: Path) -> dict[str, Any]:
    """What the actions saw. They are added to a copy of the page without its policy, which would forbid them."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
    report = "document.body.append(Object.assign(document.createElement('pre'), {id: 'seen', textContent: %s}));"
    act = f"try {{ {ACTIONS} {report % 'JSON.stringify(seen)'} }} catch (e) {{ {report % 'e.stack'} }}"
    images = "Promise.all([...document.images].map((image) => image.decode()))"
    failed = f"{images}.then(() => setTimeout(() => {{ {act} }}))"
    copy = page.with_name("copy.html")
    copy.write_text(text.replace("</body>", f"<script>{failed}</script></body>"))
    found = None
    for milliseconds in (3_000, 30_000, 300_000):  # of the browser's clock, which may run ahead of a busy machine
        content = browse(copy, "--window-size=500,900", f"--virtual-time-budget={milliseconds}")
        if found := re.search(r'<pre id="seen">(.*?)</pre>', content, re.DOTALL):
            break
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


def test_views_of_a_sheet_switch_by_key(seen: dict[str, Any]) -> None:
    assert seen["views"] == ["whole sheet", "image", "true object"] and seen["hidden"] == [True, False]
    images, objects, again = seen["pixels"]
    assert images == again == [list(RED), list(GREEN), list(RED)] and objects == [list(getrgb(HIDDEN))] * 3
    assert seen["pressed"] == ["image"]
    assert seen["labels"] == ["image: a on b: a", "image: b on b: a, is b", f"image: {EVIL}: a, is b"]


def test_failures_are_filtered_by_group(seen: dict[str, Any]) -> None:
    assert seen["menus"] == [["group", "*", EVIL, "b on b"]]  # one class, all wrong: nothing else to choose
    assert seen["failures"] == [f"a, is b ({EVIL})"]


def test_images_and_sheets_open_large(seen: dict[str, Any]) -> None:
    first, second = "a on b: a", "b on b: a, is b"
    hidden = list(getrgb(HIDDEN))
    assert seen["large"] == [[True, first, list(RED)], [True, second, hidden], [True, first, hidden]]
    assert seen["focus"] == "next →" and seen["whole"][0] and seen["whole"][1] > 3 * 168


def test_curves_show_their_values_under_the_pointer(seen: dict[str, Any]) -> None:
    first = ["epoch 1", "a (%): 25.0", f"{EVIL} (%): 25.0"]
    last = ["epoch 3", "a (%): 75.0", f"{EVIL} (%): 50.0 (at 2)"]
    assert seen["hover"] == [first, last, None]
