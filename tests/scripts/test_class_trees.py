"""ImageNet's trees and MetaShift from training to metrics, on trees in their published layouts."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evaluate
import train
from commands import imagenet9 as backgrounds
from datasets.readers.imagenet import BOXES
from tests.scripts.method_runs import SCRIPT
from tests.tiny import flags
from tests.trees import WNIDS, class_tree, imagenet9_tree, imagenet_tree, metashift_tree, save_on_its_side, write_box

pytestmark = pytest.mark.slow


def trained(out: Path, **keys: Any) -> dict[str, Any]:
    """results.json of one epoch."""
    changed = {name.replace("__", "."): value for name, value in keys.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *flags({**SCRIPT, **changed, "out": str(out)})])
        train.main()
    return dict(json.loads((out / "results.json").read_text()))


def results(script: Any, out: Path, *arguments: str) -> dict[str, Any]:
    """results.json of a script that measures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", *arguments, "--out", str(out)])
        script.main()
    assert (out / "report.html").is_file()
    return dict(json.loads((out / "results.json").read_text(), parse_constant=lambda text: text))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch on four of the thousand classes."""
    folder = tmp_path_factory.mktemp("imagenet")
    root = imagenet_tree(folder / "tree")
    values = trained(folder / "run", data__name="imagenet1k", data__root=str(root), data__val_fraction=0.25)
    assert "held out: 0.25 of every class" in values["split_origin"]["val"]
    assert values["split_origin"]["test"] == "published" and 0 <= values["test/accuracy"] <= 1
    return folder / "run"


def test_imagenet_and_its_held_out_split(run: Path, tmp_path: Path) -> None:
    test = results(evaluate, tmp_path / "test", "--run", str(run))
    assert test["split_origin"] == "published" and test["test/count/images"] == 8
    assert "test/accuracy_top5" in test and "test/stage_1/accuracy" in test
    val = results(evaluate, tmp_path / "val", "--run", str(run), "--split", "val")
    assert val["split_origin"].startswith("held out: 0.25") and val["val/count/images"] == 8
    assert "held out: 0.25 of every class" in (tmp_path / "val" / "report.html").read_text()


def test_boxes_of_an_image_on_its_side(run: Path, tmp_path: Path) -> None:
    """Boxes are those of the stored image; one such image used to end an evaluation."""
    root = imagenet_tree(tmp_path / "tree")
    (root / BOXES).mkdir(parents=True)
    for path in (root / "val").rglob("*.JPEG"):
        write_box(root / BOXES / f"{path.stem}.xml", (32, 32))
    save_on_its_side(path, np.full((30, 48, 3), 90, np.uint8))
    write_box(root / BOXES / f"{path.stem}.xml", (30, 48))
    found = results(
        evaluate, tmp_path / "out", "--run", str(run), "--data.root", str(root), "--method", "rollout", "--metrics",
        "pointing",
    )  # fmt: skip
    (row,) = [row for row in found["rows"] if row["row"] == "rollout"]
    assert row["count/pointing/images"] == row["count/pointing/with_boxes"] == 8


@pytest.mark.parametrize(
    ("name", "folders"), [("imagenet_a", WNIDS[1:]), ("imagenet_r", WNIDS), ("imagenet_v2", ("0", "217", "9"))]
)
def test_the_shifted_sets(name: str, folders: tuple[str, ...], run: Path, tmp_path: Path) -> None:
    root = class_tree(tmp_path / "tree", folders, 2)
    found = results(evaluate, tmp_path / "out", "--run", str(run), "--data.name", name, "--data.root", str(root))
    assert found["test/count/images"] == 2 * len(folders)
    named = {key for key in found if key.startswith("test/accuracy/class/")}
    assert len(named) == (0 if name == "imagenet_v2" else len(folders))


def test_imagenet9_by_both_rules(run: Path, tmp_path: Path) -> None:
    root = imagenet9_tree(tmp_path / "tree")
    data = ("--run", str(run), "--data.name", "imagenet9", "--data.root", str(root), "--data.variant", "mixed_rand")
    for rule, classes in (("argmax", 10), ("restricted", 9)):
        found = results(evaluate, tmp_path / rule, *data, "--data.output_rule", rule)
        assert found["test/count/images"] == 9 and "test/mask_iou" in found
        assert sum(key.startswith("test/accuracy/class/") for key in found) == classes


def test_explanations_of_imagenet9(run: Path, tmp_path: Path) -> None:
    root = imagenet9_tree(tmp_path / "tree")
    found = results(
        evaluate, tmp_path / "out", "--run", str(run), "--data.name", "imagenet9", "--data.root", str(root),
        "--method", "rollout", "gradcam",
    )  # fmt: skip
    assert {row["row"] for row in found["rows"]} >= {"rollout", "gradcam", "(its own mask)"}
    assert found["model_metrics"]["count/images"] == 9


def test_backgrounds_table_gap_and_challenge(run: Path, tmp_path: Path) -> None:
    root = imagenet9_tree(tmp_path / "tree")
    found = results(backgrounds, tmp_path / "out", "--run", str(run), "--data.root", str(root), "--challenge")
    by_set = {row["row"]: row for row in found["rows"]}
    assert len(by_set) == 8 and found["output_rule"] == "argmax" and 0 <= found["challenge_accuracy"] <= 1
    for key in ("accuracy", "stage_1/accuracy"):
        gap = by_set["mixed_same"][key] - by_set["mixed_rand"][key]
        assert found[key.replace("accuracy", "bg_gap")] == gap
    assert "mask_iou" in by_set["original"] and "BG-gap" in (tmp_path / "out" / "report.html").read_text()
    again = results(evaluate, tmp_path / "one", "--run", str(run), "--data.name", "imagenet9", "--data.root", str(root))
    assert again["test/accuracy"] == by_set["original"]["accuracy"]


def test_metashift(tmp_path: Path) -> None:
    root = metashift_tree(tmp_path / "tree")
    keys = {
        "data__name": "metashift",
        "data__root": str(root),
        "data__val_fraction": 0.2,
        "train__best_metric": "worst_group_accuracy",
    }
    values = trained(tmp_path / "run", **keys)
    assert values["test/worst_group_accuracy_paper"] == values["test/worst_class_accuracy"]
    assert values["split_origin"]["val"].startswith("held out: 0.2")
    found = results(evaluate, tmp_path / "out", "--run", str(tmp_path / "run"))
    assert found["test/accuracy/group/cat(shelf)"] == found["test/accuracy/class/cat"]
    assert found["test/count/group/cat(sofa)"] == 0


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet9"])
def test_training_on_a_test_set_ends_with_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        trained(tmp_path / "run", data__name=name, data__root=str(tmp_path))
    assert stopped.value.code == 2 and capsys.readouterr().err == (
        f"error: data set {name!r} has only a test split; train on imagenet1k and evaluate that run on it\n"
    )
    assert not (tmp_path / "run").exists()
