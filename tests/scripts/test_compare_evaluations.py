"""commands.compare_evaluations on the command line, and its error messages."""

import json
import sys
from pathlib import Path

import pytest

import evaluate
from commands import compare_evaluations
from tests.scripts.method_runs import Measure

PREDICTIONS = "path,label,predicted,group\na,0,0,0\nb,1,0,1\nc,1,1,1\nd,0,1,0\n"
BETTER = PREDICTIONS.replace("b,1,0", "b,1,1")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["commands.compare_evaluations", *arguments])
    compare_evaluations.main()


def test_two_files_of_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("first.csv").write_text(BETTER)
    lines = PREDICTIONS.splitlines()
    Path("second.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    run(monkeypatch, "first.csv", "second.csv", "--resamples", "50", "--out", "out")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "4 images; first - second, 95 % interval, p"
    assert printed[1].startswith("accuracy: 0.7500 - 0.5000 = +0.2500 [+0.0000, +")
    rows = {row["row"]: row for row in json.loads(Path("out/comparison.json").read_text())["rows"]}
    assert set(rows) == {"accuracy", "worst_group_accuracy", "macro_f1"}
    assert rows["worst_group_accuracy"]["first"] == 0.5 and 0 < rows["accuracy"]["p"] <= 1


def test_columns_of_a_method_are_compared_where_both_have_a_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("first.csv").write_text("path,detection/iou,detection/none\na,0.5,\nb,,\nc,0.25,1\n")
    Path("second.csv").write_text("path,detection/iou,detection/none\na,0.25,\nb,0.5,1\nc,0.25,\n")
    run(monkeypatch, "first.csv", "second.csv", "--resamples", "20")
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert line.startswith("detection/iou: 0.3750 - 0.2500 = +0.1250 [+0.0000, +0.2500], p 0.")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (PREDICTIONS, PREDICTIONS.replace("d,", "e,"), "second.csv: d is in only one of the two files"),
        (PREDICTIONS, PREDICTIONS.replace("d,0", "d,1"), "second.csv has other columns or labels"),
        (PREDICTIONS, "path,iou\na,1\nb,1\nc,1\nd,1\n", "second.csv has other columns or labels"),
        (PREDICTIONS + "a,0,0,0\n", PREDICTIONS, "first.csv contains an image twice"),
        ("path,label\n", PREDICTIONS, "first.csv contains no images"),
        ("nothing", PREDICTIONS, "cannot read first.csv"),
        ("", PREDICTIONS, "cannot read first.csv"),
        ('path,"label\n', PREDICTIONS, "cannot read first.csv"),
        ("\xff\0", PREDICTIONS, "cannot read first.csv"),
        (PREDICTIONS + ",0,0,0\n", PREDICTIONS, "first.csv contains an image without path"),
        (PREDICTIONS.replace("group", "label"), PREDICTIONS, "first.csv contains column label twice"),
        ("path,label,predicted\na,0,0\n", PREDICTIONS, "first.csv contains no column group"),
        (PREDICTIONS.replace("b,1,0", "b,,0"), PREDICTIONS, "a value of label that is no class"),
        (PREDICTIONS.replace("b,1,0", "b,1,-1"), PREDICTIONS, "a value of predicted that is no class"),
        (PREDICTIONS.replace("b,1,0", "b,1,999999999"), PREDICTIONS, "a value of predicted that is no class"),
        (PREDICTIONS.replace("b,1,0", "b,1,0.5"), PREDICTIONS, "a value of predicted that is no class"),
        (PREDICTIONS.replace("a,0,0,0", "a,0,0,"), PREDICTIONS, "first.csv contains an empty cell"),
        (PREDICTIONS.replace("a,0,0,0", "a,0,0,x"), PREDICTIONS, "a value of group that is no finite number"),
        ("path,label,predicted,group,present/a\na,0,0,,1\n", PREDICTIONS, "other classes in present/ than in logit/"),
        ("path,iou\na,inf\n", PREDICTIONS, "a value of iou that is no finite number"),
        ("path,iou\na,much\n", PREDICTIONS, "a value of iou that is no finite number"),
        ("path\na\n", PREDICTIONS, "first.csv contains no values"),
    ],
)
def test_mistakes(
    first: str, second: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("first.csv").write_text(first)
    Path("second.csv").write_text(second)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "first.csv", "second.csv")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and message in error, error


@pytest.mark.slow
def test_two_runs(measure: Measure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Compare the predictions of two trained runs, and their heat maps."""
    for name in ("two", "plain"):
        measure("--run", name, "--method", "gradcam", "--metrics", "localization", out=f"{name}-maps")
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "--run", name, "--out", f"{name}-predictions"])
        evaluate.main()
        assert Path(f"{name}-predictions/predictions.csv").read_text().startswith("path,label,predicted,group\n")
    capsys.readouterr()
    run(monkeypatch, "two-predictions/predictions.csv", "plain-predictions/predictions.csv")
    run(monkeypatch, *(f"{name}-maps/per_image/gradcam.csv" for name in ("two", "plain")))
    printed = capsys.readouterr().out
    assert "worst_group_accuracy: " in printed and "localization/mask/iou: " in printed
