"""commands.part_thresholds and `evaluate.py --leave-one-part-out` on the command line, and wrong input."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import evaluate
from commands import part_thresholds
from engine.evaluation.loading import fingerprint, load_run_model
from engine.run.folder import run_config
from tests.scripts.method_runs import contents, fails

pytestmark = pytest.mark.slow
TWO, LEAVE = ["--run", "two"], ["--leave-one-part-out"]


@pytest.fixture(autouse=True)
def folder(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with links to the runs `two` and `plain`, thresholds of `two` in `t`, and files that are in the way."""
    monkeypatch.chdir(tmp_path)
    for path in runs.iterdir():
        Path(path.name).symlink_to(path)
    thresholds(monkeypatch, "--run", "two", "--out", "t")
    Path("two_parts.json").write_text('{"0": 1, "1": 2}')
    Path("text.h5").write_text("mine")
    return tmp_path


def thresholds(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["commands.part_thresholds", *arguments])
    part_thresholds.main()


def results(monkeypatch: pytest.MonkeyPatch, *arguments: str, out: str = "out") -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, "--out", out])
    evaluate.main()
    found: dict[str, Any] = json.loads(Path(out, "results.json").read_text(), parse_constant=pytest.fail)
    return found


def test_thresholds_on_disk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    thresholds(monkeypatch, "--run", "two", "--quantiles", "0.2", "0.5")
    out = Path("two/part_thresholds")
    assert {path.name for path in out.iterdir()} == {"0.8.json", "0.5.json", "info.json"}
    weak, half = (json.loads((out / name).read_text()) for name in ("0.8.json", "0.5.json"))
    assert list(weak) == list(half) == ["0", "1", "2"] and all(weak[k] <= half[k] for k in weak)
    info = json.loads((out / "info.json").read_text())
    expected = {"num_parts": 3, "quantiles": {"0.8.json": 0.2, "0.5.json": 0.5}, "split": "train", "images": 34}
    assert expected.items() <= info.items() and {"data_seed", "train_seed", "provenance"} <= info.keys()
    assert info["fingerprint"] == fingerprint(load_run_model(Path("two"), run_config(Path("two")), "best", 2))
    printed = capsys.readouterr().out.splitlines()
    for part, line in enumerate(printed[:3]):
        patches = info["patches"][str(part)]
        assert line.startswith(f"part {part}: {patches:,} patches") and ("hide nothing" in line) == (patches == 0)
    assert "0.8.json, 0.5.json" in printed[3]
    for path in out.iterdir():
        path.unlink()
    out.rmdir()


def test_a_sample_and_an_override(monkeypatch: pytest.MonkeyPatch) -> None:
    thresholds(monkeypatch, "--run", "two", "--limit", "3", "--data.seed", "5", "--out", "few")
    info = json.loads(Path("few/info.json").read_text())
    assert (info["images"], info["data_seed"]) == (3, 5)
    assert {path.name for path in Path("few").iterdir()} == {
        "0.99.json", "0.97.json", "0.95.json", "0.9.json", "info.json",
    }  # fmt: skip


def test_leave_one_part_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table = results(monkeypatch, *TWO, *LEAVE)
    assert "12 images, 4 rows; report: out/report.html" in capsys.readouterr().out
    names = {"results.json", "table.json", "table.csv", "table.md", "sheet.png", "report.html"}
    assert {path.name for path in Path("out").iterdir()} == names
    rows = {row["row"]: row for row in table["rows"]}
    assert list(rows) == ["unmodified", "without part 0", "without part 1", "without part 2"]
    assert [row["removed_parts"] for row in table["rows"]] == ["", "0", "1", "2"]
    alone = results(monkeypatch, *TWO, "--remove-parts", "1", out="alone")
    for key, value in rows["without part 1"].items():
        if key not in ("row", "removed_parts", "changed_predictions_ratio"):
            assert alone[f"test/{key}"] == value
    assert rows["unmodified"]["changed_predictions_ratio"] == 0.0


def test_with_thresholds_and_fixed_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*TWO, "--thresholds", "t/0.9.json", "--limit", "6", "--split", "val", "--metrics", "mask"]
    table = results(monkeypatch, *arguments, *LEAVE, "--fixed-parts", "2")
    rows = {row["row"]: row for row in table["rows"]}
    assert list(rows) == [
        "unmodified", "thresholds", "thresholds, without part 2", "thresholds, without parts 0, 2",
        "thresholds, without parts 1, 2",
    ]  # fmt: skip
    assert (table["thresholds"], table["fixed_parts"], table["images"]) == ("t/0.9.json", [2], 6)
    assert table["split_origin"] == "published"
    single = results(monkeypatch, *arguments, "--remove-parts", "2", out="single")
    assert single["val/keep_ratio"] == rows["thresholds, without part 2"]["keep_ratio"]
    assert "accuracy" not in rows["unmodified"]


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no file": ([*TWO, "--thresholds", "t/0.59.json"], "t/0.59.json"),
    "no file, leaving out": ([*TWO, *LEAVE, "--thresholds", "t/0.59.json"], "t/0.59.json"),
    "other parts": ([*TWO, "--thresholds", "two_parts.json"], "two_parts.json"),
    "thresholds of a plain ViT": (["--run", "plain", "--thresholds", "t/0.9.json"], "two-stage"),
    "a plain ViT": (["--run", "plain", *LEAVE], "two-stage"),
    "no such part": ([*TWO, "--remove-parts", "3"], "--remove-parts"),
    "no such fixed part": ([*TWO, *LEAVE, "--fixed-parts", "3"], "--fixed-parts"),
    "fixed alone": ([*TWO, "--fixed-parts", "1"], "--remove-parts"),
    "remove and leave out": ([*TWO, *LEAVE, "--remove-parts", "1"], "--fixed-parts"),
    "with a method": ([*TWO, *LEAVE, "--method", "rollout"], "--leave-one-part-out"),
    "unknown metric": ([*TWO, *LEAVE, "--metrics", "acuracy"], "acuracy"),
    "a metric to fit": ([*TWO, *LEAVE, "--metrics", "accuracy", "keypoints"], "keypoints"),
    "no images": ([*TWO, *LEAVE, "--limit", "0"], "--limit"),
    "out is a file": ([*TWO, *LEAVE, "--out", "text.h5"], "--out"),
}


@pytest.mark.parametrize(("arguments", "named"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], named: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder)
    assert named in fails([*arguments, *([] if "--out" in arguments else ["--out", "out"])], monkeypatch, capsys)
    assert contents(folder) == before and not Path("out").exists()


WRONG: dict[str, tuple[list[str], str]] = {
    "no run": ([], "--run"),
    "no such run": (["--run", "nowhere"], "nowhere"),
    "a plain ViT": (["--run", "plain"], "two-stage"),
    "quantile": ([*TWO, "--quantiles", "1"], "--quantiles"),
    "quantile in words": ([*TWO, "--quantiles", "few"], "--quantiles"),
    "quantile twice": ([*TWO, "--quantiles", "0.1", "0.1"], "--quantiles"),
    "no images": ([*TWO, "--limit", "0"], "--limit"),
    "unknown key": ([*TWO, "--data.sise", "3"], "data.sise"),
    "out is a file": ([*TWO, "--out", "text.h5"], "--out"),
}


@pytest.mark.parametrize(("arguments", "named"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_with_thresholds_is_one_line_and_leaves_nothing(
    arguments: list[str], named: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        thresholds(monkeypatch, *arguments, *([] if "--out" in arguments else ["--out", "out"]))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and named in error
    assert contents(folder) == before and not Path("out").exists()
