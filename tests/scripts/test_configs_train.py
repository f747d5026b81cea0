"""Every config in configs/ trains, on generated birds in the published layout and with the smallest backbone."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config import load_config
from train import train

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SMALL: dict[str, Any] = {
    "model.backbone": "vit_nano_patch8",
    "model.stage_1_backbone": "",
    "model.weights": "none",
    "model.stage_1_weights": "",
    "data.image_size": 32,
    "data.batch_size": 8,
    "data.eval_batch_size": 12,
    "data.workers": 0,
    "data.synthetic.train_images": 24,
    "data.synthetic.val_images": 12,
    "data.synthetic.test_images": 12,
    "train.epochs": 2,
    "train.threads": 1,
    "train.device": "cpu",
    "train.sheet_every": 0,
    "optim.stage_1_epochs": 1,
}
"""Makes any config a matter of seconds: at most three steps an epoch; all that a config is about stays as it is."""


@pytest.mark.slow
@pytest.mark.parametrize("compat", ["none", "reference"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains(path: Path, compat: str, birds: Path, tmp_path: Path) -> None:
    overrides = {**SMALL, "data.root": str(birds), "out": str(tmp_path / "run"), "compat": compat}
    results = train(load_config(path, overrides))
    stored = json.loads((tmp_path / "run" / "results.json").read_text())
    assert stored["test/accuracy"] == results["test/accuracy"] and 0 <= results["test/accuracy"] <= 1
    assert (results["epochs"], results["best_epoch"]) == (2, 2)
    assert results["test/count/images"] == 12
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and rows[1]["step"] >= 2
    assert all(row["train/loss"] == pytest.approx(row["train/loss"]) for row in rows)  # no nan
