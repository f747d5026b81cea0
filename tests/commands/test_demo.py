"""The demo page without a browser: flags, clicks, files, names from outside."""

import io
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from commands import demo
from commands import demo_results as results
from commands import demo_views as views
from commands.demo_session import CLICKS, Opened, Session, read_mask_value
from common.errors import UserError
from datasets.formats.images import UnreadableImageError
from engine.demo.edits import Edits
from engine.demo.subject import Subject, open_run
from tests.tiny import untrained_run

CPU = torch.device("cpu")
KEYS = {"model.backbone": "vit_nano_patch8"}
EVIL = "<b onclick=x>{{a}}${b}\u202e"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A two-stage run, and a plain one without examples."""
    folder = tmp_path_factory.mktemp("runs")
    two = open_run(untrained_run(folder / "two", KEYS), CPU)
    plain = open_run(untrained_run(folder / "plain", KEYS | {"model.name": "vit"}), CPU, examples=False)
    labels = list(two.split.labels) if two.split else []
    lines = [f",{label},{(label + index % 2) % 2}" for index, label in enumerate(labels)]
    (folder / "two" / "predictions.csv").write_text("\n".join(["path,label,predicted", *lines]))
    return Session([two, Subject(EVIL, plain.classifier, (EVIL, "b"), plain.run, plain.opened)], 100_000)


@pytest.fixture(scope="module")
def opened(session: Session) -> Opened:
    return session.open_example(1)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ([], "give --run RUN"),
        (["--run", "a", "--data.mean=[0,0,0]"], "--data.mean=.*not a flag of this command; .*--data.root"),
        (["--run", "a", "--port", "0"], "--port: 0 must be from 1"),
        (["--run", "a", "--max-upload-mb", "nan"], "--max-upload-mb"),
    ],
)
def test_flags_that_do_not_fit(flags: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        demo.parse_args(flags)


def test_make_demo_without_the_quick_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    args, overrides = demo.parse_args(["--run", "runs/quickstart/two_stage-seed0"])
    with pytest.raises(UserError, match="no folder runs/quickstart/two_stage-seed0; run `make quickstart` first"):
        demo.open_subjects(args, overrides)


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", "--run", "a"])
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        demo.main()
    assert "install it: python -m pip install -c constraints.txt '.[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "share", "said"),
    [("127.0.0.1", False, ""), ("::1", False, ""), ("localhost", False, ""), ("0.0.0.0", False, "without a password"),
     ("my-machine", False, "without a password"), ("127.0.0.1", True, "Gradio's servers")],
)  # fmt: skip
def test_a_page_that_is_open_to_others_says_so(host: str, share: bool, said: str) -> None:
    found = demo.exposure(host, share)
    assert said in found and bool(found) == bool(said)


def test_clicks(session: Session, opened: Opened) -> None:
    selection = opened.main.own.selection
    assert selection is not None and selection.maps is not None
    strongest = selection.maps[0].argmax(0)
    row, column = (strongest < 3).nonzero()[0].tolist()
    part, place = int(strongest[row, column]), ((column + 0.5) / 4, (row + 0.5) / 4)
    removed, _ = session.clicked(opened, Edits(), CLICKS[0], place)
    assert removed == Edits(remove_parts=(part,))
    assert session.clicked(opened, removed, CLICKS[0], place) == (Edits(), "")
    alone, _ = session.clicked(opened, removed, CLICKS[1], place)
    assert set(alone.remove_parts) == {0, 1, 2} - {part}
    assert session.clicked(opened, alone, CLICKS[1], place) == (Edits(), "")
    assert session.clicked(opened, Edits(), CLICKS[2], (1.0, 0.0))[0].shown == {(0, 3)}
    row, column = (strongest == 3).nonzero()[0].tolist()
    same, why = session.clicked(opened, Edits(), CLICKS[0], ((column + 0.5) / 4, (row + 0.5) / 4))
    assert same == Edits() and "is background" in why


def test_masks_of_both_models(session: Session, opened: Opened) -> None:
    masks = dict(session.masks(opened))
    assert masks["the true mask"] == "true" and f"rollout of {EVIL}" in masks
    method, number = read_mask_value(masks[f"rollout of {EVIL}"])
    found = session.predicted(opened, Edits(mask=method, mask_of=number))
    wanted = opened.main.edited(Edits(mask="rollout", mask_of=1), opened.encoded[1].heat("rollout"))
    assert torch.equal(found.logits, wanted.logits) and not torch.equal(found.logits, opened.main.own.logits)
    for edits in (Edits(mask="x"), Edits(mask="rollout", mask_of=7)):
        with pytest.raises(UserError, match="there is no mask"):
            session.predicted(opened, edits)


def test_names_from_outside_are_escaped(session: Session, opened: Opened) -> None:
    pages = [
        results.others(opened), results.certificates(opened, opened.main.own),
        results.explanations(opened, {}, [EVIL], True), views.legend([EVIL]), views.download(b"", EVIL, "text/plain"),
    ]  # fmt: skip
    for page in pages:
        assert "onclick=x&gt;" in page
        assert not re.search(r"<b|\{\{|\$\{|\u202e", page)


def test_the_certificate_says_where_it_proves_nothing(session: Session, opened: Opened) -> None:
    every = frozenset((row, column) for row in range(4) for column in range(4))
    nothing = session.predicted(opened, Edits(hidden=every))
    assert "this proves nothing" in results.certificates(opened, nothing)
    found = results.certificates(opened, opened.main.own)
    assert "holds. The largest change of a logit is exactly 0." in found and "does not hold" in found


def test_files_hold_the_pictures_and_maps(session: Session, opened: Opened) -> None:
    tiles = {"image": views.pixels_of(opened.main), EVIL: views.pixels_of(opened.main)}
    with Image.open(io.BytesIO(views.picture(tiles, EVIL, "png"))) as image:
        assert image.width > image.height > 300
    svg = ElementTree.fromstring(views.picture(tiles, EVIL, "svg"))
    assert len(svg.findall(".//{http://www.w3.org/2000/svg}image")) == 2
    heat = opened.main.heat("rollout")
    assert np.array_equal(np.load(io.BytesIO(views.array_bytes(heat))), heat.numpy())


def test_the_group_view_finds_the_image_under_a_click(session: Session) -> None:
    assert session.examples is not None
    sheet = results.group_sheet(session, [0, 1, 2, 3], failures=True)
    assert all(session.examples.is_right(index) is False for index in sheet.indices) and len(sheet.indices) >= 4
    for index, (left, top, right, bottom) in zip(sheet.indices, sheet.places, strict=True):
        assert sheet.at((left + right) / 2, (top + bottom) / 2) == index
    assert sheet.at(0, 0) is None
    empty = [g for g in range(4) if not session.examples.wrong(g)]
    assert list(sheet.none) == [session.examples.group_names[g] for g in empty]


def test_uploads_are_deleted_and_their_paths_not_told(session: Session, tmp_path: Path) -> None:
    good, broken, large = (tmp_path / name for name in ("good.png", "broken.png", "large.png"))
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(good)
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    large.write_bytes(bytes(100_001))
    assert session.open_upload(good).example is None
    for file, reason in ((broken, "format|truncated|broken|identify"), (large, "larger than 100000 bytes")):
        with pytest.raises(UnreadableImageError, match=reason) as error:
            session.open_upload(file)
        assert str(tmp_path) not in str(error.value)
    assert list(tmp_path.iterdir()) == []
