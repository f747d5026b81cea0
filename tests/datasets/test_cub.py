"""CUB's published layout: splits, annotations, and one clear line for every error in the files."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from datasets.config import DataConfig
from datasets.formats import notices, number_table
from datasets.formats.layout import WATERBIRDS
from datasets.readers import files
from datasets.readers.cub import Cub, choose_split
from datasets.readers.waterbirds import Waterbirds
from tests.datasets.published_files import published


def config_of(root: Path, **changes: object) -> DataConfig:
    return replace(DataConfig(name="cub", root=str(root), val_fraction=0.25), **changes)  # type: ignore[arg-type]


def names(data: Cub) -> list[str]:
    return [record.path.name for record in data.records]


def test_splits(layout: Path) -> None:
    train, val, test = (Cub(config_of(layout), split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (40, 12, 16)
    everything = names(train) + names(val) + names(test)
    assert len(set(everything)) == 68
    assert Counter(train.labels) == {0: 20, 1: 20} and Counter(val.labels) == {0: 6, 1: 6}, "class by class"


def test_the_held_out_images_depend_on_the_data_seed_alone(layout: Path) -> None:
    first = Cub(config_of(layout), "val")
    assert names(first) == names(Cub(config_of(layout, image_size=32, batch_size=3), "val"))
    other = config_of(layout, seed=1)
    assert names(first) != names(Cub(other, "val"))
    assert names(Cub(config_of(layout), "test")) == names(Cub(other, "test"))


def test_what_is_said_of_a_split(layout: Path) -> None:
    origins = {split: Cub(config_of(layout), split).info.split_origin for split in ("train", "val", "test")}
    assert origins["val"].startswith("held out: 0.25 of") and origins["val"].endswith("training split, data.seed 0")
    assert origins["train"] == "published, without what is held out for val" and origins["test"] == "published"
    assert Cub(config_of(layout, val_fraction=0.0), "train").info.split_origin == "published"


def test_the_published_training_split_is_whole_without_validation(layout: Path) -> None:
    assert len(Cub(config_of(layout, val_fraction=0.0), "train")) == 52
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(UserError, match="data.val_fraction"):
            Cub(config_of(layout, val_fraction=fraction), "val")


def test_small_classes_stand_on_both_sides() -> None:
    labels = {1: 0, 2: 0, 3: 1, 4: 2, 5: 2, 6: 2}
    config = DataConfig(val_fraction=0.1)
    val = choose_split(labels, dict.fromkeys(labels, True), "val", config)
    train = choose_split(labels, dict.fromkeys(labels, True), "train", config)
    assert sorted(val + train) == [1, 2, 3, 4, 5, 6]
    assert Counter(labels[key] for key in val) == {0: 1, 2: 1}
    assert 3 in train, "a class of one image stays in training"


def test_root_may_be_the_folder_or_its_parent(layout: Path) -> None:
    assert names(Cub(config_of(layout), "val")) == names(Cub(config_of(layout / "CUB_200_2011"), "val"))


def test_a_record(layout: Path) -> None:
    data = Cub(config_of(layout), "test")
    sample = data.read(0)
    assert data.info.class_names == ("001.checked", "002.striped")
    assert data.info.part_names == ("body", "head", "beak", "wing", "tail")
    assert data.info.group_names is None and sample.group is None
    assert sample.path.endswith(f"images/{data.info.class_names[sample.label]}/{Path(sample.path).name}")
    assert sample.boxes is not None and sample.keypoints is not None and sample.mask is not None
    assert sample.boxes.shape == (1, 4) and sample.keypoints.shape == (5, 3) and sample.mask.dtype == bool
    again = data.read(0)
    assert np.array_equal(sample.keypoints, again.keypoints) and np.array_equal(sample.boxes, again.boxes)  # type: ignore[arg-type]


def test_labels_are_numbered_without_gaps(spoiled: Path) -> None:
    for name, old, new in (("image_class_labels.txt", " 2\n", " 7\n"), ("classes.txt", "2 002", "7 002")):
        path = spoiled / name
        path.write_text(path.read_text().replace(old, new))
    data = Cub(config_of(spoiled), "test")
    assert set(data.labels) == {0, 1} and data.info.class_names == ("001.checked", "002.striped")


def test_other_backgrounds(layout: Path) -> None:
    plain, other = Cub(config_of(layout), "test"), Cub(config_of(layout, image_folder=WATERBIRDS), "test")
    assert names(plain) == names(other) and plain.labels == other.labels
    assert WATERBIRDS in other.records[0].path.parts and WATERBIRDS not in plain.records[0].path.parts
    assert np.array_equal(plain.read(3).mask, other.read(3).mask)  # type: ignore[arg-type]


def test_annotations_are_optional(spoiled: Path) -> None:
    shutil.rmtree(spoiled / "segmentations")
    shutil.rmtree(spoiled / "parts")
    (spoiled / "bounding_boxes.txt").unlink()
    data = Cub(config_of(spoiled), "test")
    sample = data.read(0)
    assert sample.mask is sample.keypoints is sample.boxes is data.info.part_names is None


def edit(name: str, line: int, new: str | None) -> Callable[[Path], None]:
    """Replace a line (from 1) of an index file, or delete it."""

    def apply(base: Path) -> None:
        lines = (base / name).read_text().splitlines()
        lines[line - 1 : line] = [] if new is None else [new]
        (base / name).write_text("\n".join(lines) + "\n")

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            edit("images.txt", 1, "1 ../b.jpg"),
            r"images\.txt line 1: column path is '\.\./b\.jpg', which leaves its folder",
        ),
        (edit("images.txt", 4, "3 a/b.jpg"), r"images\.txt line 4: id 3 is already in line 3"),
        (edit("images.txt", 4, "four a/b.jpg"), r"images\.txt line 4: column id is 'four', not a whole number"),
        (edit("images.txt", 4, "4"), r"images\.txt line 4: 1 columns, not 2 \(id path\)"),
        (edit("images.txt", 4, "4 a/b.jpg"), r"a/b\.jpg is missing"),
        (edit("image_class_labels.txt", 2, "2 x"), r"labels\.txt line 2: column class_id is 'x'"),
        (edit("image_class_labels.txt", 2, "2 9"), r"labels\.txt line 2: column class_id is 9; it must be one of"),
        (edit("image_class_labels.txt", 2, None), r"image_class_labels\.txt: no line for id 2, which images\.txt has"),
        (
            edit("train_test_split.txt", 5, "5 2"),
            r"train_test_split\.txt line 5: column is_training is 2; it must be 0, 1",
        ),
        (edit("train_test_split.txt", 5, "99 1"), r"train_test_split\.txt: no line for id 5"),
        (edit("bounding_boxes.txt", 6, "6 1 2 3 nan"), r"bounding_boxes\.txt line 6: column height is 'nan'"),
        (edit("bounding_boxes.txt", 6, "6 1 2 0 5"), r"bounding_boxes\.txt line 6: the box is 0 wide and 5 high"),
        (
            edit("bounding_boxes.txt", 6, "6 1 2 3"),
            r"bounding_boxes\.txt line 6: 4 columns, not 5 \(id x y width height\)",
        ),
        (edit("bounding_boxes.txt", 6, "6 1 2 3 4 5"), r"bounding_boxes\.txt line 6: column height is '4 5'"),
        (edit("bounding_boxes.txt", 6, "5 1 2 3 4"), r"bounding_boxes\.txt line 6: id 5 is already in line 5"),
        (edit("bounding_boxes.txt", 6, "6.5 1 2 3 4"), r"bounding_boxes\.txt line 6: column id is '6\.5', not a whole"),
        (edit("bounding_boxes.txt", 6, None), r"bounding_boxes\.txt: no line for id 6"),
        (edit("parts/part_locs.txt", 7, "2 1 0 0 1"), r"part_locs\.txt line 7: part 1 of image 2 .* second time"),
        (edit("parts/part_locs.txt", 7, "2 9 0 0 1"), r"part_locs\.txt line 7: column part_id is 9"),
        (edit("parts/part_locs.txt", 7, "2 2 0 0 2"), r"part_locs\.txt line 7: column visible is 2; it must be 0, 1"),
        (edit("parts/part_locs.txt", 7, None), r"part_locs\.txt: image 2 has fewer than 5 parts"),
        (lambda base: (base / "classes.txt").unlink(), r"classes\.txt is missing"),
        (lambda base: (base / "parts" / "parts.txt").unlink(), r"parts\.txt is missing"),
        (lambda base: (base / "images.txt").write_bytes(b"\xff\xfe\x00"), r"cannot read .*images\.txt"),
        (lambda base: shutil.rmtree(base / "images"), r"images/.*\.jpg \(and \d+ more\) is missing"),
        (
            lambda base: shutil.rmtree(base / "segmentations" / "001.checked"),
            r"segmentations/.*\.png \(and .* is missing",
        ),
        (lambda base: (base / "images.txt").unlink(), r"data\.root: neither .* nor .* contains images\.txt"),
    ],
)
def test_one_line_for_what_is_wrong(spoiled: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(spoiled)
    with pytest.raises(UserError, match=message) as caught:
        Cub(config_of(spoiled), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("root", "message"), [("", "data.root is empty"), ("/no/such/folder", "no folder /no/such")])
def test_root_errors(root: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Cub(DataConfig(name="cub", root=root), "train")


def test_unknown_split(layout: Path) -> None:
    with pytest.raises(UserError, match="no split 'valid'; known: train, val, test"):
        Cub(config_of(layout), "valid")


def test_a_mask_of_another_size(spoiled: Path) -> None:
    data = Cub(config_of(spoiled), "test")
    donor = data.records[0].path.with_suffix(".png")
    Image.new("L", (7, 5)).save(donor)
    record = replace(data.records[0], mask=donor)
    data.records = [record]
    with pytest.raises(UserError, match=r"\.png is 7 x 5 pixels but .*\.jpg is 48 x 48"):
        data.read(0)


def test_one_image_by_two_ids(spoiled: Path) -> None:
    first = (spoiled / "images.txt").read_text().splitlines()[0].split()[1]
    edit("images.txt", 2, f"2 {first}")(spoiled)
    with pytest.raises(UserError, match=rf"images\.txt line 2: path {first} is already in line 1"):
        Cub(config_of(spoiled), "train")


def test_images_txt_alone_decides_which_images_there_are(
    spoiled: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the second class is left, its ids not from 1 on; the other files are as published."""
    monkeypatch.setattr(notices, "_SAID", bytearray(1 << 12))
    before = {sample.path: sample for sample in map(Cub(config_of(spoiled), "test").read, range(16))}
    lines = (spoiled / "images.txt").read_text().splitlines()
    kept = [line for line in lines if "002.striped" in line]
    (spoiled / "images.txt").write_text("".join(f"{line}\n" for line in reversed(kept)))
    splits = {split: Cub(config_of(spoiled), split) for split in ("train", "val", "test")}
    assert {split: len(data) for split, data in splits.items()} == {"train": 20, "val": 6, "test": 8}
    for data in splits.values():
        assert data.info.class_names == ("002.striped",) and set(data.labels) == {0}
    for i in range(8):
        sample = splits["test"].read(i)
        whole = before[sample.path]
        for name in ("image", "boxes", "keypoints", "mask"):
            assert np.array_equal(getattr(sample, name), getattr(whole, name))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        f"{spoiled}/images.txt lists 34 images; rows of other images are left out: 34 of image_class_labels.txt, "
        "34 of train_test_split.txt, 34 of bounding_boxes.txt, 170 of parts/part_locs.txt"
    )


