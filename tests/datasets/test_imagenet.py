"""ImageNet's layout: splits, labels, names, boxes, and one clear line for every error."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from datasets import DATASETS, DataConfig, collate, eval_loader, load_split
from datasets.readers.imagenet import BOXES, CLASS_NAMES, IMAGES, ImageNet

WNIDS = ("n01440764", "n02102040", "n03000684")
NAMES = ("tench, Tinca tinca", "English springer, English springer spaniel", "chain saw, chainsaw")
SIZE = (40, 60)  # width, height
BOX = (4, 18, 24, 48)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, "grey").save(path, format="JPEG")


def xml(*boxes: tuple[float, ...], size: tuple[int, int] = SIZE) -> str:
    corners = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        "<object><name>n01440764</name><bndbox>"
        + "".join(f"<{corner}>{value}</{corner}>" for corner, value in zip(corners, box, strict=True))
        + "</bndbox></object>"
        for box in boxes
    )
    return (
        "<annotation><folder>val</folder><filename>../../../secret</filename>"
        f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>{objects}</annotation>"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes; 8 training and 2 validation images of each; boxes of the validation images."""
    (tmp_path / BOXES).mkdir(parents=True)
    for c, wnid in enumerate(WNIDS):
        for i in range(8):
            picture(tmp_path / "train" / wnid / f"{wnid}_{i}.JPEG")
        for i in range(2):
            name = f"ILSVRC2012_val_{2 * c + i:08d}"
            picture(tmp_path / "val" / wnid / f"{name}.JPEG")
            (tmp_path / BOXES / f"{name}.xml").write_text(xml(BOX, *[(0, 0, 5, 5)] * i))
    return tmp_path


def read(root: Path, split: str = "test", **changes: object) -> ImageNet:
    config = replace(DataConfig(name="imagenet", root=str(root), val_fraction=0.25, image_size=20), **changes)  # type: ignore[arg-type]
    return ImageNet(config, split)


def test_splits(root: Path) -> None:
    train, val, test = (read(root, split) for split in ("train", "val", "test"))
    assert Counter(train.labels) == {0: 6, 1: 6, 2: 6} and Counter(val.labels) == {0: 2, 1: 2, 2: 2}
    assert len(test) == 6 and test.labels == [0, 0, 1, 1, 2, 2]
    assert len({*train.names, *val.names}) == 24 and train.names == sorted(train.names)
    assert train.info.keys == WNIDS and train.info.class_names[0] == "tench, Tinca tinca" and train.groups is None
    assert len(read(root, "train", val_fraction=0.0)) == 24


@pytest.mark.parametrize("below", ["", "ILSVRC"])
def test_the_published_archive_is_found_from_one_folder(below: str, root: Path, tmp_path: Path) -> None:
    plain = {split: read(root, split) for split in ("train", "val", "test")}
    boxes = plain["test"].read(3).boxes
    archive = tmp_path / "data" / below
    for source, target in (("train", f"{IMAGES}/train"), ("val", f"{IMAGES}/val"), (BOXES, BOXES)):
        (archive / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / source, archive / target)
    found = {split: read(tmp_path / "data", split) for split in plain}
    for split, expected in plain.items():
        assert (found[split].names, found[split].labels) == (expected.names, expected.labels)
        assert found[split].folders == expected.folders
    assert boxes is not None and np.array_equal(found["test"].read(3).boxes, boxes)  # type: ignore[arg-type]


def test_the_held_out_images_depend_on_the_data_seed_alone(root: Path) -> None:
    assert read(root, "val").names == read(root, "val", image_size=32, batch_size=1).names
    assert read(root, "val").names != read(root, "val", seed=1).names


def test_a_record_and_its_boxes(root: Path) -> None:
    data = read(root)
    sample = data.read(3)
    assert sample.image.shape == (60, 40, 3) and sample.label == 1
    assert sample.path == str(root / "val" / WNIDS[1] / "ILSVRC2012_val_00000003.JPEG")
    assert np.array_equal(sample.boxes, [BOX, (0, 0, 5, 5)])  # type: ignore[arg-type]
    assert sample.mask is sample.keypoints is sample.group is None
    assert read(root, "train").read(0).boxes is None


