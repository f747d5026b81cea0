"""The demo page in a browser: Chromium, driven by Playwright, uses it as a visitor does."""

import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from commands import demo
from commands import demo_results as results
from engine.demo.edits import Edits
from engine.demo.encoded import Encoded, Predicted, encode
from engine.demo.subject import Subject, open_run
from tests.tiny import untrained_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytest.importorskip("gradio", reason="the extra demo is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]
playwright.expect.set_options(timeout=60_000)
CPU = torch.device("cpu")
ARGS = {"host": "127.0.0.1", "port": None, "share": False, "max_upload_mb": 0.1}
EVIL = "<img src=x onerror=alert(1)>{{name}}${name}"
KEYS = {"model.backbone": "vit_nano_patch8"}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    folder = tmp_path_factory.mktemp("runs")
    two = open_run(untrained_run(folder / "two", KEYS | {"model.mask_resolution": "pixel"}), CPU)
    plain = open_run(untrained_run(folder / "plain", KEYS | {"model.name": "vit"}), CPU, examples=False)
    return [two, Subject(EVIL, plain.classifier, plain.class_names, plain.run, plain.opened)]


@pytest.fixture(scope="module")
def served(subjects: list[Subject]) -> Iterator[SimpleNamespace]:
    """The address of the page, and the folder of its uploads."""
    with demo.private_folder() as folder:
        page = demo.launch(subjects, SimpleNamespace(**ARGS), block=False)  # type: ignore[arg-type]
        yield SimpleNamespace(url=page.local_url, uploads=folder)
        page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def page(served: SimpleNamespace, browser: Any) -> Iterator[Any]:
    """The page, opened anew; it must ask for nothing but its own server."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    context.set_default_timeout(60_000)
    found, asked = context.new_page(), []
    found.on("request", lambda request: asked.append(request.url))
    found.on("dialog", lambda dialog: pytest.fail(f"a script of a name ran: {dialog.message}"))
    found.goto(served.url + "?image=0")
    found.wait_for_selector("#scores table")
    yield found
    outside = [url for url in asked if not url.startswith((served.url, "data:", "blob:"))]
    context.close()
    assert outside == []


def first(subject: Subject, index: int) -> Encoded:
    assert subject.split is not None
    sample = subject.split[index]
    return encode(subject, sample.image, sample)


def scores(page: Any, predicted: Predicted) -> None:
    """Wait until the table shows this prediction."""
    shown = [f"{value:.1%}" for value in predicted.logits.softmax(0).tolist()]
    names = ["checked", "striped"]
    for name, value in zip(names, shown, strict=True):
        row = page.locator("#scores tbody tr", has_text=name)
        playwright.expect(row.locator("td").first).to_have_text(value)


def click_patch(page: Any, view: str, row: int, column: int) -> None:
    image = page.locator(f"#{view} img")
    box = image.bounding_box()
    image.click(position={"x": (column + 0.5) * box["width"] / 4, "y": (row + 0.5) * box["height"] / 4})


def test_a_part_is_clicked_away_and_the_certificate_holds(page: Any, subjects: list[Subject]) -> None:
    one = first(subjects[0], 0)
    scores(page, one.own)
    assert one.own.selection is not None and one.own.selection.maps is not None
    strongest = one.own.selection.maps[0].argmax(0)
    row, column = (strongest < 3).nonzero()[0].tolist()
    part = int(strongest[row, column])
    click_patch(page, "parts-view", row, column)
    removed = one.edited(Edits(remove_parts=(part,)))
    assert not torch.equal(removed.logits, one.own.logits)
    scores(page, removed)
    playwright.expect(page.locator("#parts input").nth(part)).not_to_be_checked()
    page.get_by_label("hide the patch").check()
    click_patch(page, "image", 3, 3)
    page.get_by_label("show the patch").check()
    click_patch(page, "image", 0, 0)
    edits = Edits(remove_parts=(part,)).painted((3, 3), False).painted((0, 0), True)
    scores(page, one.edited(edits))
    page.locator("#prove").click()
    held, plain = page.locator("#proof section").all_inner_texts() if page.wait_for_selector("#proof section") else ()
    assert "two: holds. The largest change of a logit is exactly 0." in held
    assert f"{EVIL}: does not hold" in plain
    address = page.locator("#link a").get_attribute("href")
    page.goto(page.url.split("?")[0] + address)
    page.wait_for_selector("#scores table")
    scores(page, one.edited(edits))
    page.locator("#parts input").nth(part).check()  # from the keyboard's list
    scores(page, one.edited(Edits().painted((3, 3), False).painted((0, 0), True)))
    page.locator("#reset").click()
    scores(page, one.own)


def test_edits_made_while_a_prediction_is_computed_all_count(
    page: Any, subjects: list[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, edited, heats_of = first(subjects[0], 0), Encoded.edited, results.heats_of
    assert one.own.selection is not None and one.own.selection.maps is not None
    parts = one.own.selection.maps[0].argmax(0)
    row, column = (parts < 3).nonzero()[0].tolist()
    scores(page, one.own)

    def slowly(*args: Any) -> Predicted:
        time.sleep(1)
        return edited(*args)

    monkeypatch.setattr(Encoded, "edited", slowly)
    click_patch(page, "parts-view", row, column)
    page.get_by_label("hide the patch").check()
    for patch in ((3, 3), (2, 2), (1, 1)):
        click_patch(page, "image", *patch)
    removed = Edits(remove_parts=(int(parts[row, column]),))
    scores(page, one.edited(removed.painted((3, 3), False).painted((2, 2), False).painted((1, 1), False)))
    page.locator("#reset").click()
    scores(page, one.own)
    clicked = page.locator("#parts input")
    for part in (0, 2):
        clicked.nth(part).uncheck()
    scores(page, one.edited(Edits(remove_parts=(0, 2))))
    playwright.expect(clicked.nth(0)).not_to_be_checked()
    playwright.expect(clicked.nth(1)).to_be_checked()

    started, go_on = threading.Event(), threading.Event()

    def explained(*args: Any) -> Any:
        started.set()
        assert go_on.wait(60)
        return heats_of(*args)

    monkeypatch.setattr(results, "heats_of", explained)
    page.get_by_role("tab", name="Explanations").click()
    page.locator("#methods").get_by_label("rollout", exact=True).check()
    page.locator("#explain").click()
    assert started.wait(60)
    page.locator("#reset").click()
    scores(page, one.own)
    go_on.set()  # the maps are of the mask before
    playwright.expect(page.locator("#status")).to_contain_text("edited in the meantime: press again")
    playwright.expect(page.locator("#maps figure")).to_have_count(0)
    page.locator("#explain").click()
    playwright.expect(page.locator("#maps figure")).to_have_count(2)
    page.wait_for_timeout(500)  # the maps stay: they are of this mask
    playwright.expect(page.locator("#maps figure")).to_have_count(2)


def test_an_upload_is_read_and_not_kept(
    page: Any, served: SimpleNamespace, subjects: list[Subject], tmp_path: Path
) -> None:
    assert subjects[0].split is not None
    Image.fromarray(subjects[0].split.raw.read(5).image).save(tmp_path / "bird.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)).save(tmp_path / "large.png")
    page.set_input_files("#upload input[type=file]", tmp_path / "broken.png")
    playwright.expect(page.locator("#status")).to_contain_text("not an image in a known format")
    playwright.expect(page.locator("#status")).not_to_contain_text("faithful-vit-demo")
    page.set_input_files("#upload input[type=file]", tmp_path / "bird.png")
    scores(page, encode(subjects[0], subjects[0].read(tmp_path / "bird.png")).own)
    assert "true class" not in page.locator("#scores").inner_text()
    page.set_input_files("#upload input[type=file]", tmp_path / "large.png")
    playwright.expect(page.locator("body")).to_contain_text(re.compile("exceed|too large|larger", re.IGNORECASE))
    assert [file for file in served.uploads.rglob("*") if file.is_file()] == []


def test_explanations_groups_and_files(page: Any, subjects: list[Subject]) -> None:
    page.get_by_role("tab", name="Explanations").click()
    for method in ("rollout", "gradient"):
        page.locator("#methods").get_by_label(method, exact=True).check()
    page.locator("#explain").click()
    playwright.expect(page.locator("#maps figure")).to_have_count(4)
    playwright.expect(page.locator("#maps h3").last).to_have_text(EVIL)
    page.get_by_role("tab", name="Files and Python").click()
    page.locator("#make").click()
    names = page.locator("#files a")
    playwright.expect(names).to_have_text(
        ["demo.png", "demo.svg", "mask.npy", "rollout-0.npy", "gradient-0.npy", "rollout-1.npy", "gradient-1.npy"]
    )
    with page.expect_download() as saved:
        names.nth(2).click()
    visible = first(subjects[0], 0).own.visible
    assert visible is not None and np.array_equal(np.load(saved.value.path()), visible.numpy())
    page.get_by_role("tab", name="Groups").click()
    page.get_by_label("right", exact=True).check()
    page.locator("#show-groups").click()
    page.wait_for_selector("#groups img")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_plain_vit_alone_is_explained(subjects: list[Subject], tmp_path: Path) -> None:
    """Without a browser: what the page does for a model without a mask and without examples."""
    import gradio

    from commands.demo_page import Page
    from commands.demo_session import Session
    from commands.demo_widgets import Widgets

    session = Session(subjects[1:], 10**6)
    with gradio.Blocks():
        page = Page(session, Widgets(session))
    w = page.widgets
    assert "Upload or paste an image" in page.start(SimpleNamespace(query_params={}))[w.status]  # type: ignore[arg-type]
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    found = page.uploaded(str(tmp_path / "grey.png"))
    assert "depends on every pixel" in found[w.status] and "checked" in found[w.scores]
    assert [found[view] is None for view in w.views] == [False, True, True] and not w.mask.visible
    shown = found[w.opened], found[w.edits]
    assert "<figure>" in page.explained(*shown, False, ["rollout"], 1)[w.maps]
    files = page.made(*shown, ["rollout"], 1)
    assert "rollout-0.npy" in files[w.files] and "encoded.heat('rollout', 1, predicted)" in files[w.python]
