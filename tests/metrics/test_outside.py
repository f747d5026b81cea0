"""A metric that is registered from outside the repository: in tables, headline cards and curves without other edits."""

from pathlib import Path

import pytest
from PIL import Image

from common.metric_info import MetricInfo, declare, headlines, metric_info
from metrics import build_metrics
from report import curves
from report.evaluation import write_evaluation_report
from report.tables import table_text
from tests.metrics.cases import BIRDS, feed, outside_metric, random_set


def test_in_the_report_of_an_evaluation(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "sheet.png")
    with outside_metric():
        results = feed(build_metrics(["accuracy", "brier"], BIRDS), *random_set(BIRDS), 16)
        history = [{"epoch": epoch, "val/brier": 0.5 / epoch} for epoch in (1, 2)]
        report = write_evaluation_report(tmp_path, "x", results, {}, history, tmp_path / "sheet.png", None, "")
        value = f"{100 * results['brier']:.1f}"
        assert headlines(results) == ["accuracy", "balanced_accuracy", "brier"]
        html = report.read_text()
        for place in (
            "<dt>Brier score</dt>",
            f'<th scope="row">Brier score</th><td>{value} %</td>',
            "Brier score (%)</th>",
        ):
            assert place in html  # the card, the table of all metrics, the values of the curves
        table = table_text([{"row": "a", **results}], keys=["brier", "brier/class/land", "count/brier"])
        assert table.header == ("", "Brier score (%)", "brier: class: land (%)", "number of brier")
        assert table.rows[0][1] == value
        assert [(name, lines[0].y) for name, lines in curves._panels(history, "epoch")] == [
            ("calibration", [0.5, 0.25])
        ]
        assert curves._is_percent("calibration")
    assert metric_info("brier") == MetricInfo()


@pytest.mark.parametrize("key", ["brier", "val/brier", "test/stage_1/brier", "as_mask/brier", "brier/low", "brier_std"])
def test_prefixes_and_suffixes(key: str) -> None:
    with outside_metric():
        assert metric_info(key).label == "Brier score"
        assert headlines([key]) == (["brier"] if key == "brier" else [])


def test_families_and_counts() -> None:
    with outside_metric():
        assert metric_info("test/brier/class/count/low").percent
        assert not metric_info("count/brier").percent and not metric_info("brierly").percent


def test_one_key_is_not_shown_in_two_ways() -> None:
    with outside_metric():
        declare({"brier": metric_info("brier")})
        with pytest.raises(ValueError, match="'brier' is already declared"):
            declare({"brier": MetricInfo()})
