"""The benchmark of explanations: it runs, it writes, it refuses to time what computes something else."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import explain_cases
import explain_packages
import explain_published
import explain_report
import explain_run
from explain_cases import BOTH, FORWARD, METHODS, Method

from common.errors import UserError
from explain import METHODS as OURS
from explain.loading import load_timm

ROOT = Path(__file__).parents[2]
TINY = ["--models=vit_nano_patch8", "--image-size=32", "--rounds=2", "--singles=2", "--device=cpu"]
PUBLISHED = {"rollout", "grad_rollout", "lrp", "agcam", "gradcam", "abpc"}
PACKAGES = set(explain_packages.MODULES)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package is installed."""
    monkeypatch.setattr(explain_packages, "find_spec", lambda name: None)


@pytest.fixture(scope="module")
def setup() -> explain_cases.Setup:
    return explain_cases.Setup("vit_nano_patch8", 32, torch.device("cpu"), torch.float64)


def given(count: int) -> explain_cases.Given:
    return explain_cases.noise(count, 32, torch.device("cpu"), torch.float64)


def method(name: str) -> Method:
    return next(method for method in METHODS if method.name == name)


@pytest.mark.usefixtures("alone")
def test_it_measures_and_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain_run.main([*TINY, "--batches", "4", "1", f"--out={tmp_path / 'new'}"]) == 0
    name = "explain_vit_nano_patch8_32px_cpu_fp32"
    content = json.loads((tmp_path / "new" / f"{name}.json").read_text())
    page = (tmp_path / "new" / f"{name}.md").read_text()
    assert page.strip() in capsys.readouterr().out
    rows = content["rows"]
    ours = {(row["name"], row["batch"]) for row in rows if row["way"] == "ours"}
    assert ours == {(entry.name, batch) for entry in METHODS for batch in (4, 1)}
    assert {row["name"] for row in rows if row["way"] == "published"} == PUBLISHED
    assert all(row["batch"] == row["images"] == 1 for row in rows if row["way"] == "published")
    assert all(len(row["seconds_per_image"]) == 2 and row["peak_bytes"] > 0 for row in rows)
    assert {line["method"].split()[0] for line in content["check"]} == PUBLISHED
    assert all(line["fine"] and line["difference"] < 1e-9 for line in content["check"])
    assert content["machine"]["packages"]["torch"]
    assert set(content["missing"]) == PACKAGES
    assert "captum: not installed (pip install captum), not measured" in page
    assert page.count("agcam's peak memory") == 2


def test_every_method_is_measured_but_the_models_own_mask() -> None:
    assert {entry.name for entry in METHODS} - {FORWARD, BOTH, "abpc"} == set(OURS) - {"inherent"}


@pytest.mark.slow
def test_it_runs_as_a_script_from_the_root(tmp_path: Path) -> None:
    flags = [*TINY, "--batches=2", "--methods=rollout", "--threads=1", "--precision=bf16", f"--out={tmp_path}"]
    command = [sys.executable, "benchmarks/explain.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "explain_vit_nano_patch8_32px_cpu_bf16.json").is_file()


def test_a_method_of_other_numbers_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    right = method("agcam")
    wrong = replace(right, ours=lambda setup, given: right.ours(setup, given).flip(0))  # maps of the other images
    monkeypatch.setattr(explain_run, "METHODS", (method(BOTH), wrong))
    assert explain_run.main([*TINY, f"--out={tmp_path}"]) == 1
    assert "error: not the same numbers: agcam (published); nothing was timed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_map_that_is_no_number_is_no_equal(setup: explain_cases.Setup) -> None:
    rollout = method("rollout")
    broken = replace(rollout, ours=lambda setup, given: rollout.ours(setup, given) * torch.nan)
    assert [line["fine"] for line in explain_run.check(setup, given(1), [rollout, broken])] == [True, False]


@pytest.mark.parametrize("name", [entry.name for entry in METHODS if entry.others.keys() & PACKAGES])
def test_installed_packages_compute_what_is_said_of_them(name: str, setup: explain_cases.Setup) -> None:
    entry = next(entry for entry in METHODS if entry.name == name and entry.others.keys() & PACKAGES)
    (package,) = entry.others
    pytest.importorskip(explain_packages.MODULES[package])
    maps = entry.ways()[package](setup, given(2))
    assert maps.shape == (2, 32, 32)
    assert all(line["fine"] for line in explain_run.check(setup, given(2), [entry]))


def test_what_published_code_could_not_explain_is_refused() -> None:
    vit: Any = load_timm("vit_nano_patch8", "none", (32, 64)).model
    with pytest.raises(UserError, match="--models: published code explains plain ViTs alone"):
        explain_published.explicit(vit)


def test_an_unknown_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        explain_run.main(["--models=vit_nowhere"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: --model: timm has no model 'vit_nowhere'")


@pytest.mark.parametrize("wrong", [["--batches", "0"], ["--rounds=0"], ["--singles=0"], ["--methods=inherent"]])
def test_a_senseless_option_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        explain_run.parse(wrong, None)
    assert stopped.value.code == 2


def case(name: str, way: str, batch: int, seconds: list[float], peak: int = 1) -> Any:
    entry = method(name)
    return SimpleNamespace(method=entry, way=way, batch=batch, images=batch, peak_bytes=peak, seconds=seconds)


def test_ratios_are_taken_within_a_round() -> None:
    measured = [
        case(FORWARD, "ours", 32, [0.5, 5, 1]),
        case("input_x_gradient", "ours", 32, [1, 10, 3]),
        case("input_x_gradient", "captum", 32, [2, 20, 3]),
        case("input_x_gradient", "captum", 1, [9, 9, 9]),
        case("rollout", "ours", 32, [1, 10, 1]),
        case("rollout", "published", 1, [2, 20, 4]),
    ]
    table = explain_report.rows(measured)
    assert [row["forwards"] for row in table] == [1, 2, 4, None, 2, None]
    assert [row["times_package"] for row in table] == [None, 2, 1, 1, None, None]
    assert [row["times_published"] for row in table] == [None, None, None, None, 2, 1]
    assert [row["images_per_second"] for row in table][4:] == [1, 0.25]


@pytest.mark.parametrize(("device", "batch", "met"), [("cpu", 32, True), ("cpu", 16, None), ("cuda", 64, False)])
def test_goals_are_for_their_device_and_batch(device: str, batch: int, met: bool | None) -> None:
    measured = [case("rollout", "ours", batch, [1.0]), case("rollout", "published", 1, [2.5])]
    found = explain_report.goals(explain_report.rows(measured), device)
    assert [goal["met"] for goal in found] == ([] if met is None else [met])


@pytest.mark.parametrize(("peak", "met"), [(13, True), (14, False)])
def test_agcams_memory_is_held_against_a_plain_pass_of_the_same_batch(peak: int, met: bool) -> None:
    plain = [case(BOTH, "ours", 2, [1.0], peak=10), case(BOTH, "ours", 1, [1.0], peak=1)]
    (goal,) = explain_report.goals(explain_report.rows([*plain, case("agcam", "ours", 2, [1.0], peak=peak)]), "cpu")
    assert (goal["value"], goal["met"]) == (peak / 10, met)