def test_boxes_follow_the_evaluation_transform(root: Path) -> None:
    """40 x 60 becomes 20 x 30, of which rows 5 to 25 are kept; the small box is cropped away."""
    config = DataConfig(name="imagenet", root=str(root), image_size=20)
    split = load_split(config, "test", train=False, seed=0)
    boxes = split[1].boxes
    assert boxes is not None and boxes.tolist() == [[2.0, 4.0, 12.0, 19.0]]
    batch = collate([split[i] for i in range(6)])
    assert batch.boxes is not None and [len(each) for each in batch.boxes] == [1] * 6


def test_images_without_an_object_keep_their_place(root: Path) -> None:
    (root / BOXES / "ILSVRC2012_val_00000000.xml").write_text(xml())
    config = DataConfig(name="imagenet", root=str(root), image_size=20)
    (batch,) = eval_loader(load_split(config, "test", train=False, seed=0), batch_size=6, workers=0)
    assert batch.boxes is not None and [len(each) for each in batch.boxes] == [0, 1, 1, 1, 1, 1]
    assert batch.boxes[0].shape == (0, 4) and batch.boxes[0].dtype == torch.float32


def test_opening_reads_no_image_and_no_xml(root: Path) -> None:
    for path in [*root.rglob("*.JPEG"), *root.rglob("*.xml")]:
        path.write_bytes(b"")
    assert [len(read(root, split)) for split in ("train", "val", "test")] == [18, 6, 6]
    with pytest.raises(UserError, match="cannot read image .*00000000.JPEG"):
        read(root).read(0)


def test_any_tree_of_class_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("dog/a.PNG", "cat/b.jpeg", "cat/c.Jpg", "cat/readme.txt", ".cache/d.jpg"):
            picture(tmp_path / split / name)
    data = read(tmp_path)
    assert data.info.class_names == ("cat", "dog") and data.names == ["b.jpeg", "c.Jpg", "a.PNG"]
    assert data.read(2).boxes is None
    assert isinstance(DATASETS["imagenet"](DataConfig(root=str(tmp_path)), "test"), ImageNet)


def test_the_test_split_needs_no_training_images(root: Path) -> None:
    shutil.rmtree(root / "train")
    assert len(read(root)) == 6
    with pytest.raises(UserError, match=r"train is missing; data\.root must be the folder that contains train/"):
        read(root, "train")


def test_names_from_the_published_list(root: Path) -> None:
    (root / CLASS_NAMES).write_text("".join(f"{wnid} {name}\n" for wnid, name in zip(WNIDS, NAMES, strict=True)))
    assert read(root).info.class_names == NAMES


def test_a_tree_of_a_few_classes_keeps_the_labels_of_the_list(root: Path) -> None:
    lines = [f"{wnid} {name}" for wnid, name in zip(WNIDS, NAMES, strict=True)]
    path = root / "all.txt"
    path.write_text("\n".join(["n09999999 last", *lines, "n02000000 in between"]))
    data = read(root, class_names=str(path))
    assert data.info.class_names == (NAMES[0], "in between", *NAMES[1:], "last")
    assert data.labels == [0, 0, 2, 2, 3, 3] and data.read(2).label == 2


def test_one_name_a_line(root: Path) -> None:
    path = root / "names.txt"
    path.write_text("tench\n\nspringer spaniel\nchain saw\n")
    assert read(root, class_names=str(path)).info.class_names == ("tench", "springer spaniel", "chain saw")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tench\nspaniel\n", "names.txt has 2 lines for 3 class folders, and none begins with n01440764"),
        ("n01440764 tench\nn02102040 spaniel\n", "none begins with n03000684"),
        ("", "names.txt has 0 lines for 3 class folders"),
        (None, "names.txt is missing"),
    ],
)
def test_wrong_names(root: Path, content: str | None, message: str) -> None:
    path = root / "names.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read(root, class_names=str(path))


def empty(base: Path) -> None:
    for path in (base / "val" / WNIDS[0]).iterdir():
        path.unlink()


