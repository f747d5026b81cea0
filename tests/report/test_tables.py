"""Tables: means and deviations, three formats of one table, and names for people."""

import csv
import json
import math
import statistics
from pathlib import Path

import pytest

from common.errors import UserError
from report.files import write_atomic
from report.names import is_fraction, number, pretty, with_std
from report.tables import average, markdown, table_text, write_tables

RECORDS = [
    {"row": "two|stage", "seed": 0, "accuracy": 0.98, "mask_iou": 0.7, "loss": 0.5, "weights": "none"},
    {"row": "two|stage", "seed": 1, "accuracy": 0.99, "mask_iou": 0.6, "loss": 0.7, "weights": "none"},
    {"row": "plain", "seed": 0, "accuracy": 0.5, "mask_iou": math.nan, "loss": 1.5, "weights": "dinov2"},
]


def test_average_is_the_textbook_one() -> None:
    frame = average(RECORDS)
    first, second = frame.to_dict("records")
    assert (first["row"], first["seeds"], second["seeds"]) == ("two|stage", 2, 1)
    assert first["accuracy"] == pytest.approx(0.985)
    assert first["accuracy_std"] == pytest.approx(statistics.stdev([0.98, 0.99]))
    assert math.isnan(second["accuracy_std"]) and math.isnan(second["mask_iou"])
    assert (first["weights"], second["weights"]) == ("none", "dinov2")
    assert "seed" not in frame


def test_equal_runs_have_no_deviation_and_differing_texts_none() -> None:
    runs = [{"row": "a", "share": 0.18, "note": str(i)} for i in range(3)]
    line = average(runs).to_dict("records")[0]
    assert (line["share"], line["share_std"], line["note"]) == (0.18, 0.0, None)


def test_text_of_a_table() -> None:
    table = table_text(RECORDS)
    assert table.header == ("", "weights", "accuracy (%)", "mask IoU (%)", "loss", "seeds")
    assert table.rows[0] == ("two|stage", "none", "98.5 ± 0.7", "65.0 ± 7.1", "0.60 ± 0.14", "2")
    assert table.rows[1] == ("plain", "dinov2", "50.0", "–", "1.5", "1")
    assert table_text(RECORDS[2:], keys=["loss", "unknown", "accuracy"]).header == ("", "loss", "accuracy (%)")


def test_an_interval_without_columns_is_a_note_on_the_value_of_a_single_run() -> None:
    record = {"abpc": 0.5, "abpc/low": 0.25, "abpc/high": 0.75}
    records = [{"row": "one", **record}, {"row": "two", **record}, {"row": "two", **record}, {"row": "x", "abpc": 1.0}]
    assert table_text(records, ["abpc"]).notes == {(0, 1): "95 % interval: 0.25 to 0.75"}
    assert table_text(records).notes == {}


def test_three_files_of_one_table(tmp_path: Path) -> None:
    paths = write_tables(RECORDS, tmp_path / "out" / "results.v1")
    assert [path.name for path in paths] == ["results.v1.json", "results.v1.csv", "results.v1.md"]
    content = json.loads(paths[0].read_text(), parse_constant=pytest.fail)
    assert content["rows"][0]["accuracy"] == pytest.approx(0.985)
    assert content["rows"][1]["mask_iou"] is None and content["runs"][2]["mask_iou"] is None
    assert content["runs"][:2] == RECORDS[:2]
    lines = list(csv.DictReader(paths[1].open()))
    assert float(lines[0]["accuracy"]) == content["rows"][0]["accuracy"] and lines[1]["mask_iou"] == ""
    assert paths[2].read_text() == markdown(table_text(RECORDS))
    assert "| two\\|stage | none |" in paths[2].read_text()
    assert len(list(paths[0].parent.iterdir())) == 3


@pytest.mark.parametrize("records", [[], [{"accuracy": 1.0}]])
def test_no_table(records: list[dict[str, float]]) -> None:
    with pytest.raises(ValueError, match="each with a 'row'"):
        average(records)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomic(tmp_path / "x.json", "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match=r"cannot write .*x\.json: No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("key", "words", "share"),
    [
        ("val/worst_group_accuracy", "worst group accuracy", True),
        ("test/stage_1/accuracy", "stage 1 accuracy", True),
        ("accuracy_top5", "top-5 accuracy", True),
        ("mask_iou_dataset", "mask IoU (data set)", True),
        ("worst_group_accuracy_paper", "worst group accuracy (paper)", True),
        ("segmentation/f1_published", "segmentation: F1 (published)", True),
        ("accuracy/group/land on water", "land on water", True),
        ("count/group/land on water", "number of group: land on water", False),
        ("auroc", "AUROC", True),
        ("keep_ratio", "keep ratio", True),
        ("adjusted_accuracy", "adjusted accuracy", True),
        ("stage_1/bg_gap", "stage 1 BG gap", False),
        ("train/loss", "loss", False),
        ("train_seconds", "train seconds", False),
    ],
)
def test_names(key: str, words: str, share: bool) -> None:
    assert (pretty(key), is_fraction(key)) == (words, share)


def test_numbers() -> None:
    assert [number(x, percent=False) for x in (3.0, 12345.0, 0.123456, math.nan)] == ["3", "12,345", "0.1235", "–"]
    assert [number(x, percent=True) for x in (0.98, 1.0, math.nan)] == ["98.0", "100.0", "–"]
    assert with_std(1234.5, 20.0, percent=False) == "1,234 ± 20"
    assert with_std(1.5, 0.0, percent=False) == "1.5 ± 0"
