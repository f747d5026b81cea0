"""The benchmark of explanations: it runs, it writes, it refuses to time what computes something else."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import explanations, published_explanations
from benchmarks.explanations import FORWARD, FORWARD_BACKWARD, MODULES, TASKS, Inputs, Models, Task
from benchmarks.harness import Case
from common.errors import UserError
from explain import METHODS
from explain.loading import load_any

ROOT = Path(__file__).parents[2]
TINY = ["--models=vit_nano_patch8", "--image-size=32", "--rounds=1", "--device=cpu"]
PUBLISHED = {"rollout", "grad_rollout", "lrp", "agcam", "gradcam", "abpc"}
WITH_PACKAGES = [task for task in TASKS if task.implementations.keys() & MODULES.keys()]


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanations, "find_spec", lambda name: None)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models("vit_nano_patch8", 32, torch.device("cpu"), torch.float64)


def inputs(count: int) -> Inputs:
    return explanations.random_inputs(count, 32, torch.device("cpu"), torch.float64)


def task(label: str) -> Task:
    return next(task for task in TASKS if task.label == label)


def method(label: str) -> str:
    return label.split()[0]


@pytest.mark.usefixtures("no_packages")
def test_it_measures_and_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    explanations.main([*TINY, "--batches", "4", "1", f"--out={tmp_path / 'table'}"])
    content, page = json.loads((tmp_path / "table.json").read_text()), (tmp_path / "table.md").read_text()
    assert page.strip() in capsys.readouterr().out
    (section,) = content["sections"]
    rows = section["rows"]
    ours = {(row["method"], row["batch"]) for row in rows if row["implementation"] == "ours"}
    assert ours == {(task.label, batch) for task in TASKS for batch in (4, 1)}
    published = [row for row in rows if row["implementation"] == "published"]
    assert {method(row["method"]) for row in published} == PUBLISHED
    assert all(row["batch"] == row["images"] == row["times_published"] == 1 for row in published)
    assert all(len(row["seconds"]) == 1 and row["peak_MiB"] > 0 and row["forwards"] > 0 for row in rows)
    differences = section["details"]["differences"]
    assert {method(name) for name in differences} == PUBLISHED
    assert all(value < 1e-9 for value in differences.values())
    assert "- captum: not installed, not measured" in page


def test_every_method_is_measured_but_the_models_own_mask() -> None:
    measured = {method(task.label) for task in TASKS}
    assert measured - {method(FORWARD), method(FORWARD_BACKWARD), "abpc"} == set(METHODS) - {"inherent"}


@pytest.mark.slow
def test_it_runs_as_a_module_from_the_root(tmp_path: Path) -> None:
    flags = [*TINY, "--batches=2", "--methods=rollout", "--threads=1", "--precision=bf16", f"--out={tmp_path / 'a'}"]
    command = [sys.executable, "-m", "benchmarks.explanations", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (section,) = json.loads((tmp_path / "a.json").read_text())["sections"]
    assert {method(row["method"]) for row in section["rows"]} == {FORWARD, FORWARD_BACKWARD, "rollout"}


@pytest.mark.parametrize("change", [lambda maps: maps.flip(0), lambda maps: maps * torch.nan])
def test_a_method_with_other_numbers_is_not_timed(
    change: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    right = task("agcam")
    wrong = {"ours": lambda models, inputs: change(right.implementations["ours"](models, inputs))}
    monkeypatch.setattr(explanations, "TASKS", (replace(right, implementations=right.implementations | wrong),))
    with pytest.raises(SystemExit) as stopped:
        explanations.main([*TINY, f"--out={tmp_path / 'table'}"])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert "error: not the published numbers: agcam (published); no results written" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", WITH_PACKAGES, ids=lambda task: task.label)
def test_installed_packages_compute_the_same_where_they_should(task: Task, models: Models) -> None:
    _, package = task.implementations
    pytest.importorskip(MODULES[package])
    assert task.implementations[package](models, inputs(2)).shape == (2, 32, 32)
    assert len(explanations.check(models, inputs(2), [task])) == int(task.equal)


def test_agcam_leaves_the_model_as_it_was(models: Models) -> None:
    before = published_explanations.gradcam(models.explicit, inputs(1).images)
    published_explanations.agcam(models.explicit, inputs(1).images)
    assert torch.equal(published_explanations.gradcam(models.explicit, inputs(1).images), before)


def test_a_vit_that_the_published_code_cannot_explain_is_refused() -> None:
    vit: Any = load_any("timm/vit_nano_patch8", "none", (32, 64)).model
    with pytest.raises(UserError, match="--models: the published code explains only ViTs with plain blocks"):
        published_explanations.explicit(vit)


def test_an_unknown_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        explanations.main(["--models=vit_nowhere"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: --model: timm has no model 'vit_nowhere'")


@pytest.mark.parametrize("wrong", [["--batches", "0"], ["--rounds=0"], ["--methods=inherent"], ["--precision=fp16"]])
def test_an_invalid_option_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        explanations.parse(wrong)
    assert stopped.value.code == 2


def case(label: str, implementation: str, batch: int, seconds: list[float]) -> Case:
    labels = {"method": label, "implementation": implementation, "batch": batch, "images": batch}
    return Case(labels, batch, lambda _: lambda: None, seconds=[batch * each for each in seconds])


def test_each_row_is_compared_with_its_own_baselines() -> None:
    table = explanations.rows(
        [
            case(FORWARD, "ours", 32, [0.5, 5, 1]),
            case("input_x_gradient", "ours", 32, [1, 10, 3]),
            case("input_x_gradient", "captum", 32, [2, 20, 3]),
            case("input_x_gradient", "captum", 1, [9, 9, 9]),
            case("rollout", "ours", 32, [1, 10, 1]),
            case("rollout", "published", 1, [2, 20, 4]),
        ]
    )
    assert [row["forwards"] for row in table] == [1, 2, 4, None, 2, None]
    assert [row["times_package"] for row in table] == [None, 2, 1, 1, None, None]
    assert [row["times_published"] for row in table] == [None, None, None, None, 2, 1]
