"""Names with markup or terminal control characters are shown as text."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from common.errors import LONGEST, UserError, exit_on_user_error, one_line
from datasets import DatasetInfo
from engine.run.tracking import Tracker, read_rows
from report.curves import compare_runs, training_curves
from report.files import write_atomic
from report.study import StudyRun, write_study_report
from report.tables import latex, table_text, write_tables
from tests.tiny import tiny_config

EVIL = "<script>alert(1)</script>"
RESULTS: Mapping[str, Any] = {"test/accuracy": 0.5, "provenance": {"command": EVIL, EVIL: EVIL}}
HISTORY = [
    {"epoch": epoch, "train/loss": 1.0, "val/accuracy": 0.5, f"val/accuracy/class/{EVIL}": 0.5} for epoch in (1, 2)
]


def test_names_in_a_study_report_are_text(tmp_path: Path) -> None:
    """Classes, rows and paths can have any name a folder can have."""
    run = StudyRun(EVIL.replace("/", ""), 0, RESULTS, HISTORY, None, config=f"data:\n  root: {EVIL}\n")
    page = write_study_report(tmp_path, f"Study {EVIL}", f"About {EVIL}", [run]).read_text()
    assert page.count("<script") == 1 and EVIL not in page and page.count("&lt;script&gt;") > 4
    assert "default-src 'none'" in page


def ends_with(message: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a script prints."""

    @exit_on_user_error
    def main() -> None:
        raise UserError(message)

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_an_error_is_one_line_that_a_terminal_only_shows(capsys: pytest.CaptureFixture[str]) -> None:
    said = ends_with("no file a\x1b[2J\nb\r\u2028\x07\u202ec\udcff.png; give é", capsys)
    assert said == r"error: no file a\x1b[2J b \x07\u202ec\udcff.png; give é" + "\n"
    assert len(ends_with("x" * 10**6, capsys)) < LONGEST + 20
    assert one_line("as it was") == "as it was"


@pytest.mark.parametrize("name", ["[/red]", "[bold", "[link=file:///etc/passwd]x[/link]"])
def test_brackets_in_a_path_are_no_markup(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Tracker(tmp_path, tiny_config(tmp_path)).message(f"look at runs/{name}/report.html")
    assert f"runs/{name}/report.html" in capsys.readouterr().out.replace("\n", "")


def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    """The name of a file in another encoding, as Python decodes it."""
    assert write_atomic(tmp_path / "a.html", "image \udcff.jpg").read_text() == r"image \udcff.jpg"


RAW = "\x1b[31mred\r\u202e\x07\x9b2J\u2028"
"""Colours a terminal, returns to the start of its line, turns the text's direction, rings, clears the screen."""
SHOWN = r"\x1b[31mred\r\u202e\x07\x9b2J\u2028"


def test_control_characters_are_written_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """HTML, Markdown, CSV, JSON and LaTeX tables, a line for the terminal, and the names of a data set."""
    records = [{"row": RAW, f"accuracy/class/{RAW}": 0.5, "note": RAW}]
    run = StudyRun(RAW, 0, RESULTS, HISTORY, None, config=f"data:\n\troot: {RAW}\n")
    files = [*write_tables(records, tmp_path / "table"), write_study_report(tmp_path, RAW, RAW, [run])]
    Tracker(tmp_path, tiny_config(tmp_path)).message(f"look at {RAW}")
    texts = [path.read_bytes().decode() for path in files] + [latex(table_text(records)), capsys.readouterr().out]
    for text in texts:
        assert all(c.isprintable() or c in "\n\t" for c in text) and "red" in text
    assert all(SHOWN in text for text in (texts[1], texts[3], texts[5])) and "\n\troot: " in texts[3]
    info = DatasetInfo("own", (RAW, "katze, 猫"), group_names=(RAW,), part_names=(RAW,))
    assert info.class_names == (SHOWN, "katze, 猫") and info.group_names == info.part_names == (SHOWN,)


@pytest.mark.parametrize("name", ["cat($^$)", "$", "$\\frac$", "a_b^{c", r"\$x", "100 %"])
def test_a_name_is_no_formula(name: str, tmp_path: Path) -> None:
    """matplotlib would parse what stands between two dollars, and fail."""
    rows = [{"epoch": epoch, f"val/accuracy/class/{name}": 0.5, "train/loss": 1.0} for epoch in (1, 2)]
    assert training_curves(rows, tmp_path / "a.png").stat().st_size > 0
    assert compare_runs({name: rows, "other": rows}, "train/loss", tmp_path / "b.png").stat().st_size > 0
    with pytest.raises(ValueError, match="parse|Expected|ParseFatal"):
        figure = Figure()
        figure.text(0, 0, "cat($^$)")
        figure.savefig(io.BytesIO(), format="png")


def test_rows_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for spoilt in (b"\xff\xfe", b"[1]", b"7", b'{"loss": 1}', b'{"epoch": "x"}', b"[" * 100000, b""):
        path.write_bytes(b'{"epoch": 1}\n' + spoilt)
        assert read_rows(path) == [{"epoch": 1}]
