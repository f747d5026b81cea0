"""The benchmark of the training step: it runs, it writes, it refuses to time what computes something else."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import train_step
from benchmarks.fixed_masks import random_mask
from benchmarks.published_step import VARIANTS
from benchmarks.train_step import OURS, VariantRunner
from datasets.types import Batch
from models import masked_attention

ROOT = Path(__file__).parents[2]
TINY = ["--backbone=vit_nano_patch8", "--image-size=96", "--batch=4", "--rounds=1", "--device=cpu"]


@pytest.fixture(scope="module")
def runner() -> VariantRunner:
    return VariantRunner("vit_nano_patch8", 96, torch.device("cpu"))


def inputs(runner: VariantRunner) -> tuple[Tensor, Batch]:
    return random_mask(4, runner.grid, 0.3, 0.5), train_step.random_batch(4, 96, runner.device)


def test_it_measures_and_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_step.main([*TINY, "--keep", "0.3", "1", f"--out={tmp_path / 'table.json'}"])
    content = json.loads((tmp_path / "table.json").read_text())
    page = (tmp_path / "table.md").read_text()
    assert page.strip() in capsys.readouterr().out
    steps, stage_2 = (section["rows"] for section in content["sections"])
    expected = [("published", None), ("dense", None)]
    expected += [(variant, keep) for keep in (0.3, 1.0) for variant in ("packed", "gathered")]
    assert [(row["variant"], row["keep"]) for row in steps] == expected
    assert [(row["variant"], row["keep"]) for row in stage_2] == [("dense", 0.25), ("packed", 0.25)]
    assert all(row["median_seconds"] > 0 and row["peak_MiB"] > 0 for row in steps + stage_2)
    assert steps[0]["times_faster"] == stage_2[0]["times_faster"] == 1
    assert all(f"| {variant} |" in page for variant in VARIANTS)
    memory = {row["variant"]: row["memory_ratio"] for row in steps[:3]}
    assert memory["packed"] < memory["dense"] < memory["published"] == 1
    assert "relative difference from published, fp32 packed" in page


@pytest.mark.slow
def test_it_runs_as_a_module_from_the_root(tmp_path: Path) -> None:
    flags = [*TINY, "--threads=1", "--precision=bf16", f"--out={tmp_path / 'table'}"]
    command = [sys.executable, "-m", "benchmarks.train_step", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "table.md").read_text()
    assert "fp32 packed" in page and "bf16 packed" in page


def test_a_variant_that_reads_hidden_patches_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(masked_attention, "packed", lambda vit, x, mask, _: masked_attention.dense(vit, x, ~mask))
    with pytest.raises(SystemExit) as stopped:
        train_step.main([*TINY, f"--out={tmp_path / 'table'}"])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert "error: not the published numbers: fp32 packed (" in error and "round 1/1" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_variant_that_loses_a_gradient_is_seen(runner: VariantRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = runner.gradients("published", *inputs(runner))
    dense = masked_attention.dense
    monkeypatch.setattr(masked_attention, "dense", lambda vit, t, m, _: dense(vit, replace(t, x=t.x.detach()), m))
    worst, where = train_step.difference(runner.gradients("dense", *inputs(runner)), expected)
    assert worst == torch.inf
    assert "stage_2.backbone.pos_embed" in where


def test_a_gradient_that_is_not_a_number_is_seen(runner: VariantRunner) -> None:
    expected = runner.gradients("published", *inputs(runner))
    broken = expected | {"stage_2.head.weight": expected["stage_2.head.weight"] * torch.nan}
    assert train_step.difference(broken, expected) == (torch.inf, "stage_2.head.weight")


@pytest.mark.parametrize(("variant", "expected"), [("published", 2), ("dense", 1), ("packed", 1), ("gathered", 1)])
def test_only_the_published_step_runs_stage_2_twice(runner: VariantRunner, variant: str, expected: int) -> None:
    passes: list[bool] = []
    hook = runner.stage_2s[variant].register_forward_hook(lambda *_: passes.append(True))
    runner.gradients(variant, *inputs(runner))
    hook.remove()
    assert len(passes) == expected


@pytest.mark.parametrize("variant", OURS)
def test_the_unused_pass_changes_no_gradient(runner: VariantRunner, variant: str) -> None:
    expected = runner.gradients("published", *inputs(runner))
    assert train_step.difference(runner.gradients(variant, *inputs(runner)), expected)[0] < 1e-5
    trained = {name for name in expected if name.startswith("stage_1.")}
    heads = {f"stage_1.parts.{name}" for name, _ in runner.model.stage_1.parts.named_parameters()}
    assert trained == heads | {"stage_1.backbone.cls_token", "stage_1.backbone.pos_embed"}


def test_a_measured_step_leaves_the_weights_as_they_were(runner: VariantRunner) -> None:
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
    runner.train_step("packed", *inputs(runner))
    assert runner.optimizer.state
    assert all(torch.equal(p, before[name]) for name, p in runner.model.named_parameters())
    assert all(p.grad is None for p in runner.model.parameters())


@pytest.mark.parametrize(("keep", "spread"), [(0.1, 0.0), (0.3, 0.0), (0.3, 0.5), (1.0, 0.0), (0.001, 0.0), (1.0, 1.0)])
def test_a_mask_keeps_exactly_its_fraction(keep: float, spread: float) -> None:
    counts = random_mask(5, (8, 6), keep, spread).flatten(1).sum(1).tolist()
    ratios = [keep * (1 + spread * step) for step in (-1, -0.5, 0, 0.5, 1)]
    assert counts == [min(48, max(1, round(48 * ratio))) for ratio in ratios]


@pytest.mark.parametrize("wrong", [["--keep=0"], ["--keep=1.5"], ["--rounds=0"], ["--spread=2"], ["--precision=fp64"]])
def test_an_invalid_option_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_step.parse(wrong)
    assert stopped.value.code == 2
    assert f"error: argument {wrong[0].partition('=')[0]}: invalid" in capsys.readouterr().err


def test_an_unknown_backbone_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_step.main(["--backbone=vit_nowhere"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: model.backbone: timm has no model 'vit_nowhere'")
