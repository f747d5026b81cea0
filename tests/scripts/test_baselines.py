"""Every baseline with train.py and evaluate.py: training on a data set on disk, evaluation, explanations.

Resuming them is part of tests/engine/run/test_resume.py.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from commands import train_run
from engine.run.command_line import parse_config
from engine.run.folder import BEST
from models import MODELS
from tests.scripts.test_train_cli import SCRIPT
from tests.tiny import flags

pytestmark = pytest.mark.slow
BASELINES: dict[str, dict[str, Any]] = {
    "vit": {"model.pooling": "gap_cls"},
    "cnn": {"model.backbone": "resnet10t", "data.image_size": 64},
    "decoupled": {"data.augmentation": "foreground_crop"},
    "late_masking": {"data.augmentation": "foreground_crop"},
    "pdiscoformer": {
        "model.parts.modulation": "original", "data.augmentation": "cub_geometry", "optim.name": "adam",
        "optim.weight_decay": 0.0, "optim.schedule": "step", "optim.step_epochs": 1, "optim.step_decay": 0.5,
    },
}  # fmt: skip
GIVEN = ("decoupled", "late_masking")
every_baseline = pytest.mark.parametrize("name", BASELINES)
Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs evaluate.py; returns its one-line error message, or its output."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
        try:
            evaluate.main()
        except SystemExit as stopped:
            assert stopped.code == 2
            error = capsys.readouterr().err
            assert error.startswith("error: ") and error.count("\n") == 1
            return error
        return capsys.readouterr().out

    return run


def keys_of(name: str, **more: Any) -> dict[str, Any]:
    return {**SCRIPT, "model.name": name, **BASELINES[name], "train.epochs": 1, **more}


@every_baseline
def test_from_waterbirds_on_disk_to_a_report(name: str, birds: Path, tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    data = {"data.name": "waterbirds", "data.root": str(birds), "data.image_size": 48}
    results = train_run.train(parse_config(flags(keys_of(name, out=str(run), **data))))
    assert {"test/accuracy", "test/worst_group_accuracy"} <= results.keys()
    assert ("test/keep_ratio" in results) == (name not in ("vit", "cnn"))
    assert ("test/stage_1_accuracy" in results) is False
    assert f"accuracy {results['test/accuracy']:.4f}" in command("--run", str(run))
    written = json.loads((run / "evaluation" / "test" / "results.json").read_text())
    assert written["test/accuracy"] == results["test/accuracy"]
    assert (run / "evaluation" / "test" / "report.html").is_file() and (run / "sheets" / "epoch_001.png").is_file()
    model = MODELS[name].from_pretrained(str(run / BEST))  # type: ignore[attr-defined]
    images = torch.zeros(1, 3, 48, 48)
    out = model(images, torch.ones(1, 48, 48, dtype=torch.bool)) if name in GIVEN else model(images)
    assert (out.class_logits if name == "pdiscoformer" else out.logits).shape == (1, 2)


@pytest.mark.parametrize("name", ["vit", "cnn", "pdiscoformer", *GIVEN])
def test_explained_or_refused_in_one_line(name: str, tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    train_run.train(parse_config(flags(keys_of(name, out=str(run)))))
    methods = ["gradcam", {"vit": "lrp", "cnn": "integrated_gradients"}.get(name, "inherent")]
    printed = command("--run", str(run), "--method", *methods, "--metrics", "localization", "abpc", "--limit", "4")
    if name in GIVEN:
        assert "cannot explain a" in printed and "depend on a given mask" in printed
    else:
        rows = json.loads((run / "evaluation" / "test-methods" / "results.json").read_text())["rows"]
        assert [row["row"] for row in rows][:2] == methods


def test_external_masks_are_what_it_trains_on(birds: Path, tmp_path: Path) -> None:
    """If the masks contain only the corner, the model sees one patch, whatever the data set's own masks are."""
    top = birds / "CUB_200_2011" / "waterbird_complete95_forest2water2"
    corner = np.zeros((48, 48), np.uint8)
    corner[:8, :8] = 255
    for image in top.rglob("*.jpg"):
        mask = (tmp_path / "masks" / image.relative_to(top)).with_suffix(".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(corner).save(mask)
    data = {
        "data.name": "waterbirds", "data.root": str(birds), "data.image_size": 48, "data.augmentation": "none",
        "data.mask_folder": str(tmp_path / "masks"),
    }  # fmt: skip
    config = parse_config(flags(keys_of("decoupled", out=str(tmp_path / "run"), **data)))
    assert train_run.train(config)["test/keep_ratio"] == pytest.approx(1 / 36)
    own = replace(config, out=str(tmp_path / "own"), data=replace(config.data, mask_folder=""))
    assert train_run.train(own)["test/keep_ratio"] > 2 / 36