def flatten(base: Path) -> None:
    for path in list((base / "val").rglob("*.JPEG")):
        path.rename(base / "val" / path.name)
    for wnid in WNIDS:
        (base / "val" / wnid).rmdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty, r"val/n01440764 has no images \(\.avif, .*\.jpeg"),
        (flatten, r"val has no class folders; sort its images into val/<class>/"),
        (lambda base: shutil.rmtree(base / "val"), r"val is missing; data\.root must be the folder that contains val/"),
        (
            lambda base: shutil.rmtree(base / "train" / WNIDS[2]),
            r"train has no class folder n03000684, which .*val has; make them the same",
        ),
        (
            lambda base: (base / "train" / "n0").mkdir(),
            r"val has no class folder n0, which .*train has; make them the same",
        ),
        (
            lambda base: (base / BOXES / "ILSVRC2012_val_00000004.xml").unlink(),
            r"ILSVRC2012_val_00000004\.xml is missing; unpack the box files again or correct data\.box_folder",
        ),
    ],
)
def test_one_line_for_what_is_wrong(root: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        read(root)
    assert "\n" not in str(caught.value)


BOMB = '<!DOCTYPE a [<!ENTITY x "yyyyyyyyyy"><!ENTITY z "&x;&x;&x;">]><annotation>&z;</annotation>'
FETCH = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            xml(BOX, size=(60, 40)),
            r"is for an image of 60 x 40 pixels, not 40 x 60; set data\.exif, or restore both files",
        ),
        (xml(BOX, size=(40, 61)), r"is for an image of 40 x 61 pixels, not 40 x 60; restore both files"),
        (xml((4, 5, "six", 7)), r"\.xml: xmax is 'six', not a number"),  # type: ignore[arg-type]
        (xml((4, 5, float("nan"), 7)), r"\.xml: xmax is 'nan', not a number"),
        (xml(BOX).replace("<ymax>48</ymax>", ""), r"\.xml: ymax is '', not a number"),
        (xml((4, 5, 4, 7)), r"a box from \(4, 5\) to \(4, 7\) has no area"),
        (xml(BOX).replace("<width>40</width>", ""), r"size/width is '', not a number"),
        (xml(BOX)[:-5], r"is not valid XML \(unclosed token"),
        ("", r"is not valid XML \(no element found"),
        ("\x00\x01", "contains a DOCTYPE or NUL characters"),
        (BOMB, "contains a DOCTYPE or NUL characters"),
        (FETCH, "contains a DOCTYPE or NUL characters"),
        (xml(BOX).replace("val<", "&undefined;<"), r"is not valid XML \(undefined entity"),
        ("<a>" + " " * (1 << 20), r"larger than 1048576 bytes"),
    ],
)
def test_a_wrong_xml_is_one_line_and_does_nothing(root: Path, content: str, message: str) -> None:
    path = root / BOXES / "ILSVRC2012_val_00000000.xml"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read(root).read(0)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert read(root).read(1).boxes is not None, "the others are as they were"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-7", "utf-32-le"])
def test_a_document_type_cannot_hide_in_another_encoding(root: Path, encoding: str) -> None:
    (root / BOXES / "ILSVRC2012_val_00000000.xml").write_bytes(BOMB.encode(encoding))
    with pytest.raises(UserError, match="is not valid XML|DOCTYPE or NUL characters"):
        read(root).read(0)


def test_byte_order_mark_and_declared_encoding(root: Path) -> None:
    path = root / BOXES / "ILSVRC2012_val_00000000.xml"
    path.write_bytes(b"\xef\xbb\xbf" + ('<?xml version="1.0" encoding="UTF-8"?>' + xml(BOX)).encode())
    assert np.array_equal(read(root).read(0).boxes, [BOX])  # type: ignore[arg-type]


def test_another_box_folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("boxes") / "val"
    shutil.move(root / BOXES, moved)
    assert read(root).read(0).boxes is None
    assert np.array_equal(read(root, box_folder=str(moved)).read(0).boxes, [BOX])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"data\.box_folder: no folder .*boxes"):
        read(root, box_folder=str(root / "boxes"))


@pytest.mark.parametrize("fraction", [1.0, -0.1, 0.0])
def test_wrong_val_fraction(root: Path, fraction: float) -> None:
    with pytest.raises(UserError, match=r"data\.val_fraction is .*imagenet's val split needs one between 0 and 1"):
        read(root, "val", val_fraction=fraction)
    assert len(read(root, val_fraction=fraction)) == 6, "the test split does not use it"


def test_root_and_split(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root is empty; give the folder that contains train/ and val/"):
        ImageNet(DataConfig(name="imagenet"), "test")
    with pytest.raises(UserError, match="no split 'valid'"):
        read(root, "valid")
