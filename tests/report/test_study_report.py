"""Reports of studies and evaluations contain what they were given."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from report.evaluation import write_evaluation_report
from report.study import StudyRun, check_publish, publish, write_study_report


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    path = tmp_path / "epoch_002.png"
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(path)
    return path


def run(row: str, seed: int, worst: float, sheet: Path | None) -> StudyRun:
    history = [
        {"epoch": e, "train/loss": 1.0 / e, "val/accuracy": 0.5, "test/worst_group_accuracy": worst, "train_seconds": e}
        for e in (1, 2)
    ]
    results = {"test/accuracy": 0.9, "test/worst_group_accuracy": worst, "best_epoch": 2, "provenance": {"torch": "x"}}
    return StudyRun(row, seed, results, history, sheet, "epochs: 2\n")


def test_study_report_averages_over_seeds_and_shows_every_row(tmp_path: Path, sheet: Path) -> None:
    runs = [run("vit", 0, 0.1, None), run("two_stage", 0, 0.8, sheet), run("vit", 1, 0.3, None)]
    report = write_study_report(tmp_path, "Title & more", "About <this>.", runs).read_text()
    assert "Title &amp; more" in report and "About &lt;this&gt;." in report
    assert report.count("data:image/png;base64,") == 2 + 1 + 2  # two comparisons, one sheet, one history per row
    table = {row["row"]: row for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    assert table["vit"]["test/worst_group_accuracy"] == pytest.approx(0.2)
    assert "20.0 ± 14.1" in (tmp_path / "table.md").read_text()


def test_publish_copies_tables_comparisons_and_one_sheet_per_row(tmp_path: Path, sheet: Path) -> None:
    runs = [run("vit", 0, 0.1, None), run("two_stage", 0, 0.8, sheet)]
    write_study_report(tmp_path, "Title", "About.", runs)
    publish(tmp_path, runs, tmp_path / "docs")
    names = {path.name for path in (tmp_path / "docs").iterdir()}
    curves = {"worst_group.png", "worst_group_by_time.png"}
    assert names == {"table.json", "table.csv", "table.md", "sheet_two_stage.png"} | curves
    publish(tmp_path, runs, tmp_path / "unseen", sheets=False)
    assert {path.name for path in (tmp_path / "unseen").iterdir()} == names - {"sheet_two_stage.png"}


def test_publishing_does_not_drop_published_runs(tmp_path: Path) -> None:
    runs, docs = [run("vit", 0, 0.1, None), run("two_stage", 0, 0.8, None)], tmp_path / "docs"
    check_publish(docs, [("vit", 0)])
    write_study_report(tmp_path, "Title", "About.", runs)
    publish(tmp_path, runs, docs)
    check_publish(docs, [("vit", 0), ("two_stage", 0), ("k8", 0)])
    with pytest.raises(UserError, match=r"also holds 1 run\(s\) .* such as two_stage, seed 0; "):
        check_publish(docs, [("vit", 0), ("two_stage", 1)])
    (docs / "table.json").write_text('{"runs": [{"row": "vit"}]}')
    with pytest.raises(UserError, match=r"--publish: .*table.json is not the table of a study"):
        check_publish(docs, [("vit", 0)])
    with pytest.raises(UserError, match=r"--publish: cannot write to .*table.json"):
        check_publish(docs / "table.json" / "below", [])


def test_a_diverged_run_is_a_row_that_says_so(tmp_path: Path) -> None:
    lost = [StudyRun("b", seed, {"diverged": 1.0}, [], None, "") for seed in (0, 1)]
    runs = [run("a", 0, 0.1, None), run("a", 1, 0.1, None), lost[0], run("c", 0, 0.4, None), lost[1]]
    write_study_report(tmp_path, "Title", "About.", runs)
    table = {row["row"]: row for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    assert {name: row["diverged"] for name, row in table.items()} == {"a": 0.0, "b": 1.0, "c": 0.0}
    assert table["c"]["test/worst_group_accuracy"] == 0.4 and table["b"]["test/worst_group_accuracy"] is None


def test_differences_have_a_table_of_their_own(tmp_path: Path) -> None:
    record = {"row": "b - a", "runs": "2, 3", "accuracy": 0.5, "accuracy/low": 0.25, "accuracy/high": 0.75}
    report = write_study_report(tmp_path, "Title", "About.", [run("a", 0, 0.1, None)], [record]).read_text()
    assert "b - a" in report and "2, 3" in report and "bootstrap over images and seeds" in report
    (stored,) = json.loads((tmp_path / "differences.json").read_text())["rows"]
    assert stored["accuracy"] == 0.5 and stored["accuracy/high"] == 0.75
    publish(tmp_path, [run("a", 0, 0.1, None)], tmp_path / "docs")
    assert (tmp_path / "docs" / "differences.md").read_text() == (tmp_path / "differences.md").read_text()
    assert "50.0" in (tmp_path / "differences.md").read_text()


def test_a_study_without_logged_test_metrics_has_no_comparison(tmp_path: Path) -> None:
    quiet = StudyRun("vit", 0, {"test/accuracy": 0.5}, [{"epoch": 1, "train/loss": 1.0}], None, "")
    write_study_report(tmp_path, "Title", "About.", [quiet])
    assert not (tmp_path / "worst_group.png").exists()


def test_evaluation_report_shows_every_metric(tmp_path: Path, sheet: Path) -> None:
    values = {"accuracy": 0.75, "accuracy/low": 0.5, "accuracy/high": 0.875, "worst_group_accuracy": 0.25}
    values |= {"mask_iou": math.nan, "mask_iou/low": math.nan, "mask_iou/high": 0.5, "count/images": 40.0}
    path = write_evaluation_report(tmp_path, "run: test", values, {"split": "test"}, [], sheet, None, "epochs: 1")
    page = path.read_text()
    for value in ("25.0 %", "40", "–"):  # the bounds of a value that has none stay rows of their own
        assert f"<td>{value}</td>" in page
    note = "95 % interval: 50.0 to 87.5 %"
    assert f'>75.0 %<span class="note"> {note}</span></td>' in page and page.count(note) == 2  # in a card too
    assert "accuracy: low" not in page and "mask iou: low" in page
    assert page.count("data:image/png;base64,") == 1
    assert (tmp_path / "metrics.csv").is_file()
