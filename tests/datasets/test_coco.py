"""COCO's layout: classes of an image, boxes, crowds, splits, and errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from datasets import DATASETS, DataConfig, load_split
from datasets.readers.coco import Coco, instances
from tests.datasets.published import write_coco

PERSON, CAT, DOG = range(3)
"""In the order of the ids."""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


def read(base: Path, split: str = "test", **keys: Any) -> Coco:
    return Coco(DataConfig(name="coco", root=str(base), **keys), split)


def test_splits(base: Path) -> None:
    train, val, test = (read(base, split, val_fraction=0.2) for split in ("train", "val", "test"))
    assert test.info.class_names == ("person", "cat", "dog") and test.info.multi_label
    assert test.labels == [PERSON, PERSON, CAT, CAT]  # the image without objects is left out
    assert (len(train), len(val)) == (10, 2)
    assert len({record.path for data in (train, val, test) for record in data.records}) == 16
    assert (test.info.split_origin, val.info.split_origin[:8]) == ("published", "held out")
    assert len(DATASETS["coco"](DataConfig(root=str(base.parent)), "test")) == 4  # the folder above


def test_boxes_and_classes(base: Path) -> None:
    sample, crowd = (read(base).read(i) for i in (2, 3))
    assert sample.present is not None and sample.present.tolist() == [False, True, True]
    assert np.array_equal(sample.boxes, [(0, 0, 12, 10), (9, 4, 40, 30)])  # type: ignore[arg-type]  # pixel edges
    assert sample.box_labels is not None and sample.box_labels.tolist() == [DOG, CAT]
    assert sample.mask is None and sample.path == str(base / "val2017" / "000000000042.jpg")
    # A crowd, and a box without area.
    assert crowd.label == CAT and crowd.boxes is not None and crowd.boxes.shape == (0, 4)
    assert crowd.present is not None and crowd.present.tolist() == [False, True, True]


def test_an_image_without_boxes_in_a_batch(base: Path) -> None:
    split = load_split(DataConfig(name="coco", root=str(base), image_size=32), "test", train=False, seed=0)
    assert [0 if split[i].boxes is None else len(split[i].boxes) for i in range(4)] == [2, 2, 2, 0]  # type: ignore[arg-type]


def test_a_file_is_read_once_until_it_changes(base: Path) -> None:
    path = base / "annotations" / "instances_val2017.json"
    assert instances(path) is instances(path)
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][:2]
    path.write_text(json.dumps(content))
    assert len(read(base)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(image_id=7), r"not in COCO's format \(KeyError: 7\)"),
        (lambda c: c["annotations"][0].update(category_id=2), r"not in COCO's format \(KeyError: 2\)"),
        (lambda c: c["annotations"][0].update(bbox=[0, 0, float("inf"), 3]), "the box of annotation 1 is not finite"),
        (lambda c: c["images"][0].update(file_name="../x.jpg"), "file_name is no name of a file: '../x.jpg'"),
        (lambda c: c["images"][0].update(file_name="x.jpg"), "x.jpg is missing"),
        (lambda c: c["categories"].pop(), "KeyError"),
        (lambda c: c["categories"][0].update(name="man"), "val2017.json has other categories than .*train2017.json"),
        (lambda c: c.pop("images"), "KeyError: 'images'"),
    ],
)
def test_damaged_files(base: Path, change: Any, message: str) -> None:
    path = base / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read(base)


def test_a_missing_file(base: Path) -> None:
    (base / "annotations" / "instances_train2017.json").unlink()
    with pytest.raises(UserError, match="instances_train2017.json is missing; unpack the published archive there"):
        read(base, "train")
