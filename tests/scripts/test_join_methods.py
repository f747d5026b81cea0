"""commands.join_methods: the tables of several evaluations become those of one, or one line says why not."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from commands import join_methods
from tests.scripts.method_runs import Measure
from tests.tiny import timeless


def join(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["commands.join_methods", *arguments])
    join_methods.main()


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        join(monkeypatch, *arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    return error


def write(folder: str, method: str, metrics: dict[str, Any] | None = None, **changed: Any) -> None:
    """The files of a small evaluation of one method: two images, and the row of a mask that no method made."""
    found = metrics or {"abpc": 0.5, "abpc/low": None}
    results = {
        "model": "runs/a", "split": "test", "images": 2, "stage": 2, "masks_for": None, "maps": None,
        "inputs": {"weights": "f00", "image size": [32, 32]}, "methods": {method: {}},
        "model_metrics": {"accuracy": 0.5}, "protocol": {name.split("/")[0]: {"steps": 10} for name in found},
        "provenance": {"device": "CPU"}, "rows": [{"row": method, **found}, {"row": "(true mask)", "iou": 1.0}],
    }  # fmt: skip
    (Path(folder) / "per_image").mkdir(parents=True)
    (Path(folder) / "results.json").write_text(json.dumps(results | changed))
    (Path(folder) / "per_image" / f"{method}.csv").write_text("path,abpc\na,0.25\nb,0.75\n")


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_joined_evaluations_are_one_evaluation_of_all_methods(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["lrp", "rollout", "gradcam"]
    measure("--run", "two", "--method", *methods, out="at_once")
    for name in methods:
        measure("--run", "two", "--method", name, out=f"apart/{name}")
    join(monkeypatch, *(f"apart/{name}" for name in methods), "--out", "joined")
    whole, results = (json.loads(Path(folder, "results.json").read_text()) for folder in ("at_once", "joined"))
    assert list(map(timeless, results["rows"])) == list(map(timeless, whole["rows"]))
    same = whole.keys() - {"rows", "provenance", "maps"}
    assert {key: results[key] for key in same} == {key: whole[key] for key in same}
    tables = [pd.read_csv(f"{folder}/methods.csv").filter(regex="^(?!seconds)") for folder in ("at_once", "joined")]
    pd.testing.assert_frame_equal(*tables)
    for name in methods:
        table = f"per_image/{name}.csv"
        assert Path("joined", table).read_bytes() == Path("at_once", table).read_bytes()
    assert [source["folder"] for source in results["joined"]] == [f"apart/{name}" for name in methods]
    assert "lrp" in Path("joined/report.html").read_text()


def test_metrics_that_one_folder_lacks_stay_empty(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a", "lrp")
    write("b", "rollout", {"pointing/hit": 1.0}, model_metrics={"accuracy": 0.5 + 1e-9})  # of another device
    join(monkeypatch, "b", "a", "--out", "out")
    assert "2 images, 2 methods; report: out/report.html" in capsys.readouterr().out
    table = pd.read_csv("out/methods.csv").set_index("row")
    assert list(table.index) == ["rollout", "lrp", "(true mask)"]
    assert table["abpc"].isna().tolist() == [True, False, True] and table.loc["rollout", "pointing/hit"] == 1
    assert set(json.loads(Path("out/results.json").read_text())["protocol"]) == {"abpc", "pointing"}


def test_a_joined_folder_takes_further_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, method in {"a": "lrp", "b": "rollout", "c": "gradcam"}.items():
        write(folder, method)
    join(monkeypatch, "a", "b", "--out", "out")
    join(monkeypatch, "out", "c", "--out", "out")
    results = json.loads(Path("out/results.json").read_text())
    assert [source["folder"] for source in results["joined"]] == ["a", "b", "c"]
    assert [row["row"] for row in results["rows"]] == ["lrp", "rollout", "gradcam", "(true mask)"]
    join(monkeypatch, "b", "--out", "out")
    assert [path.stem for path in Path("out/per_image").iterdir()] == ["rollout"], "not those of the earlier table"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": 3}, "a and b cannot be joined: images is 2 and 3; evaluate again with the same model"),
        ({"inputs": {"weights": "bad", "image size": [32, 32]}}, "inputs weights is f00 and bad"),
        ({"model_metrics": {"accuracy": 1.0}}, "model_metrics: accuracy is 0.5 and 1.0"),
        ({"protocol": {"abpc": {"steps": 20}}}, "protocol: abpc steps is 10 and 20"),
        ({"masks_for": "runs/b"}, "masks_for is None and runs/b"),
        ({"masks_for_weights": "bad"}, "masks_for_weights is None and bad"),
        ({"rows": [{"row": "rollout"}, {"row": "(true mask)", "iou": 0.5}]}, "row (true mask): iou is 1.0 and 0.5"),
        ({"rows": []}, "damaged or of an earlier version: 'rollout'); give a folder of evaluate.py --method"),
        ({"rows": [{"row": "rollout", "abpc": [1]}]}, "damaged or of an earlier version: rows)"),
        ({"inputs": None}, "damaged or of an earlier version: inputs)"),
    ],
)
def test_folders_that_do_not_belong_together(
    changed: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a", "lrp")
    write("b", "rollout", **changed)
    assert message in refused(monkeypatch, capsys, "a", "b", "--out", "out")
    assert not Path("out").exists()


def test_other_images_a_method_twice_and_no_evaluation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a", "lrp")
    write("b", "rollout")
    Path("b/per_image/rollout.csv").write_text("path,abpc\na,0.25\nc,0.75\n")
    assert "their images differ" in refused(monkeypatch, capsys, "a", "b", "--out", "out")
    write("c", "lrp")
    assert "lrp is in a and c; leave one of them out" in refused(monkeypatch, capsys, "a", "c", "--out", "out")
    assert "cannot read none/results.json (No such file" in refused(monkeypatch, capsys, "a", "none", "--out", "out")
    assert "--out: b holds an evaluation" in refused(monkeypatch, capsys, "a", "--out", "b")
    Path("d").mkdir()
    Path("d/predictions.csv").write_text("")
    assert "d holds an evaluation of predictions" in refused(monkeypatch, capsys, "a", "--out", "d")
