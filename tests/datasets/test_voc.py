"""VOC 2012's layout: classes of an image, boxes, masks, splits, and errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from datasets import DATASETS, DataConfig, eval_loader, load_split
from datasets.readers.voc import CLASSES, Voc2012
from tests.datasets.published import BOXES, save_image, voc_xml, write_voc

DOG, CAT, PERSON = (CLASSES.index(name) for name in ("dog", "cat", "person"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_voc(tmp_path)


def read(base: Path, split: str = "test", **keys: Any) -> Voc2012:
    return Voc2012(DataConfig(name="voc2012", root=str(base), **keys), split)


def test_splits(base: Path) -> None:
    train, val, test = (read(base, split, val_fraction=0.2) for split in ("train", "val", "test"))
    assert train.labels.count(CAT) == train.labels.count(PERSON) == 5
    assert sorted(val.labels) == [CAT, PERSON] and test.labels == [PERSON, PERSON, CAT, CAT]
    paths = {record.path for data in (train, val, test) for record in data.records}
    assert len(paths) == 16
    assert (test.info.split_origin, val.info.split_origin[:8]) == ("published", "held out")
    assert test.info.multi_label and len(test.info.class_names) == 20


@pytest.mark.parametrize("place", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_root_may_be_any_of_its_folders(base: Path, place: str) -> None:
    config = DataConfig(root=str(base.parent.parent / place))
    assert len(DATASETS["voc2012"](config, "test")) == 4


def test_a_record(base: Path) -> None:
    sample = read(base).read(2)
    assert sample.label == CAT and sample.mask is None  # the larger box, though it comes second
    assert sample.present is not None and np.flatnonzero(sample.present).tolist() == sorted([DOG, CAT])
    assert np.array_equal(sample.boxes, [(0, 0, 12, 10), (10, 5, 40, 30)])  # type: ignore[arg-type]  # pixel edges
    assert sample.box_labels is not None and sample.box_labels.tolist() == [DOG, CAT]
    assert sample.path == str(base / "JPEGImages" / "2008_000014.jpg")


def test_a_class_twice_and_a_tie(base: Path) -> None:
    same = voc_xml(("sofa", "bus", "bus"), ((1, 1, 10, 10), (2, 2, 11, 11), (1, 1, 3, 3)))
    (base / "Annotations" / "2008_000012.xml").write_text(same)
    sample = read(base).read(0)
    assert sample.label == CLASSES.index("sofa") and sample.present is not None and sample.present.sum() == 2


def test_images_with_masks(base: Path) -> None:
    data = read(base, variant="segmentation")
    assert [record.path.stem for record in data.records] == ["2008_000012", "2008_000014"]
    assert len(read(base, "train", variant="segmentation")) + len(read(base, "val", variant="segmentation")) == 6
    truth = np.zeros((40, 48), bool)
    truth[5:30, 10:40] = True  # without the void border
    assert np.array_equal(data.read(0).mask, truth)  # type: ignore[arg-type]


def test_boxes_know_their_class_also_where_the_crop_takes_some(base: Path) -> None:
    """At 40 x 40 the dog in the corner stays; of rows 12 to 20 of 33 it has none."""
    for size, classes in ((40, [DOG, CAT]), ((8, 40), [CAT])):
        config = DataConfig(name="voc2012", root=str(base), image_size=size)  # type: ignore[arg-type]
        (batch,) = eval_loader(load_split(config, "test", train=False, seed=0), batch_size=4, workers=0)
        assert batch.boxes is not None and batch.box_labels is not None
        assert batch.box_labels[2].tolist() == classes and len(batch.boxes[2]) == len(classes)
        assert batch.with_labels().box_labels == batch.box_labels


@pytest.mark.parametrize("augmentation", ["auto", "flip", "cub_original", "timm"])
def test_batches_tell_the_classes(base: Path, augmentation: str) -> None:
    config = DataConfig(name="voc2012", root=str(base), image_size=32, augmentation=augmentation)  # type: ignore[arg-type]
    split = load_split(config, "test", train=True, seed=0)
    (batch,) = eval_loader(split, batch_size=4, workers=0)
    assert batch.present is not None and batch.present.dtype == torch.bool and batch.present.shape == (4, 20)
    assert batch.targets is batch.present
    assert batch.present[:, DOG].all() and batch.present[:, PERSON].tolist() == [True, True, False, False]


def spoil(base: Path, name: str, content: str) -> None:
    (base / name).write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "Annotations/2008_000012.xml",
            voc_xml(("unicorn",)),
            "'unicorn' is not one of the 20 classes",
        ),
        ("Annotations/2008_000012.xml", voc_xml(()), "2008_000012.xml has no object with a box"),
        ("Annotations/2008_000012.xml", voc_xml(("cat",), ((5, 5, 4, 9),)), "2008_000012.xml: a box .* has no area"),
        ("Annotations/2008_000012.xml", voc_xml(("cat",)).replace(str(BOXES[0][2]), "x"), "xmax is 'x', not a number"),
        ("ImageSets/Main/val.txt", "2008_000099\n", "2008_000099.xml is missing"),
        ("ImageSets/Main/val.txt", "", "the test split of data set 'voc2012' is empty"),
    ],
)
def test_wrong_files(base: Path, name: str, content: str, message: str) -> None:
    spoil(base, name, content)
    with pytest.raises(UserError, match=message) as caught:
        read(base)
    assert "\n" not in str(caught.value)


def test_missing_files_and_wrong_keys(base: Path) -> None:
    with pytest.raises(UserError, match="data.variant is only_fg; voc2012 has the variants original, segmentation"):
        read(base, variant="only_fg")
    Image.new("RGB", (48, 40)).save(base / "SegmentationClass" / "2008_000012.png")
    with pytest.raises(UserError, match="2008_000012.png: its mode is RGB"):
        read(base, variant="segmentation").read(0)
    (base / "SegmentationClass" / "2008_000014.png").unlink()
    with pytest.raises(UserError, match="2008_000014.png is missing"):
        read(base, variant="segmentation")
    save_image(base / "JPEGImages" / "2008_000012.jpg", size=(8, 8))
    (base / "JPEGImages" / "2008_000015.jpg").unlink()
    with pytest.raises(UserError, match="2008_000015.jpg is missing"):
        read(base)
    (base / "ImageSets" / "Main" / "val.txt").unlink()
    with pytest.raises(UserError, match="val.txt is missing"):
        read(base)
