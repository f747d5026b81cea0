"""The data set `folder`: a user's own tree or index file."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from datasets import DataConfig, eval_loader, load_split
from datasets.formats import notices
from datasets.formats.folders import class_images
from datasets.readers.folder import Folder
from metrics.registry import build_metrics, default_metrics
from tests.trees import class_tree, save_image

CLASSES = ("cat", "dog")
ROWS = (
    "path,label,split,place,mask,box",
    "a.png,cat,train,sofa,m/a.png,0 0 16 16",
    "b.png,dog,train,lawn,m/b.png,1 2 3 4|5 6 7 8",
    "c.png,cat,validation,lawn,m/c.png,0 0 1 1",
    "d.png,dog,Test,lawn,m/d.png,",
)


@pytest.fixture(autouse=True)
def fresh_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_SAID", bytearray(1 << 12))


def tree(root: Path, counts: Mapping[str, int]) -> Path:
    for name, count in counts.items():
        class_tree(root / name, CLASSES, count)
    return root


def opened(root: Path, split: str = "test", **keys: Any) -> Folder:
    return Folder(DataConfig(name="folder", root=str(root), **keys), split)


def names(data: Folder, root: Path) -> list[str]:
    return [record.path.relative_to(root).as_posix() for record in data.records]


@pytest.mark.parametrize(
    ("there", "folders", "said"),
    [
        (("train", "val", "test"), ("train", "val", "test"), "train = train/, val = val/, test = test/"),
        (("training", "Validation", "testing"), ("training", "Validation", "testing"), "val = Validation/"),
        (("train", "test"), ("train", "train", "test"), "val = 0.25 of train/, test = test/"),
        (("train", "val"), ("train", "train", "val"), "val = 0.25 of train/, test = val/"),
    ],
)
def test_every_folder_is_the_split_that_it_is_named(
    there: tuple[str, ...], folders: tuple[str, ...], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree(tmp_path, dict.fromkeys(there, 4))
    found = {split: opened(root, split, val_fraction=0.25) for split in ("train", "val", "test")}
    images = {split: names(data, root) for split, data in found.items()}
    assert tuple({name.split("/")[0] for name in images[s]} for s in images) == tuple({name} for name in folders)
    held_out = folders[1] == folders[0]
    assert [len(images[s]) for s in images] == ([6, 2, 8] if held_out else [8, 8, 8])
    assert not set(images["train"]) & set(images["val"]) and found["test"].info.class_names == CLASSES
    (message,) = [record.message for record in caplog.records]
    assert said in message
    if held_out:
        with pytest.raises(UserError, match="data.val_fraction is 0; folder's val split needs one"):
            opened(root, "val", val_fraction=0)
    else:
        assert len(opened(root, "val", val_fraction=0)) == 8
    origins = [data.info.split_origin for data in found.values()]
    assert origins[2] == f"{folders[2]}/" and ("held out: 0.25 of every class" in origins[1]) == held_out


def test_a_test_folder_alone(tmp_path: Path) -> None:
    assert len(opened(tree(tmp_path, {"test": 2}))) == 4
    with pytest.raises(UserError, match="the train split of data set 'folder' is empty"):
        opened(tmp_path, "train")


def test_images_at_any_depth_and_what_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "test" / "cat"
    for suffix, kind in {"jfif": "JPEG", "gif": "GIF", "webp": "WEBP", "jp2": "JPEG2000", "PNG": "PNG"}.items():
        (folder / "deep" / suffix).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(folder / "deep" / suffix / f"x.{suffix}", kind)
    save_image(folder / "x.JPEG")
    for ignored in ("._x.jpg", ".DS_Store", "Thumbs.db", ".ipynb_checkpoints/x.png", "__MACOSX/x.jpg"):
        (folder / ignored).parent.mkdir(exist_ok=True)
        (folder / ignored).write_bytes(b"no image")
    for other in ("notes.txt", "deep/a.heic", "deep/b.heic"):
        (folder / other).write_text("")
    (folder / "deep" / "loop").symlink_to(folder)
    (tmp_path / "test" / ".ipynb_checkpoints").mkdir()
    data = opened(tmp_path)
    images = ["deep/PNG/x.PNG", "deep/gif/x.gif", "deep/jfif/x.jfif", "deep/jp2/x.jp2", "deep/webp/x.webp", "x.JPEG"]
    assert names(data, folder) == images and data.info.class_names == ("cat",)
    assert all(data.read(i).image.shape[2] == 3 for i in range(len(images)))
    assert "3 files are left out, they are no images (2 .heic, 1 .txt)" in caplog.text
    with pytest.raises(UserError, match="has no images .*; its 2 files are no images; fill or"):
        (folder / "deep" / "empty").mkdir()
        (folder / "deep" / "empty" / "a.txt").write_text("")
        (folder / "deep" / "empty" / "b.txt").write_text("")
        class_images(folder / "deep", ["empty"])


def test_avif(tmp_path: Path) -> None:
    pytest.importorskip("PIL.AvifImagePlugin")
    (tmp_path / "test" / "cat").mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "test" / "cat" / "x.avif")
    red, green, _ = opened(tmp_path).read(0).image[8, 8]
    assert red > 240 and green < 20


def test_places_are_folders(tmp_path: Path) -> None:
    for i, name in enumerate(("train/cat/sofa/a", "train/cat/lawn/b", "train/dog/lawn/c/d", "test/dog/sofa/e")):
        save_image(tmp_path / f"{name}.png", (8 + i, 8))
    train, test = (opened(tmp_path, split, place_folders=True, val_fraction=0) for split in ("train", "test"))
    assert train.info.group_names == test.info.group_names == ("cat, lawn", "cat, sofa", "dog, lawn", "dog, sofa")
    assert (train.groups, test.groups) == ([0, 1, 2], [3])
    assert test.info.group_fractions == (1 / 3, 1 / 3, 1 / 3, 0)
    save_image(tmp_path / "test" / "dog" / "f.png")
    with pytest.raises(UserError, match="f.png: data.place_folders needs the folder of a place between"):
        opened(tmp_path, place_folders=True)


def test_names_of_classes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("dog Hund\ncat Katze\n")
    data = opened(tree(tmp_path, {"test": 1}), class_names=str(tmp_path / "names.txt"))
    assert data.info.class_names == ("Katze", "Hund")


def indexed(root: Path, *rows: str, encoding: str = "utf-8", name: str = "index.csv") -> Path:
    """The four images and masks of `ROWS`, and an index file."""
    for letter in "abcd":
        save_image(root / f"{letter}.png")
        (root / "m").mkdir(exist_ok=True)
        Image.fromarray(np.eye(32, dtype=np.uint8) * 255).save(root / "m" / f"{letter}.png")
    (root / name).write_text("\n".join(rows or ROWS) + "\n", encoding=encoding)
    return root


DIALECTS: dict[str, tuple[Callable[[str], str], str]] = {
    "comma": (str, "utf-8"),
    "semicolon": (lambda row: row.replace(",", ";"), "utf-8"),
    "tab": (lambda row: row.replace(",", "\t"), "utf-8"),
    "byte order mark": (str, "utf-8-sig"),
    "utf-16": (lambda row: row.replace(",", "\t"), "utf-16"),
    "quotes": (lambda row: ",".join(f'"{cell}"' for cell in row.split(",")), "utf-8"),
    "blanks and other columns": (lambda row: f"note , {row.replace(',', ' , ')}", "utf-8"),
    "backslashes": (lambda row: row.replace("/", "\\"), "utf-8"),
    "windows": (lambda row: row + "\r\n\r", "utf-8"),
}


@pytest.mark.parametrize("kind", DIALECTS)
def test_an_index_in_any_dialect(kind: str, tmp_path: Path) -> None:
    change, encoding = DIALECTS[kind]
    root = indexed(tmp_path, *map(change, ROWS), encoding=encoding)
    train, val, test = (opened(root, split) for split in ("train", "val", "test"))
    assert (names(train, root), names(val, root), names(test, root)) == (["a.png", "b.png"], ["c.png"], ["d.png"])
    assert (train.labels, val.labels, test.labels) == ([0, 1], [0], [1])
    assert train.info.group_names == ("cat, lawn", "cat, sofa", "dog, lawn") and train.groups == [1, 2]
    assert train.info.group_fractions == (0, 0.5, 0.5)
    sample = train.read(1)
    assert sample.mask is not None and sample.mask.sum() == 32
    assert sample.boxes is not None and sample.boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert test.records[0].boxes is not None and test.records[0].boxes.shape == (0, 4)
    assert test.info.split_origin == "index.csv, split test"


def test_a_column_of_groups_and_no_validation_images(tmp_path: Path) -> None:
    root = indexed(
        tmp_path, "path\tlabel\tsplit\tgroup", "a.png\t10\ttrain\tx", "b.png\t9\ttrain\tx", "c.png\t10\ttrain\ty",
        "d.png\t9\ttest\ty", name="index.tsv",
    )  # fmt: skip
    train, val = opened(root, "train", val_fraction=0.5), opened(root, "val", val_fraction=0.5)
    assert train.info.class_names == ("9", "10") and train.info.group_names == ("x", "y")
    assert sorted(names(train, root) + names(val, root)) == ["a.png", "b.png", "c.png"] and len(val) == 1
    other = tmp_path / "elsewhere.csv"
    other.write_text("path,label,split\na.png,1,test\n")
    assert names(opened(root, index=str(other)), root) == ["a.png"]


def test_several_labels(tmp_path: Path) -> None:
    rows = ("path,label,split", "a.png,dog|cat,train", "b.png,emu,train", "c.png, cat | emu,val", "d.png,dog,test")
    root = indexed(tmp_path, *rows)
    data = opened(root, "train", label_separator="|")
    assert data.info.multi_label and data.info.class_names == ("cat", "dog", "emu") and data.labels == [1, 2]
    present = [data.read(i).present for i in range(2)]
    assert [p is not None and p.tolist() for p in present] == [[True, True, False], [False, False, True]]
    grouped = replace(data.info, group_names=("a", "b"))  # accuracy is that of a single label
    assert "groups" not in default_metrics(grouped, has_mask=False)
    with pytest.raises(UserError, match="--metrics groups: folder has several classes per image"):
        build_metrics(("groups",), grouped)
    batch = next(iter(eval_loader(load_split(
        DataConfig(name="folder", root=str(root), label_separator="|", image_size=16), "val", train=False, seed=0
    ), batch_size=1, workers=0)))  # fmt: skip
    assert batch.present is not None and batch.present.tolist() == [[True, False, True]]


BAD_ROWS = {
    "column": (["path;class;split"], "its first line must name the columns path, label, split"),
    "empty": ([], "its first line must name the columns"),
    "cells": (["path,label,split", "a.png,cat"], "index.csv line 2: 2 cells, but the header has 3"),
    "split": (["path,label,split", "", "a.png,cat,tset"], "line 3: column split is 'tset'; it must be train, val or"),
    "leaves": (["path,label,split", "../a.png,cat,test"], "line 2: column path is '../a.png'"),
    "absolute": (["path,label,split", "/a.png,cat,test"], "line 2: column path is '/a.png'; write a path relative"),
    "label": (["path,label,split", "a.png,,test"], "line 2: column label is ''; every image needs a class"),
    "twice": (["path,label,split", "a.png,cat,train", "./a.png,cat,test"], "line 3: ./a.png is already in line 2"),
    "group": (["path,label,split,group", "a.png,cat,test,"], "line 2: column group is empty"),
    "mask": (["path,label,split,mask", "a.png,cat,test,"], "line 2: column mask is empty"),
    "box": (["path,label,split,box", "a.png,cat,test,1 2 3"], "line 2: box '1 2 3' is not four numbers"),
    "flat box": (["path,label,split,box", "a.png,cat,test,1 2 1 4"], "line 2: box '1 2 1 4' has no area"),
    "missing": (["path,label,split", "x.png,cat,test"], "x.png is missing"),
    "quote": (["path,label,split", 'a.png,"cat,test'], "line 2: not valid CSV"),
    "class": (["path,label,split", "a.png,cat,train", "b.png,cow,test"], "b.png: the test split has the class cow"),
}


@pytest.mark.parametrize(("rows", "problem"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_mistakes_in_an_index(rows: list[str], problem: str, tmp_path: Path) -> None:
    indexed(tmp_path)
    (tmp_path / "index.csv").write_text("\n".join(rows))
    with pytest.raises(UserError) as error:
        opened(tmp_path)
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_mistakes_in_a_tree(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has neither index.csv nor a folder train/, val/ or test/"):
        opened(tmp_path)
    with pytest.raises(UserError, match="data.index: no file nowhere.csv"):
        opened(tmp_path, index="nowhere.csv")
    tree(tmp_path, {"train": 1, "val": 1})
    save_image(tmp_path / "val" / "cow" / "a.png")
    with pytest.raises(UserError, match="the val split has the class cow, of which there are no training images"):
        opened(tmp_path)
    (tmp_path / "valid").mkdir()
    with pytest.raises(UserError, match="valid and .*val are both the val split"):
        opened(tmp_path)


@pytest.mark.parametrize(("name", "third"), [("imagenet", "test"), ("imagenet1k", "test"), ("metashift", "val")])
def test_a_split_that_a_published_layout_does_not_have_is_refused(name: str, third: str, tmp_path: Path) -> None:
    root = tree(tmp_path, dict.fromkeys(("train", "val", "test"), 2))
    with pytest.raises(UserError, match=f"has {third}/ with class folders, but data.name={name} .*data.name=folder"):
        load_split(DataConfig(name=name, root=str(root)), "train", train=True, seed=0)


def test_one_line_for_a_data_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tree(tmp_path, {"train": 2, "test": 1})
    with caplog.at_level(logging.WARNING):
        for split in ("train", "val", "test"):
            opened(root, split)
    assert len(caplog.records) == 1
