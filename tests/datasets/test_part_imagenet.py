"""PartImageNet's layout: classes by name, part labels, both kinds of splits, and errors in its files."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from skimage.draw import polygon2mask

from common.errors import UserError
from datasets import DATASETS, DataConfig, eval_loader, load_split
from datasets.formats.coco import part_labels, read_coco
from datasets.readers.part_imagenet import PartImageNet
from tests.datasets.published import HEIGHT, WIDTH, WNIDS, annotation, save_image, square, write_part_imagenet

Content = dict[str, Any]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_part_imagenet(tmp_path)
    return tmp_path


def read(root: Path, split: str = "test", **keys: Any) -> PartImageNet:
    return PartImageNet(DataConfig(name="part_imagenet", root=str(root), **keys), split)


def change(root: Path, how: Callable[[Content], object], split: str = "test") -> None:
    path = root / "annotations" / split / f"{split}.json"
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


def test_published_splits_of_images(root: Path) -> None:
    for split in ("train", "val", "test"):
        data = read(root, split)
        assert data.labels == [0] * 4 + [1] * 4 + [2] * 4  # the last image, without annotations, is dropped
        assert {record.path.parent for record in data.records} == {root / "images" / split}
        assert data.info.split_origin == "published"
    assert data.info.part_names == ("Fish Head", "Fish Body")
    assert isinstance(DATASETS["part_imagenet"](DataConfig(root=str(root)), "test"), PartImageNet)


def test_classes_are_sorted_by_name(root: Path, tmp_path: Path) -> None:
    names = [name.split(",")[0] for name in read(root).info.class_names]
    assert names == ["American egret", "tench", "wine bottle"]
    table = tmp_path / "names.txt"
    table.write_text("".join(f"{wnid} {name}\n" for wnid, name in zip(WNIDS, ("zebra", "ape", "ape"), strict=True)))
    data = read(root, class_names=str(table))
    assert data.info.class_names == ("ape", "ape", "zebra")
    assert data.labels == [2] * 4 + [0] * 4 + [1] * 4  # one name for two classes: by id


def test_published_splits_of_classes(tmp_path: Path) -> None:
    """If val and test have other classes, both are held out of the training file."""
    write_part_imagenet(tmp_path, by_class=True, count=10)
    splits = {split: read(tmp_path, split) for split in ("train", "val", "test")}
    assert {split: Counter(data.labels) for split, data in splits.items()} == {
        "train": {0: 8, 1: 8, 2: 8}, "val": {0: 1, 1: 1, 2: 1}, "test": {0: 1, 1: 1, 2: 1}
    }  # fmt: skip
    paths = [record.path for data in splits.values() for record in data.records]
    assert len(set(paths)) == 30 and {path.parent.name for path in paths} == {"train"}
    assert splits["test"].info.split_origin == "held out: 0.1 of every class of train.json, data.seed 0"
    assert splits["train"].info.split_origin == "published train.json, without what is held out"
    again = [record.path for record in read(tmp_path, "test", seed=1).records]
    assert again != [record.path for record in splits["test"].records]


def test_the_list_of_pdiscoformer(tmp_path: Path) -> None:
    """It has a line for every image of train.json, also for those without annotations; val is held out of training."""
    write_part_imagenet(tmp_path, by_class=True, count=10)
    images = json.loads((tmp_path / "annotations" / "train" / "train.json").read_text())["images"]
    lines = [
        f"{i}\t{int(i % 5 == 0)}\t7\t{image['file_name'][:9]}\t{Path(image['file_name']).name}\n"
        for i, image in enumerate(images)
    ]
    table = tmp_path / "train_test_split_pimagenet_ood.txt"
    table.write_text("".join(lines))
    splits = {split: read(tmp_path, split, index=str(table)) for split in ("train", "val", "test")}
    assert {split: Counter(data.labels) for split, data in splits.items()} == {
        "train": {0: 7, 1: 7, 2: 7}, "val": {0: 1, 1: 1, 2: 1}, "test": {0: 2, 1: 2, 2: 2}
    }  # fmt: skip
    tests = {line.split()[4] for line in lines if line.split()[1] == "1"}
    assert {record.path.name for record in splits["test"].records} == tests - {"x"}, "x is not annotated"
    assert splits["test"].info.split_origin == f"published list {table.name}"
    assert splits["val"].info.split_origin.startswith(f"published list {table.name}: held out: 0.1 of every class")
    assert len(read(tmp_path, "train", index=str(table), val_fraction=0.0)) == 24
    table.write_text("".join(lines[1:]))
    with pytest.raises(
        UserError, match=r"data\.index: .*ood\.txt has no line for \S+_0\.JPEG, which .*train\.json has"
    ):
        read(tmp_path, index=str(table))
    table.write_text("".join([lines[0].replace("\t1\t", "\t2\t"), *lines[1:]]))
    with pytest.raises(UserError, match=r"ood\.txt line 1: column is_test is 2; it must be 0, 1"):
        read(tmp_path, index=str(table))


def test_a_record(root: Path) -> None:
    sample = read(root).read(5)
    assert sample.label == 1 and sample.path.endswith("n01440764_1.JPEG")
    truth = np.full((HEIGHT, WIDTH), -1)
    truth[6:16, 4:14], truth[6:16, 24:34] = 0, 1
    assert sample.part_labels is not None and sample.part_labels.dtype == np.int16
    assert np.array_equal(sample.part_labels, truth) and np.array_equal(sample.mask, truth >= 0)  # type: ignore[arg-type]


def test_images_may_lie_in_folders_of_classes(root: Path) -> None:
    for path in list((root / "images" / "test").iterdir()):
        folder = path.parent / path.name.split("_")[0]
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    assert read(root).read(0).path.endswith(f"test/{WNIDS[0]}/{WNIDS[0]}_0.JPEG")


def labels_of(*annotations: Content) -> np.ndarray:
    """Part labels of an image with these annotations."""
    content = {
        "images": [{"id": 0, "file_name": "x", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": i, "name": str(i)} for i in range(6)],
        "annotations": annotations,
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "some.json"
        path.write_text(json.dumps(content))
        (picture,), _ = read_coco(path)
    return part_labels(picture, path)


def test_overlaps_add_up_and_equals_go_to_the_lower_id() -> None:
    found = labels_of(
        annotation(1, 0, 5, [square(0, 0, 20)]),
        annotation(2, 0, 2, [square(10, 0, 20)]),
        annotation(3, 0, 5, [square(15, 0, 3)]),
    )
    row = found[1]
    assert row[:10].tolist() == [5] * 10 and row[10:15].tolist() == [2] * 5  # both parts once
    assert row[15:18].tolist() == [5] * 3 and row[18:30].tolist() == [2] * 12 and set(row[30:]) == {-1}


def test_outlines_agree_with_another_library() -> None:
    corners = np.array([[5.2, 3.1], [40.7, 9.3], [30.4, 35.8], [12.6, 28.9]])
    ours = labels_of(annotation(1, 0, 0, [corners.ravel().tolist()])) == 0
    theirs = polygon2mask((HEIGHT, WIDTH), corners[:, ::-1] - 0.5)
    assert (ours != theirs).sum() <= 30 and ours.sum() > 500  # they may differ on the border


def test_four_numbers_are_the_box_and_run_lengths_are_decoded() -> None:
    found = labels_of(annotation(1, 0, 0, [[2, 3, 12, 23]]))
    truth = np.full((HEIGHT, WIDTH), -1)
    truth[3:23, 2:12] = 0
    assert np.array_equal(found, truth)
    encoded = coco_mask.encode(np.asfortranarray((truth == 0).astype(np.uint8)))
    text = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    counts = {"size": [HEIGHT, WIDTH], "counts": [2 * HEIGHT + 3, *[20, 20] * 9, 20, 17 + 36 * HEIGHT]}
    for outline in (text, counts):
        assert np.array_equal(labels_of(annotation(1, 0, 0, outline)), truth)


def test_crowds_and_empty_annotations_are_skipped(root: Path) -> None:
    def skip(content: Content) -> None:
        content["annotations"][0]["area"] = 0
        content["annotations"][1]["iscrowd"] = 1
        content["annotations"][2]["area"] = 0

    change(root, skip)
    data = read(root)
    assert len(data) == 11 and data.labels.count(0) == 3
    assert set(np.unique(data.read(0).part_labels)) == {-1, 1}  # type: ignore[arg-type]


@pytest.mark.parametrize("augmentation", ["none", "flip", "cub_original"])
def test_part_labels_follow_the_pixels(root: Path, augmentation: str) -> None:
    """Pixels painted by part come out where the labels say they are."""
    config = DataConfig(name="part_imagenet", root=str(root), image_size=32, augmentation=augmentation)  # type: ignore[arg-type]
    split = load_split(config, "test", train=True, seed=0)
    raw = split.raw.read(0)
    assert raw.part_labels is not None
    raw.image[:] = np.where(raw.part_labels >= 0, 255, 0)[..., None]
    for seed in range(6):
        sample = split.transform(raw, seed)
        assert sample.part_labels is not None and sample.part_labels.dtype == torch.int64
        assert sample.mask is not None and torch.equal(sample.part_labels >= 0, sample.mask)
        painted = sample.image[1] > 0
        assert (painted != sample.mask).float().mean() < 0.1
    (batch,) = eval_loader(split, batch_size=12, workers=0)
    assert batch.part_labels is not None and batch.part_labels.shape == (12, 32, 32)
    assert set(batch.part_labels.unique().tolist()) == {-1, 0, 1}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda c: c.pop("images"), r"not in COCO's format \(KeyError: 'images'\)"),
        (lambda c: c["annotations"][0].pop("area"), r"not in COCO's format \(KeyError: 'area'\)"),
        (lambda c: c["annotations"][0].update(area="large"), "not in COCO's format"),
        (lambda c: c["annotations"][0].update(image_id=999), r"not in COCO's format \(KeyError: 999\)"),
        (lambda c: c["annotations"][0].update(category_id=7), "annotation 0 has an unknown category"),
        (lambda c: c["categories"].append({"id": 3, "name": "Fin"}), r"categories' ids are \[0, 1, 3\], not 0, 1, 2"),
        (lambda c: c["categories"][0].update(name="Tail"), "different categories from .*train.json"),
        (lambda c: c["images"][0].update(file_name="dog.JPEG"), "'dog.JPEG' does not begin with a WordNet id"),
    ],
)
def test_wrong_files(root: Path, how: Callable[[Content], object], message: str) -> None:
    change(root, how)
    with pytest.raises(UserError, match=message) as caught:
        read(root)
    assert str(root / "annotations" / "test" / "test.json") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("outline", [[[1, 2, 3, 4, 5]], [["a"] * 6], [[1, 2, 3, 4, 5, math.inf]], "counts", 3, []])
def test_an_outline_that_is_none(root: Path, outline: Any) -> None:
    change(root, lambda content: content["annotations"][0].update(segmentation=outline))
    with pytest.raises(UserError, match="test.json is not in COCO's format") as caught:
        read(root)
    assert "\n" not in str(caught.value)


def test_compressed_run_lengths_are_those_of_another_library() -> None:
    """Short and long runs, up and down, and masks that are empty, full or begin with the object."""
    rng = np.random.default_rng(0)
    for density in (0, 0.002, 0.1, 0.5, 0.998, 1):
        mask = rng.random((HEIGHT, WIDTH)) < density
        encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        outline = {"size": encoded["size"], "counts": encoded["counts"].decode()}
        assert np.array_equal(labels_of(annotation(1, 0, 0, outline)) == 0, mask)


@pytest.mark.parametrize(
    ("counts", "problem"),
    [
        ("", "do not fill the image"),
        ("P", "ends within a run length"),  # pycocotools reads on behind the text
        ("0PPPPPPPPPPPPPPP", "not made of run lengths"),
        ("ooooooo0", "not made of run lengths"),
        ("é", "not made of run lengths"),
        ("O1", "do not fill the image"),  # a run of -1
        ("5", "do not fill the image"),
        ("0" * 2000, "do not fill the image"),
        ([HEIGHT * WIDTH - 1], "do not fill the image"),
        ([HEIGHT * WIDTH + 5, -5], "do not fill the image"),
        ([float(HEIGHT * WIDTH)], "do not fill the image"),
        ([2**70, -(2**70), HEIGHT * WIDTH], "do not fill the image"),
    ],
)
def test_run_lengths_that_would_leave_the_image(counts: Any, problem: str) -> None:
    with pytest.raises(UserError, match=f"annotation 1 cannot be decoded.*{problem}"):
        labels_of(annotation(1, 0, 0, {"size": [HEIGHT, WIDTH], "counts": counts}))


@pytest.mark.parametrize("outline", [{"size": [1, 1]}, {"size": [1, 1], "counts": [1]}, {"counts": "x"}])
def test_run_lengths_that_cannot_be_decoded(root: Path, outline: Any) -> None:
    change(root, lambda content: content["annotations"][0].update(segmentation=outline))
    with pytest.raises(UserError, match="test.json: annotation 0 cannot be decoded") as caught:
        read(root).read(0)
    assert "\n" not in str(caught.value)


def test_missing_and_unlike_images(root: Path) -> None:
    save_image(root / "images" / "test" / f"{WNIDS[0]}_0.JPEG", size=(8, 9))
    with pytest.raises(UserError, match=f"48 x 40 pixels.*{WNIDS[0]}_0.JPEG.* 8 x 9"):
        read(root).read(0)
    (root / "images" / "test" / f"{WNIDS[0]}_0.JPEG").unlink()
    with pytest.raises(UserError, match=f"{WNIDS[0]}_0.JPEG is missing"):
        read(root)
    (root / "annotations" / "val" / "val.json").write_text("{")
    with pytest.raises(UserError, match="cannot read .*val.json"):
        read(root, "val")
    (root / "annotations" / "test" / "test.json").unlink()
    with pytest.raises(UserError, match="test.json is missing"):
        read(root, "val")


def test_a_class_without_a_name(root: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(f"{WNIDS[0]} egret\n")
    with pytest.raises(UserError, match=f"train.json: {WNIDS[1]} is not a class .*data.class_names"):
        read(root, class_names=str(tmp_path / "names.txt"))