def test_the_files_are_read_once_for_all_splits_until_one_changes(
    spoiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: Path, *how: Any) -> np.ndarray:
        read.append(path.name)
        return values(path, *how)

    values = number_table._values
    monkeypatch.setattr(number_table, "_values", counted)
    for split in ("train", "val", "test"):
        Cub(config_of(spoiled), split)
    Waterbirds(DataConfig(name="waterbirds", root=str(spoiled)), "train")
    assert read.count("part_locs.txt") == read.count("bounding_boxes.txt") == 1
    edit("parts/part_locs.txt", 1, "1 1 7.5 8.5 1")(spoiled)
    data = Cub(config_of(spoiled, val_fraction=0.0), "train")
    assert read.count("part_locs.txt") == 2
    assert data.records[0].keypoints is not None and data.records[0].keypoints[0].tolist() == [7.5, 8.5, 1.0]


def test_blank_lines_and_windows_line_ends(spoiled: Path) -> None:
    for name in ("images.txt", "classes.txt", "parts/part_locs.txt"):
        path = spoiled / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert len(Cub(config_of(spoiled), "test")) == 16


def test_the_whole_published_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its images: splits, boxes and key points of 11788 birds, against a plain parser."""
    base = published("cub_metadata/CUB_200_2011")
    monkeypatch.setattr(files, "check_files", lambda paths, *advice: None)
    splits = {split: Cub(DataConfig(name="cub", root=str(base)), split) for split in ("train", "val", "test")}
    assert {split: len(data) for split, data in splits.items()} == {"train": 5394, "val": 600, "test": 5794}
    paths = dict(line.split() for line in (base / "images.txt").read_text().splitlines())
    boxes = {key: cells for key, *cells in map(str.split, (base / "bounding_boxes.txt").read_text().splitlines())}
    points: dict[str, list[list[str]]] = {}
    for key, _, *cells in map(str.split, (base / "parts" / "part_locs.txt").read_text().splitlines()):
        points.setdefault(key, []).append(cells)
    found = {"/".join(record.path.parts[-2:]): record for data in splits.values() for record in data.records}
    assert len(found) == 11788 and splits["test"].info.num_classes == 200
    for key, path in paths.items():
        record, (x, y, width, height) = found[path], map(float, boxes[key])
        assert record.label == int(path[:3]) - 1
        assert np.allclose(record.boxes, [[x, y, x + width, y + height]])  # type: ignore[arg-type]
        assert np.array_equal(record.keypoints, np.array(points[key], np.float32))  # type: ignore[arg-type]


def test_the_published_index_beside_a_shortened_list(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images of ten classes, listed alone, with all other files whole: the same birds as with all files cut."""
    cut, whole = published("cub10"), published("cub_metadata/CUB_200_2011")
    monkeypatch.setattr(notices, "_SAID", bytearray(1 << 12))
    base = tmp_path / "CUB_200_2011"
    shutil.copytree(whole, base)
    (base / "images.txt").chmod(0o644)
    (base / "images.txt").write_text("".join((whole / "images.txt").read_text().splitlines(keepends=True)[:543]))
    (base / "images").symlink_to(cut / "images")
    (base / "segmentations").symlink_to(cut / "segmentations")
    for split in ("train", "test"):
        mine, theirs = Cub(config_of(base), split), Cub(config_of(cut), split)
        assert names(mine) == names(theirs) and mine.labels == theirs.labels and mine.info == theirs.info
        for i in (0, len(mine) - 1):
            assert np.array_equal(mine.read(i).keypoints, theirs.read(i).keypoints)  # type: ignore[arg-type]
    assert "lists 543 images; rows of other images are left out: 11245 of image_class_labels.txt" in caplog.text
    assert "168675 of parts/part_locs.txt" in caplog.text and len(caplog.records) == 1
