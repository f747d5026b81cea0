"""CUB from training to key-point metrics: the published photographs of ten classes, and birds that are drawn."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evaluate
import train
from tests.datasets.published_files import published
from tests.scripts.method_runs import SCRIPT
from tests.tiny import flags

KEYS = {
    **SCRIPT, "model.stage_1_backbone": "vit_pico_patch8", "data.name": "cub", "data.augmentation": "auto",
    "data.image_size": 32, "data.evaluation": "squash", "data.batch_size": 16, "data.eval_batch_size": 32,
    "optim.lr": 1e-7,
}  # fmt: skip
"""The learning rate is so small that the parts stay as initialised, where each has patches."""
FINITE = ("keypoint_error", "part_nmi", "part_ari", "foreground_iou")
SOURCES: dict[str, Callable[[Path], Path]] = {
    "published": lambda birds: published("cub10"),
    "drawn": lambda birds: birds / "CUB_200_2011",
}


def called(script: Any, out: Path, *arguments: str) -> dict[str, Any]:
    """Run train.py or evaluate.py; returns results.json."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", *arguments, f"--out={out}"])
        script.main()
    return dict(json.loads((out / "results.json").read_text(), parse_constant=pytest.fail))


def lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_training_and_key_points(source: str, birds: Path, tmp_path: Path) -> None:
    base = SOURCES[source](birds)
    tested = {key for key, flag in lines(base / "train_test_split.txt") if flag == "0"}
    visible = sum(cells[0] in tested and cells[4] == "1" for cells in lines(base / "parts" / "part_locs.txt"))
    classes = len({label for _, label in lines(base / "image_class_labels.txt")})
    trained = called(train, tmp_path / "run", *flags({**KEYS, "data.root": str(base)}))
    assert trained["test/count/images"] == len(tested)
    measured = called(
        evaluate, tmp_path / "out", f"--run={tmp_path / 'run'}", "--metrics", "parts", "keypoints", "foreground"
    )
    assert measured["images"] == len(tested)
    assert measured["fitted"] == {
        "metrics": ["keypoints"],
        "split": "train",
        "images": len(lines(base / "images.txt")) - len(tested) - held_out(base),
    }
    assert measured["test/count/keypoints"] == visible
    assert all(math.isfinite(measured[f"test/{name}"]) for name in FINITE)
    assert 0 < measured["test/keypoint_error"] < 1
    assert sum(key.startswith("test/accuracy/class/") for key in trained) == classes


def held_out(base: Path) -> int:
    """Images in `val`: a tenth of every class of the training images, at least one."""
    training = {key for key, flag in lines(base / "train_test_split.txt") if flag == "1"}
    labels = [label for key, label in lines(base / "image_class_labels.txt") if key in training]
    return sum(max(1, round(0.1 * labels.count(label))) for label in set(labels))
