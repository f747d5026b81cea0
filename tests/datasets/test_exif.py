"""EXIF orientation (data.exif): published data sets are read as stored, images of your own are rotated."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from datasets import DATASETS, DataConfig, DatasetInfo, RawSample, load_split
from datasets.readers.files import FileDataset, Record
from datasets.readers.imagenet import BOXES
from engine.run.command_line import parse_config
from tests.datasets.published import (
    HEIGHT,
    WIDTH,
    write_coco,
    write_flowers,
    write_nabirds,
    write_part_imagenet,
    write_voc,
)
from tests.datasets.published_files import published
from tests.trees import WNIDS, class_tree, imagenet9_tree, imagenet_tree, metashift_tree, save_on_its_side, write_box

STORED, ROTATED = (40, 24), (24, 40)
"""(height, width) of an image with orientation 6: a quarter turn."""


def tag(path: Path, size_hw: tuple[int, int] = STORED, kind: str = "JPEG") -> None:
    """Replace an image by one of that stored size with orientation 6, its left half bright."""
    pixels = np.zeros((*size_hw, 3), np.uint8)
    pixels[:, : size_hw[1] // 2] = 250
    save_on_its_side(path, pixels, kind)


def tag_all(root: Path, size_hw: tuple[int, int] = STORED) -> Path:
    for path in (path for path in root.rglob("*") if path.suffix in (".jpg", ".JPEG")):
        tag(path, size_hw)
    return root


def cub(root: Path, layout: Path) -> Path:
    base = Path(shutil.copytree(layout / "CUB_200_2011", root / "CUB_200_2011"))
    for path in base.rglob("*.png"):
        Image.new("L", STORED[::-1], 255).save(path)
    return tag_all(root)


def flat_flowers(root: Path, layout: Path) -> Path:
    write_flowers(root)
    return tag_all(root)


def voc(root: Path, layout: Path) -> Path:
    write_voc(root)
    return tag_all(root, (HEIGHT, WIDTH))


def coco(root: Path, layout: Path) -> Path:
    write_coco(root)
    return tag_all(root, (HEIGHT, WIDTH))


def nabirds(root: Path, layout: Path) -> Path:
    return tag_all(write_nabirds(root), (HEIGHT, WIDTH))


def parts(root: Path, layout: Path) -> Path:
    write_part_imagenet(root)
    return tag_all(root, (HEIGHT, WIDTH))


def nine(root: Path, layout: Path) -> Path:
    tag_all(imagenet9_tree(root))
    for path in root.rglob("*.npy"):
        np.save(path, np.ones(STORED, bool))
    return root


TREES: dict[str, Callable[[Path, Path], Path]] = {
    "cub": cub,
    "waterbirds": cub,
    "metashift": lambda root, layout: tag_all(metashift_tree(root)),
    "flowers102": flat_flowers,
    "voc2012": voc,
    "coco": coco,
    "nabirds": nabirds,
    "part_imagenet": parts,
    "imagenet": lambda root, layout: tag_all(imagenet_tree(root)),
    "imagenet1k": lambda root, layout: tag_all(imagenet_tree(root)),
    "imagenet_a": lambda root, layout: tag_all(class_tree(root, WNIDS, 1)),
    "imagenet_r": lambda root, layout: tag_all(class_tree(root, WNIDS, 1)),
    "imagenet_v2": lambda root, layout: tag_all(class_tree(root, ("0", "7"), 1)),
    "imagenet9": nine,
}
OTHERS = {"synthetic", "digits", "svhn", "siim_acr", "folder"}
"""No image files, DICOM files, which have no EXIF, or images of your own (below)."""


def first(config: DataConfig) -> RawSample:
    return load_split(config, "test", train=False, seed=0).raw.read(0)


def test_every_data_set_of_image_files_is_tried() -> None:
    assert TREES.keys() | OTHERS == set(DATASETS)


@pytest.mark.parametrize("name", TREES)
def test_published_images_are_read_as_stored(name: str, tmp_path: Path, layout: Path) -> None:
    config = DataConfig(name=name, root=str(TREES[name](tmp_path, layout)))
    sample = first(config)
    height, width = sample.image.shape[:2]
    assert (height, width) in (STORED, (HEIGHT, WIDTH))
    assert sample.image[:, 0].min() > 200 and sample.image[:, -1].max() < 50
    for annotation in (sample.mask, sample.part_labels):
        assert annotation is None or annotation.shape == (height, width)


@pytest.mark.parametrize("name", ["metashift", "imagenet1k", "imagenet_v2"])
def test_the_key_decides(name: str, tmp_path: Path, layout: Path) -> None:
    config = DataConfig(name=name, root=str(TREES[name](tmp_path, layout)))
    sizes = {exif: first(replace(config, exif=exif)).image.shape[:2] for exif in ("auto", "ignore", "apply")}  # type: ignore[arg-type]
    assert sizes == {"auto": STORED, "ignore": STORED, "apply": ROTATED}


@pytest.mark.parametrize("name", ["imagenet", "folder"])
def test_a_tree_of_your_own_is_rotated(name: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        class_tree(tmp_path / split, ("cat", "n0123"), 2)
    config = DataConfig(name=name, root=str(tag_all(tmp_path)))
    assert first(config).image.shape[:2] == ROTATED and first(replace(config, exif="ignore")).image.shape[:2] == STORED


def test_a_tree_with_box_files_is_read_as_stored_in_every_split(tmp_path: Path) -> None:
    """The boxes are those of the stored image, as in ImageNet's files."""
    for split in ("train", "val"):
        class_tree(tmp_path / split, ("cat", "dog"), 4)
    (tmp_path / BOXES).mkdir(parents=True)
    for path in (tmp_path / "val").rglob("*.JPEG"):
        write_box(tmp_path / BOXES / f"{path.stem}.xml", STORED)
    config = DataConfig(name="imagenet", root=str(tag_all(tmp_path)), image_size=16)
    for split in ("train", "val", "test"):
        assert load_split(config, split, train=False, seed=0).raw.read(0).image.shape[:2] == STORED
    assert first(config).boxes is not None
    with pytest.raises(UserError, match=r"for an image of 24 x 40 pixels, not 40 x 24; set data\.exif, or restore"):
        first(replace(config, exif="apply"))


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[str]:
    """A data set registered from outside: one image file, its mask as stored or as displayed."""
    tag(tmp_path / "photo.jpg")

    def open_mine(config: DataConfig, split: str) -> FileDataset:
        return FileDataset(DatasetInfo("mine", ("only",)), [Record(tmp_path / "photo.jpg", 0)], split)

    DATASETS.register("mine")(open_mine)
    yield "mine"
    del DATASETS._entries["mine"]


