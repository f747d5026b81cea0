"""SVHN, Flowers 102, VOC 2012 and PartImageNet from training to metrics, on trees in their published layouts."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evaluate
import train
from commands import train_run
from common.errors import UserError
from engine.run.command_line import parse_config
from tests.datasets.published import write_coco, write_flowers, write_part_imagenet, write_svhn, write_voc
from tests.scripts.method_runs import SCRIPT
from tests.tiny import flags

KEYS = {**SCRIPT, "data.image_size": 32, "data.batch_size": 4, "data.augmentation": "flip", "train.epochs": 1}
MAP = "mean_average_precision"
VOC = {"data.variant": "segmentation", "data.val_fraction": 0.4, "train.best_metric": MAP}
SETS: dict[str, tuple[Callable[[Path], object], dict[str, Any], set[str]]] = {
    "svhn": (write_svhn, {}, {"accuracy", "accuracy_top5", "auroc"}),
    "flowers102": (write_flowers, {}, {"accuracy", "mask_iou", "foreground_iou"}),
    "part_imagenet": (write_part_imagenet, {}, {"accuracy", "mask_iou", "part_nmi_pixels", "part_ari_pixels"}),
    "voc2012": (write_voc, VOC, {MAP, "macro_f1", "micro_f1", "stage_1/micro_f1", "mask_iou", "keep_ratio"}),
    "coco": (write_coco, {"data.val_fraction": 0.4, "train.best_metric": MAP}, {MAP, "macro_f1", "micro_f1"}),
}
"""Data set -> function that writes its tree, config keys, and metrics it must have."""


def run(script: Any, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", *arguments])
        script.main()


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_train_and_evaluate(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, keys, results = SETS[name]
    root, out = tmp_path / "tree", tmp_path / "run"
    root.mkdir()
    write(root)
    run(train, *flags({**KEYS, **keys, "data.name": name, "data.root": str(root), "out": str(out)}))
    trained = json.loads((out / "results.json").read_text())
    several = keys.get("train.best_metric") == MAP
    headline = "mean average precision" if several else "accuracy"
    assert f"test {headline} " in capsys.readouterr().out
    assert {f"{split}/{key}" for split in ("val", "test") for key in results} <= trained.keys()
    assert ("test/accuracy" in trained) != several
    run(evaluate, "--run", str(out), "--out", str(tmp_path / "out"))
    measured = json.loads((tmp_path / "out" / "results.json").read_text())
    same = {key: value for key, value in measured.items() if key in trained and key.startswith("test/")}
    assert len(same) >= len(results) and same == {key: trained[key] for key in same}
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_default_best_metric_does_not_fit_several_classes(tmp_path: Path) -> None:
    write_voc(tmp_path)
    keys = {**KEYS, "data.name": "voc2012", "data.root": str(tmp_path), "out": str(tmp_path / "run")}
    with pytest.raises(UserError, match=f"train.best_metric=accuracy: voc2012 is multi-label; set it to {MAP}"):
        train_run.train(parse_config(flags(keys)))
    assert not (tmp_path / "run").exists()
