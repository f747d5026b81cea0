"""The benchmark of the training step: it runs, it writes, it refuses to time what computes something else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import step_measure
import step_report
import step_variants
import train_step
from step_measure import Case

from datasets.types import Batch
from models import masked_attention

ROOT = Path(__file__).parents[2]
TINY = ["--backbone=vit_nano_patch8", "--image-size=96", "--batch=4", "--rounds=1", "--device=cpu"]


@pytest.fixture(scope="module")
def bench() -> step_variants.Bench:
    return step_variants.Bench("vit_nano_patch8", 96, torch.device("cpu"))


def given(bench: step_variants.Bench) -> tuple[Tensor, Batch]:
    return step_variants.random_mask(4, bench.grid, 0.3, 0.5), step_variants.random_batch(4, 96, bench.device)


def test_it_measures_and_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_step.main([*TINY, "--keep", "0.3", "1", f"--out={tmp_path / 'new' / 'table.json'}"]) == 0
    content = json.loads((tmp_path / "new" / "table.json").read_text())
    page = (tmp_path / "new" / "table.md").read_text()
    assert page.strip() in capsys.readouterr().out
    steps = [(row["variant"], row["keep"]) for row in content["rows"] if row["part"] == "training step"]
    expected = [("published", None), ("dense", None)]
    assert steps == expected + [(variant, keep) for keep in (0.3, 1.0) for variant in ("packed", "gathered")]
    assert all(row["median_seconds"] > 0 and row["peak_bytes"] > 0 for row in content["rows"])
    assert content["rows"][0]["times_faster"] == 1
    assert {goal["goal"].partition(" at ")[0] for goal in content["goals"]} == {"packed step", "packed stage 2"}
    assert content["machine"]["packages"]["torch"]
    assert all(f"| {variant} |" in page for variant in step_variants.VARIANTS)
    memory = {row["variant"]: row["memory_share"] for row in content["rows"][:3]}
    assert memory["packed"] < memory["dense"] < memory["published"] == 1


@pytest.mark.slow
def test_it_runs_as_a_script_from_the_root(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    flags = [*TINY, "--threads=1", "--clock=cpu", "--precision=bf16", f"--out={tmp_path / 'table'}"]
    command = [sys.executable, "benchmarks/train_step.py", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(json.loads((tmp_path / "table.json").read_text())["check"]) == {"fp32", "bf16"}


def test_a_variant_that_reads_hidden_patches_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(masked_attention, "packed", lambda vit, x, mask: masked_attention.dense(vit, x, ~mask))
    assert train_step.main([*TINY, f"--out={tmp_path / 'table'}"]) == 1
    error = capsys.readouterr().err
    assert "error: not the numbers of the published step: fp32 packed; nothing was timed" in error
    assert list(tmp_path.iterdir()) == []


def test_a_variant_that_loses_a_gradient_is_seen(bench: step_variants.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, batch = given(bench)
    truth = step_measure.numbers(bench, "published", mask, batch)
    dense = masked_attention.dense
    monkeypatch.setattr(masked_attention, "dense", lambda vit, x, m: dense(vit, x.detach(), m))
    worst, where = step_measure.difference(bench, "dense", mask, batch, truth)
    assert worst == float("inf")
    assert "stage_2.backbone.pos_embed" in where


def test_a_gradient_that_is_no_number_is_seen(bench: step_variants.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, batch = given(bench)
    truth = step_measure.numbers(bench, "published", mask, batch)
    broken = truth | {"stage_2.head.weight": truth["stage_2.head.weight"] * torch.nan}
    monkeypatch.setattr(step_measure, "numbers", lambda *_: broken)
    assert step_measure.difference(bench, "dense", mask, batch, truth) == (float("inf"), "stage_2.head.weight")


def test_a_wrong_number_of_stage_2_passes_is_an_error(
    bench: step_variants.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bench.objectives, "published", bench.objectives["dense"])
    with pytest.raises(RuntimeError, match="published: 1 stage-2 passes, not 2"):
        step_measure.numbers(bench, "published", *given(bench))


@pytest.mark.parametrize("variant", ["dense", "packed", "gathered"])
def test_the_unused_pass_changes_no_gradient(bench: step_variants.Bench, variant: str) -> None:
    mask, batch = given(bench)
    truth = step_measure.numbers(bench, "published", mask, batch)
    assert step_measure.difference(bench, variant, mask, batch, truth)[0] < 1e-5
    trained = {name for name in truth if name.startswith("stage_1.")}
    heads = {f"stage_1.parts.{name}" for name, _ in bench.model.stage_1.parts.named_parameters()}
    assert trained == heads | {"stage_1.backbone.cls_token", "stage_1.backbone.pos_embed"}


def test_a_measured_step_leaves_the_weights_as_they_were(bench: step_variants.Bench) -> None:
    before = {name: p.detach().clone() for name, p in bench.model.named_parameters()}
    bench.train_step("packed", *given(bench))
    assert bench.optimizer.state
    assert all(torch.equal(p, before[name]) for name, p in bench.model.named_parameters())
    assert all(p.grad is None for p in bench.model.parameters())


@pytest.mark.parametrize(("keep", "spread"), [(0.1, 0.0), (0.3, 0.0), (0.3, 0.5), (1.0, 0.0), (0.001, 0.0), (1.0, 1.0)])
def test_a_mask_keeps_exactly_its_share(keep: float, spread: float) -> None:
    counts = step_variants.random_mask(5, (8, 6), keep, spread).flatten(1).sum(1).tolist()
    shares = [keep * (1 + spread * step) for step in (-1, -0.5, 0, 0.5, 1)]
    assert counts == [min(48, max(1, round(48 * share))) for share in shares]


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    def work() -> None:
        for _ in range(3):
            torch.ones(2**20)  # 4 MiB, freed at once
        kept = [torch.ones(2**18) for _ in range(2)]  # 2 MiB
        kept.append(torch.ones(2**20))

    assert step_measure.peak_bytes(work, torch.device("cpu")) == 6 * 2**20


def test_ratios_are_taken_within_a_round() -> None:
    published = Case("training step", "published", None, 0, peak_bytes=100, seconds=[2.0, 20.0, 4.0])
    packed = Case("training step", "packed", 0.3, 0, peak_bytes=40, seconds=[1.0, 10.0, 1.0])
    row = step_report.rows([published, packed])[1]
    assert (row["times_faster"], row["median_seconds"], row["min_seconds"]) == (2, 1, 1)
    assert row["memory_share"] == 0.4
    what = "packed step at keep 0.3: >= 1.6x fewer seconds than published"
    assert step_report.goals([row]) == [{"goal": what, "value": 2, "met": True}]


@pytest.mark.parametrize(
    "wrong", [["--keep=0"], ["--keep=1.5"], ["--rounds=0"], ["--spread=2"], ["--clock=cpu"], ["--precision=fp64"]]
)
def test_a_senseless_option_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_step.parse(wrong)
    assert stopped.value.code == 2


def test_an_unknown_backbone_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_step.main(["--backbone=vit_nowhere"]) == 1
    assert capsys.readouterr().err.startswith("error: model.backbone: timm has no model 'vit_nowhere'")
