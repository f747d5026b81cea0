"""The pass over validation and test images before training: what it finds, and when it is not repeated."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from commands.train_run import train
from common.errors import UserError
from datasets import Split, load_split
from datasets.config import DataConfig
from datasets.readable import cache_folder, check_readable
from engine.run.folder import BEST
from tests.processes import on_processes
from tests.tiny import tiny_config
from tests.trees import class_tree, imagenet_tree, write_box

SPLITS = {"train": 8, "val": 2, "test": 3}
"""Images of each of the two classes."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAITHFUL_VIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "readable"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, count in SPLITS.items():
        class_tree(tmp_path / "tree" / name, ("cat", "dog"), count)
    return tmp_path / "tree"


def load(root: Path, name: str = "folder", split: str = "test", **keys: object) -> Split:
    return load_split(DataConfig(name=name, root=str(root), **keys), split, train=False, seed=0)  # type: ignore[arg-type]


def images_read(split: Split, workers: int = 0) -> int:
    """How many images a check of the split reads."""
    counts: list[float] = []

    @contextmanager
    def bar(text: str, steps: int) -> Iterator[Callable[[float], None]]:
        yield counts.append

    check_readable(split, "test", workers, bar)
    return int(sum(counts))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_images_are_read_once_until_a_file_changes(tree: Path, cache: Path) -> None:
    assert images_read(load(tree)) == 6 and images_read(load(tree)) == 0
    assert images_read(load(tree, split="val")) == 4, "another split"
    assert [path.stat().st_size for path in cache.iterdir()] == [0, 0]
    image = tree / "test" / "cat" / "cat_0.JPEG"
    os.utime(image, ns=(0, 0))
    assert images_read(load(tree)) == 6, "another time"
    image.write_bytes(image.read_bytes() + b"\0")
    os.utime(image, ns=(0, 0))
    assert images_read(load(tree)) == 6, "another size"
    image.rename(image.with_name("cat_9.JPEG"))
    assert images_read(load(tree)) == 6, "another name"
    assert images_read(load(tree)) == 0
    assert images_read(load(tree, exif="ignore")) == 6, "another orientation, in which masks may not fit"


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_broken_images_are_named_and_not_remembered(
    workers: int, tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.readable.PER_WORKER", 3)
    for number in range(2):
        truncate(tree / "test" / "dog" / f"dog_{number}.JPEG")
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"^2 of the 6 test images cannot be read: .*dog_0\.JPEG \(.*dog_1"
        ) as found:
            images_read(load(tree), workers)
    assert "data.check_images=false" in str(found.value) and not cache.exists()
    for path in (tree / "test").rglob("*.JPEG"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="6 of the 6 test images.*; and 3 more. Restore"):
        images_read(load(tree))


def test_masks_and_boxes_are_read_too(tree: Path, tmp_path: Path) -> None:
    for image in (tree / "test").rglob("*.JPEG"):
        mask = tmp_path / "masks" / image.relative_to(tree).with_suffix(".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_bytes(image.read_bytes())
    masks = str(tmp_path / "masks")
    assert images_read(load(tree)) == 6 and images_read(load(tree, mask_folder=masks)) == 6
    truncate(tmp_path / "masks" / "test" / "dog" / "dog_2.png")
    with pytest.raises(UserError, match=r"1 of the 6 test images .*masks/test/dog/dog_2\.png"):
        images_read(load(tree, mask_folder=masks))
    root = imagenet_tree(tmp_path / "imagenet")
    boxes = root / "Annotations" / "CLS-LOC" / "val"
    boxes.mkdir(parents=True)
    for image in (root / "val").rglob("*.JPEG"):
        write_box(boxes / f"{image.stem}.xml", (32, 32))
    assert images_read(load(root, "imagenet1k")) == 8
    truncate(next(boxes.iterdir()))
    with pytest.raises(UserError, match="1 of the 8 test images"):
        images_read(load(root, "imagenet1k"))


def test_a_cache_that_cannot_be_written_is_no_error(tree: Path, cache: Path) -> None:
    cache.parent.write_text("a file where a folder should be")
    assert images_read(load(tree)) == images_read(load(tree)) == 6


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAITHFUL_VIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/faithful-vit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert cache_folder() == Path("/h/.cache/faithful-vit")


def test_data_without_files_are_not_read() -> None:
    assert images_read(load_split(DataConfig(name="digits"), "test", train=False, seed=0)) == 0


def read_twice(root: Path) -> tuple[int, int, str]:
    """Images of a good split, again, and the error of one with a broken image; in one of several processes."""
    counts = images_read(load(root)), images_read(load(root))
    try:
        return *counts, str(images_read(load(root, split="val")))
    except UserError as error:
        return *counts, str(error)


@pytest.mark.slow
def test_processes_read_a_block_each_and_all_stop(tree: Path) -> None:
    truncate(tree / "val" / "dog" / "dog_1.JPEG")
    first, second = on_processes(2, read_twice, tree)
    assert first == second and first[:2] == (3, 0) and "dog_1.JPEG" in first[2]


@pytest.mark.slow
def test_training_does_not_start_with_a_broken_test_image(tree: Path, tmp_path: Path) -> None:
    """Without the check, the training is not lost."""
    keys = {"data.name": "folder", "data.root": str(tree), "train.epochs": 1, "model.name": "vit"}
    broken, out = tree / "test" / "dog" / "dog_2.JPEG", tmp_path / "run"
    content = broken.read_bytes()
    truncate(broken)
    with pytest.raises(UserError, match="1 of the 6 test images"):
        train(tiny_config(out, keys))
    assert not out.exists() or not any(path.is_file() for path in out.rglob("*"))
    config = tiny_config(out, keys | {"data.check_images": False})
    with pytest.raises(UserError, match=r"dog_2\.JPEG.* Training is finished and saved: --resume evaluates it again$"):
        train(config)
    assert (out / BEST / "model.safetensors").is_file() and not (out / "results.json").exists()
    broken.write_bytes(content)
    assert train(replace(tiny_config(out, keys), resume=True))["test/accuracy"] >= 0
