"""Studies that are checked before they train, that go on when a row diverges, and that are trained run by run."""

import json
from pathlib import Path
from typing import Any

import pytest

import study as script
from commands.study_jobs import check_jobs, jobs, load_study, run_job
from common.errors import UserError
from engine.run.folder import RESULTS
from tests.commands.test_study_jobs import Trainings, all_jobs, study_file


def test_keys_without_effect_may_differ_on_a_finished_study(tmp_path: Path) -> None:
    """The message names a key that has an effect; weights of another start are another run."""
    job, train = all_jobs(tmp_path)[0], Trainings()
    run_job(job, train)
    free = {"data.workers": 2, "train.threads": 3, "train.log_test": True, "wandb.project": "x", "data.root": "/moved"}
    again = all_jobs(tmp_path, **free)[0]
    assert run_job(again, train)["accuracy"] == 1.0 and len(train.done) == 1
    for key, value in {"model.init_from": "runs/x", "train.epochs": 9}.items():
        with pytest.raises(UserError, match=rf"another config \({key}=.*, now {value}\)"):
            run_job(all_jobs(tmp_path, **free, **{key: value})[0], train)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"model.backbone": "no_such_vit"}, "no_such_vit"),
        ({"data.name": "cub", "data.root": "/nowhere"}, "/nowhere"),
        ({"data.image_size": 33}, "data.image_size"),
    ],
)
def test_a_mistake_in_the_last_row_is_found_before_the_first_trains(
    keys: dict[str, Any], named: str, tmp_path: Path
) -> None:
    study = load_study(study_file(tmp_path, rows={"a": {"model.name": "vit"}, "b": {"model.name": "vit", **keys}}))
    with pytest.raises(UserError, match="row b, seed 3: ") as caught:
        check_jobs(list(jobs(study, tmp_path / "runs", None, {})))
    assert named in str(caught.value)


def test_a_folder_with_another_run_is_found_before_the_first_trains(tmp_path: Path) -> None:
    run_job(all_jobs(tmp_path)[3], Trainings())
    check_jobs(all_jobs(tmp_path))
    with pytest.raises(UserError, match="row b, seed 4: .*train.epochs=2, now 9"):
        check_jobs(all_jobs(tmp_path, **{"train.epochs": 9})[3:])


def small_rows(**of_a: Any) -> dict[str, Any]:
    row = {"model.name": "vit", "train.epochs": 1, "train.sheet_every": 0}
    return {"a": row | of_a, "b": row}


def test_a_diverging_run_is_a_row_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = small_rows(**{"optim.lr": 1e18, "optim.head_lr_mult": 1e18, "optim.name": "sgd", "optim.clip": 0})
    path, out = study_file(tmp_path, rows=rows, seeds=[0]), tmp_path / "runs"
    monkeypatch.setattr("sys.argv", ["study.py", str(path), "--out", str(out)])
    script.main()
    found = json.loads((out / RESULTS).read_text())
    assert "not finite" in found["a"]["diverged"]["0"] and "diverged" not in found["b"]
    assert 0 <= found["b"]["test/accuracy"] <= 1 and "test/accuracy" not in found["a"]
    table = {row["row"]: row for row in json.loads((out / "table.json").read_text())["rows"]}
    assert (table["a"]["diverged"], table["b"]["diverged"]) == (1.0, 0.0)
    assert "a, seed 0 diverged: " in (out / "report.html").read_text()


def test_one_run_of_a_study_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As slurm/study.sbatch calls it; the call without a number then reads the runs."""
    command = ["study.py", str(study_file(tmp_path, rows=small_rows(), seeds=[0])), "--out", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.argv", [*command, "--job", "2"])
    with pytest.raises(SystemExit):
        script.main()
    monkeypatch.setattr("sys.argv", [*command, "--job", "1"])
    script.main()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["b-seed0"]


@pytest.mark.parametrize("row", ["", "..", ".hidden", "a/b", "/x", "a\\b", "a\x1b[2J", "a\nb", "a" * 101])
def test_a_row_is_a_name(row: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names a folder, but it ") as caught:
        load_study(study_file(tmp_path, rows={row: {}}))
    assert "rename it" in str(caught.value)


def test_a_study_deletes_no_run(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path, rows={"a": {"overwrite": True}}))
    for found, overrides in ((study, {}), (load_study(study_file(tmp_path)), {"overwrite": True})):
        with pytest.raises(UserError, match="overwrite: a study deletes no run"):
            list(jobs(found, tmp_path / "runs", None, overrides))


def test_the_folder_of_a_study_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["study.py", str(study_file(tmp_path)), "--out", ""])
    with pytest.raises(SystemExit):
        script.main()
    assert not (tmp_path / "a-seed3").exists()


def test_published_runs_are_kept_before_anything_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docs, path = tmp_path / "docs", study_file(tmp_path, rows=small_rows(), seeds=[0])
    docs.mkdir()
    (docs / "table.json").write_text(json.dumps({"runs": [{"row": "a", "seed": 0}, {"row": "b", "seed": 0}]}))
    out = tmp_path / "runs"
    flags = ["--out", str(out), "--publish", str(docs), "--rows", "a"]
    monkeypatch.setattr("sys.argv", ["study.py", str(path), *flags])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert "such as b, seed 0; run them too" in capsys.readouterr().err and not out.exists()
