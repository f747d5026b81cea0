"""Studies: reading study files; which runs are read, resumed, trained or refused; averages over seeds."""

import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from commands.study_jobs import Job, differences, jobs, load_study, run_job, same_run, summarise
from common.errors import UserError
from engine.run.config import RunConfig
from engine.run.folder import LAST, RESULTS, open_run
from engine.run.stopping import RunStopped
from tests.tiny import KEYS, tiny_config, tiny_model

ROOT = Path(__file__).parents[2]
STUDY = {
    "title": "A and B",
    "seeds": [3, 4],
    "rows": {"a": {"optim.lr": 0.5}, "b": {"model": {"parts": {"num_parts": 2}}}},
}


def study_file(folder: Path, **changes: Any) -> Path:
    """A study of two rows over the tiny config; a change of None leaves the key out."""
    tree: dict[str, Any] = {}
    for key, value in KEYS.items():
        *groups, last = key.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[last] = value
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    content = {**STUDY, "config": str(folder / "tiny.yaml"), **changes}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


def all_jobs(folder: Path, **overrides: Any) -> list[Job]:
    study = load_study(study_file(folder))
    return list(jobs(study, folder / "runs", None, overrides))


class Trainings:
    """A fake train.train: leaves a run folder, records its calls, and can be stopped."""

    def __init__(self) -> None:
        self.done: list[tuple[str, bool]] = []
        self.stop = False

    def __call__(self, config: RunConfig) -> dict[str, Any]:
        out = open_run(config, tiny_model(config))
        self.done.append((out.name, config.resume))
        (out / LAST).touch()
        if self.stop:
            raise RunStopped(signal.SIGTERM)
        results = {"accuracy": float(len(self.done)), "seed": config.train.seed}
        (out / RESULTS).write_text(json.dumps(results))
        return results


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_resolves(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = load_study(path)
    found = list(jobs(study, tmp_path, None, {}))
    more = sum(len(seeds) for seeds in study.more_seeds.values())
    assert len(found) == len(study.seeds) * len(study.rows) + more and study.title and study.about


def test_rows_and_seeds_become_configs(tmp_path: Path) -> None:
    found = all_jobs(tmp_path, **{"train.epochs": 7})
    assert [(job.row, job.seed) for job in found] == [("a", 3), ("b", 3), ("a", 4), ("b", 4)]
    assert [Path(job.config.out).name for job in found] == ["a-seed3", "b-seed3", "a-seed4", "b-seed4"]
    assert [job.config.train.seed for job in found] == [3, 3, 4, 4]
    assert [job.config.optim.lr for job in found] == [0.5, 1e-3, 0.5, 1e-3]
    assert [job.config.model.parts.num_parts for job in found] == [3, 2, 3, 2]
    assert {job.config.train.epochs for job in found} == {7}


def test_the_command_lines_overrides_win_over_the_rows(tmp_path: Path) -> None:
    assert {job.config.optim.lr for job in all_jobs(tmp_path, **{"optim.lr": 0.25})} == {0.25}


def test_a_study_may_vary_the_data_with_the_seed(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path, vary=["train.seed", "data.seed"]))
    found = list(jobs(study, tmp_path, (1, 2), {}))
    assert [(job.config.train.seed, job.config.data.seed) for job in found] == [(1, 1), (1, 1), (2, 2), (2, 2)]


def test_a_row_may_start_from_another_rows_run(tmp_path: Path) -> None:
    rows = {"a": {}, "b": {"model.init_from": "{out}/a-seed{seed}"}}
    study = load_study(study_file(tmp_path, rows=rows))
    found = [job.config.model.init_from for job in jobs(study, tmp_path / "runs", None, {}) if job.row == "b"]
    assert found == [str(tmp_path / "runs" / f"a-seed{seed}") for seed in (3, 4)]


def test_headline_rows_get_further_seeds(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path, more_seeds={"b": [4, 5]}, seeds=[3]))
    assert [(job.row, job.seed) for job in jobs(study, tmp_path, None, {})] == [("a", 3), ("b", 3), ("b", 4), ("b", 5)]
    assert [(job.row, job.seed) for job in jobs(study, tmp_path, [7], {})] == [("a", 7), ("b", 7)]
    assert [(job.row, job.seed) for job in jobs(study.only(["a"]), tmp_path, None, {})] == [("a", 3)]
    with pytest.raises(UserError, match="more_seeds names unknown rows c"):
        load_study(study_file(tmp_path, more_seeds={"c": [1]}))


def test_only_some_rows(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path))
    assert list(study.only(["b"]).rows) == ["b"] and study.only(None) is study
    with pytest.raises(UserError, match=r"no row c.*a, b"):
        study.only(["a", "c"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"title": None}, "title"),
        ({"config": None}, "config"),
        ({"rows": None}, "rows"),
        ({"rows": ["a", "b"]}, "study.yaml"),
        ({"rows": {"a": 5}}, "study.yaml"),
        ({"seeds": 3}, "study.yaml"),
        ({"seeds": ["x"]}, "study.yaml"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_mistaken_study_is_one_line(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named) as caught:
        load_study(study_file(tmp_path, **changes))
    assert "\n" not in str(caught.value) and "study.yaml" in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a", "rows: [", None])
def test_a_study_that_is_no_study_is_one_line(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"study\.yaml") as caught:
        load_study(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "named"), [("optim.lrr", "optim.lrr"), ("optim.lr", "optim.lr")])
def test_a_mistake_in_a_row_is_named(key: str, named: str, tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path, rows={"a": {key: "fast"}}))
    with pytest.raises(UserError, match=named):
        list(jobs(study, tmp_path, (0,), {}))


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path, config="configs/nowhere.yaml"))
    with pytest.raises(UserError, match="configs/nowhere.yaml"):
        list(jobs(study, tmp_path, (0,), {}))


