"""Every config in configs/ trains, on a tiny tree in its data set's published layout, with the smallest backbone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prepare_siim_acr
from commands.train_run import train
from datasets.registry import WITHOUT_FILES
from engine.run.command_line import load_config
from tests.datasets.published import write_flowers, write_nabirds, write_part_imagenet, write_svhn, write_voc
from tests.datasets.radiographs import write_archive
from tests.models.small import eva_t_dinov3
from tests.trees import imagenet_tree, metashift_tree

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SMALL: dict[str, Any] = {
    "model.backbone": "vit_nano_patch8",
    "model.stage_1_backbone": "",
    "model.weights": "none",
    "model.stage_1_weights": "",
    "data.image_size": 32,
    "data.global_batch": 0,
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
    "optim.freeze_stage_2_blocks": 0,
}
"""Makes any config run in seconds: at most three steps per epoch; everything else stays as it is."""

OF_ATCON: dict[str, dict[str, Any]] = {
    "atcon_quickstart": {"data.semi.images_per_class": 2},
    "atcon_svhn": {"data.semi.images_per_class": 1},
    "atcon_real_birds": {"data.semi.images_per_class": 2},
    "atcon_voc": {"data.semi.images_per_class": 0, "data.semi.unlabelled": "labelled"},
}
"""The tiny trees have few images, and none of most classes."""
OF_DINOV3: dict[str, Any] = {"model.backbone": eva_t_dinov3.__name__}
OF_CNNS: dict[str, Any] = {"model.backbone": "test_resnet", "data.image_size": 64}


def siim_tree(root: Path) -> None:
    tubes = write_archive(root, count=40)
    prepare_siim_acr.main(["--pkl_file_path", str(tubes), "--root_dir", str(root), "--workers", "1"])


TREES: dict[str, Callable[[Path], object]] = {
    "flowers102": write_flowers,
    "imagenet1k": imagenet_tree,
    "metashift": metashift_tree,
    "nabirds": write_nabirds,
    "part_imagenet": write_part_imagenet,
    "siim_acr": siim_tree,
    "svhn": write_svhn,
    "voc2012": write_voc,
}
"""Other data sets are read from generated birds in the layout of CUB and Waterbirds, or need no files."""


@pytest.mark.slow
@pytest.mark.parametrize("compat", ["none", "reference"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains(path: Path, compat: str, birds: Path, tmp_path: Path) -> None:
    config, root = load_config(path), birds
    if config.data.name in TREES:
        root = tmp_path / "tree"
        root.mkdir()
        TREES[config.data.name](root)
    overrides = {
        **SMALL,
        "data.root": "" if config.data.name in WITHOUT_FILES else str(root),
        "out": str(tmp_path / "run"),
        "compat": compat,
    }
    overrides |= {"optim.stage_1_epochs": 0, **OF_ATCON[path.stem]} if path.stem in OF_ATCON else {}
    overrides |= {"train.token_cache": str(tmp_path / "tokens")} if config.train.token_cache else {}
    overrides |= OF_CNNS if config.model.name == "cnn" else {}
    overrides |= OF_DINOV3 if "dinov3" in config.model.backbone else {}
    results = train(load_config(path, overrides))
    best = config.train.best_metric
    stored = json.loads((tmp_path / "run" / "results.json").read_text())
    assert stored[f"test/{best}"] == results[f"test/{best}"] and 0 <= results[f"test/{best}"] <= 1
    assert results["epochs"] == 2 and results["best_epoch"] in (1, 2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and rows[1]["step"] >= 2
    assert all(row["train/loss"] == pytest.approx(row["train/loss"]) for row in rows)  # no nan
