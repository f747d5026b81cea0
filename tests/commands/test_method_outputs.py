"""What `evaluate.py --method` prints, and how it treats the files of an earlier evaluation."""

from pathlib import Path

import pytest

from commands.method_outputs import metric_table, remove_other_methods
from commands.run_context import METHODS_FILE, check_mode
from common.errors import UserError
from engine.evaluation.records import PREDICTIONS_FILE


def test_the_table_has_every_metric_of_every_row() -> None:
    records = [
        {"row": "rollout", "abpc": 0.123456, "abpc/low": 0.1, "seconds_per_map": 2.0, "count/abpc/nan_maps": 0},
        {"row": "(true mask)", "as_mask/iou": 1.0, "as_mask/count/group/land on water": 3},
    ]
    lines = [line.split() for line in metric_table(records).splitlines()]
    assert lines[0] == ["rollout", "(true", "mask)"]
    assert lines[1:] == [["abpc", "0.1235", "-"], ["seconds_per_map", "2", "-"], ["as_mask/iou", "-", "1"]]
    narrow = metric_table(records, 30).splitlines()
    assert len(narrow) > 2 * len(lines) and max(map(len, narrow)) <= 30


def test_tables_of_methods_that_were_not_measured_again_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "per_image").mkdir()
    for name in ("rollout.csv", "lrp.csv", "mine.csv"):
        (tmp_path / "per_image" / name).write_text("")
    remove_other_methods(tmp_path, ["lrp"])
    assert sorted(path.name for path in (tmp_path / "per_image").iterdir()) == ["lrp.csv", "mine.csv"]


def test_a_folder_holds_one_kind_of_evaluation(tmp_path: Path) -> None:
    check_mode(tmp_path / "new", METHODS_FILE)
    (tmp_path / METHODS_FILE).write_text("")
    check_mode(tmp_path, METHODS_FILE)
    with pytest.raises(UserError, match=r"^--out: .* holds an evaluation of explanation methods \(methods.json\)"):
        check_mode(tmp_path, PREDICTIONS_FILE)