def test_a_finished_run_is_read_and_not_trained_again(tmp_path: Path) -> None:
    job, train = all_jobs(tmp_path)[0], Trainings()
    first = run_job(job, train)
    assert run_job(job, train) == first == {"accuracy": 1.0, "seed": 3}
    assert train.done == [("a-seed3", False)]


def test_an_interrupted_run_is_resumed(tmp_path: Path) -> None:
    job, train = all_jobs(tmp_path)[0], Trainings()
    train.stop = True
    for _ in range(2):
        with pytest.raises(RunStopped):
            run_job(job, train)
    train.stop = False
    assert run_job(job, train)["accuracy"] == 3.0
    assert train.done == [("a-seed3", False), ("a-seed3", True), ("a-seed3", True)]
    assert run_job(job, train)["accuracy"] == 3.0 and len(train.done) == 3


def changed(what: str, job: Job) -> Job:
    config = job.config
    other = {
        "rate": lambda: replace(config, optim=replace(config.optim, lr=0.7)),
        "epochs": lambda: replace(config, train=replace(config.train, epochs=9)),
        "data": lambda: replace(config, data=replace(config.data, seed=9)),
    }[what]()
    return replace(job, config=other)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("what", ["rate", "epochs", "data"])
def test_a_run_of_another_config_is_refused(what: str, finished: bool, tmp_path: Path) -> None:
    job, train = all_jobs(tmp_path)[0], Trainings()
    run_job(job, train)
    if not finished:
        (tmp_path / "runs" / "a-seed3" / RESULTS).unlink()
    with pytest.raises(UserError, match="another config") as caught:
        run_job(changed(what, job), train)
    assert "a-seed3" in str(caught.value) and len(train.done) == 1


def test_the_same_run_by_another_path_or_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, train = all_jobs(tmp_path)[0], Trainings()
    run_job(job, train)
    monkeypatch.chdir(tmp_path)
    near = replace(job, config=replace(job.config, out="runs/a-seed3"))
    assert run_job(near, train)["accuracy"] == 1.0 and len(train.done) == 1
    config = tiny_config(tmp_path)
    assert same_run(config, replace(config, resume=True)) and same_run(config, replace(config, overwrite=True))


def job_of(make: Callable[[str], RunConfig], row: str, seed: int) -> Job:
    return Job(row, seed, make(row))


def test_summary_is_mean_and_sample_deviation_over_seeds(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    runs = {
        "a": [
            {"x": 1.0, "n": 10, "model": "vit", "z": math.nan},
            {"x": 2.0, "n": 10, "model": "vit", "z": 0.5},
            {"x": 6.0, "n": 10, "extra": 1, "z": 0.25},
        ],
        "b": [{"x": 0.25, "y": math.nan, "flag": True}],
    }
    results = [
        (job_of(lambda _: config, row, seed), run) for row, listed in runs.items() for seed, run in enumerate(listed)
    ]
    summary = summarise(results)
    assert list(summary) == ["a", "b"]
    assert summary["a"]["x"] == 3.0 and summary["a"]["std"]["x"] == pytest.approx(7**0.5)
    assert summary["a"]["n"] == 10 and summary["a"]["std"]["n"] == 0
    assert math.isnan(summary["a"]["z"]) and math.isnan(summary["a"]["std"]["z"])
    assert "extra" not in summary["a"] and "model" not in summary["a"]  # not in every run, not a number
    assert summary["b"]["x"] == 0.25 and summary["b"]["std"]["x"] == 0.0
    assert math.isnan(summary["b"]["y"]) and "flag" not in summary["b"]
    assert summary["a"]["seeds"] == runs["a"] and json.dumps(summary)


def finished_with(tmp_path: Path, right: dict[str, float], **changes: Any) -> tuple[list[Any], dict[str, str]]:
    """Finished jobs of rows a and b whose runs predict a fraction `right` of 200 images correctly."""
    study = load_study(study_file(tmp_path, compare={"b": "a"}, **changes))
    done = []
    for job in jobs(study, tmp_path / "runs", None, {}):
        out = Path(job.config.out)
        out.mkdir(parents=True)
        predicted = [int(i >= right[job.row] * 200) for i in range(200)]
        frame = pd.DataFrame({"path": [f"{out}/{i}.png" for i in range(200)], "label": 0, "predicted": predicted})
        frame.assign(group=None).to_csv(out / "predictions.csv", index=False)
        done.append((job, {}))
    return done, study.compare


def test_rows_are_compared_over_images_and_seeds(tmp_path: Path) -> None:
    done, compare = finished_with(tmp_path, {"a": 0.2, "b": 0.9})
    (record,) = differences(done, compare)
    assert record["row"] == "b - a" and record["runs"] == "2, 2" and record["accuracy"] == pytest.approx(0.7)
    assert 0.5 < record["accuracy/low"] < 0.7 < record["accuracy/high"] < 0.9
    assert differences([d for d in done if d[0].row == "a"], compare) == [], "the other row did not run"
    (Path(done[0][0].config.out) / "predictions.csv").unlink()
    assert differences(done, compare) == [], "a run of an earlier version wrote no predictions"


def test_rows_with_different_test_images_are_named(tmp_path: Path) -> None:
    done, compare = finished_with(tmp_path, {"a": 0.2, "b": 0.9})
    file = Path(done[-1][0].config.out) / "predictions.csv"
    file.write_text(file.read_text().replace("199.png", "200.png"))
    with pytest.raises(UserError, match="compare: b and a: they were evaluated on different images"):
        differences(done, compare)


def test_a_comparison_of_unknown_rows_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="compare names unknown rows c"):
        load_study(study_file(tmp_path, compare={"a": "c"}))
