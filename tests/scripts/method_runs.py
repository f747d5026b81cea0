"""Trained runs (two-stage and plain) and helpers to measure them with `evaluate.py --method`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import evaluate
import train
from tests.tiny import KEYS, flags, timeless

SCRIPT: dict[str, Any] = {
    **KEYS, "model.backbone": "vit_nano_patch8", "train.epochs": 1, "data.synthetic.test_images": 12,
    "data.eval_batch_size": 5,
}  # fmt: skip
"""Scripts run in their own process do not know the backbones registered by the tests."""
FAST = ("--method", "rollout", "--metrics", "pointing")
NANO = ("--model", "timm/vit_nano_patch8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs `two` (two-stage), `pixel` (the same with pixel masks) and `plain`, and `head`:
    weights of a ViT with two classes."""
    folder = tmp_path_factory.mktemp("runs")
    two_stage = {**SCRIPT, "model.stage_1_backbone": "vit_pico_patch8"}
    with pytest.MonkeyPatch.context() as patch:
        pixel = {**two_stage, "model.mask_resolution": "pixel"}
        for name, keys in {"two": two_stage, "pixel": pixel, "plain": {**SCRIPT, "model.name": "vit"}}.items():
            patch.setattr(sys, "argv", ["train.py", *flags({**keys, "out": str(folder / name)})])
            train.main()
    torch.manual_seed(0)
    vit = timm.create_model("vit_nano_patch8", num_classes=2, img_size=32)
    save_file(vit.state_dict(), folder / "head.safetensors")
    return folder


Measure = Callable[..., dict[str, Any]]


@pytest.fixture
def measure(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Measure:
    """Run evaluate.py in `tmp_path`, beside links to the runs; results.json, with the rows by name."""
    for path in runs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, out: str = "out") -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, "--out", out])
        evaluate.main()
        assert f"report: {out}/report.html" in capsys.readouterr().out
        results = json.loads((tmp_path / out / "results.json").read_text(), parse_constant=pytest.fail)
        return results | {"rows": {row.pop("row"): row for row in results["rows"]}}

    return run


def values(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Row to metrics, without timings."""
    return {name: timeless(row) for name, row in results["rows"].items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fails(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one-line error message of evaluate.py."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        evaluate.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1, error
    return error