def test_files_of_your_own_are_rotated(mine: str, tmp_path: Path) -> None:
    assert first(DataConfig(name=mine)).image.shape[:2] == ROTATED
    assert first(DataConfig(name=mine, exif="ignore")).image.shape[:2] == STORED


def test_masks_of_your_own_are_read_as_their_images_are(mine: str, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    config = DataConfig(name=mine, mask_folder=str(tmp_path / "masks"))
    tag(tmp_path / "masks" / "photo.png", kind="PNG")
    for exif, size in (("auto", ROTATED), ("ignore", STORED)):
        sample = first(replace(config, exif=exif))  # type: ignore[arg-type]
        assert sample.mask is not None and sample.mask.shape == sample.image.shape[:2] == size
        assert np.array_equal(sample.mask, sample.image[..., 0] > 128)
    Image.new("L", STORED[::-1], 255).save(tmp_path / "masks" / "photo.png")  # no tag: painted on the stored pixels
    assert first(replace(config, exif="ignore")).mask is not None
    with pytest.raises(UserError, match=r"24 x 40 pixels but .* is 40 x 24; set data\.exif, or restore both files"):
        first(config)


def test_the_key_stays_auto_in_a_run() -> None:
    """So that a run on your own images can be evaluated on a published data set, and the other way round."""
    assert parse_config(["--data.name=cub"]).data.exif == "auto"
    with pytest.raises(UserError, match=r"data\.exif"):
        parse_config(["--data.exif=rotate"])


def test_the_rotated_photograph_of_imagenet(tmp_path: Path) -> None:
    """The can opener is stored as 392 x 294 with orientation 6, and its published box refers to the stored pixels."""
    name = "n02951585_can_opener.JPEG"
    photo = published("imagenet_sample") / "n02951585" / name
    for split in ("train", "val"):
        (tmp_path / split / "n02951585").mkdir(parents=True)
        (tmp_path / split / "n02951585" / name).symlink_to(photo)
    (tmp_path / BOXES).mkdir(parents=True)
    write_box(tmp_path / BOXES / f"{photo.stem}.xml", (294, 392))
    with Image.open(photo) as image:
        assert image.size == (392, 294) and image.getexif()[0x0112] == 6
        stored = np.asarray(image.convert("RGB"))
    for data_set in ("imagenet", "imagenet1k"):
        sample = first(DataConfig(name=data_set, root=str(tmp_path)))
        assert np.array_equal(sample.image, stored) and sample.boxes is not None
        assert sample.boxes.tolist() == [[1, 2, 20, 21]]


def test_every_published_photograph_is_read_with_its_stored_size(tmp_path: Path) -> None:
    root = published("imagenet_sample")
    raw = load_split(DataConfig(name="imagenet_r", root=str(root)), "test", train=False, seed=0).raw
    assert len(raw) == 121
    for i in range(len(raw)):
        sample = raw.read(i)
        with Image.open(sample.path) as image:
            assert sample.image.shape == (image.height, image.width, 3)
