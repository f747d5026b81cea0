"""Masks from a folder instead of the data set's own: how they are found, and errors."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from datasets import DataConfig, load_split
from datasets.readers.mask_folder import find_masks

EDGE = 5
"""Columns at the left edge, the object in the test's masks."""


def left_edge(picture: Path, mask: Path) -> None:
    """A mask of the image's size, written to `mask`."""
    with Image.open(picture) as image:
        pixels = np.zeros(image.size[::-1], np.uint8)
    pixels[:, :EDGE] = 255
    mask.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(mask)


@pytest.fixture
def masks(layout: Path, tmp_path: Path) -> Path:
    """A folder with the left edge as mask of every image of CUB and Waterbirds, under the same relative paths."""
    base = layout / "CUB_200_2011"
    for top in ("images", "waterbird_complete95_forest2water2"):
        for picture in (base / top).rglob("*.jpg"):
            left_edge(picture, (tmp_path / "masks" / picture.relative_to(base / top)).with_suffix(".png"))
    return tmp_path / "masks"


def config_of(name: str, layout: Path, masks: Path | str) -> DataConfig:
    return DataConfig(name=name, root=str(layout), mask_folder=str(masks), image_size=48, augmentation="none")


@pytest.mark.parametrize("name", ["cub", "waterbirds"])
def test_the_folder_s_masks_replace_the_data_set_s(name: str, layout: Path, masks: Path) -> None:
    for part in ("train", "val", "test"):
        config = config_of(name, layout, masks)
        split = load_split(config, part, train=False, seed=0)
        own = load_split(replace(config, mask_folder=""), part, train=False, seed=0)
        assert split.labels == own.labels and len(split) == len(own) and split.raw.groups == own.raw.groups
        for i in (0, len(split) - 1):
            record, other = split.raw.read(i), own.raw.read(i)
            assert record.mask.sum() == EDGE * 48 and record.mask[:, :EDGE].all()
            assert (record.path, record.label, record.group) == (other.path, other.label, other.group)
            assert not np.array_equal(record.mask, other.mask) and np.array_equal(record.image, other.image)


def test_a_flat_folder_and_one_with_more_of_the_path(tmp_path: Path) -> None:
    images = [tmp_path / "data" / "train" / name for name in ("cat/a.jpg", "dog/b.jpeg")]
    for top, depth in (("flat", 1), ("classes", 2), ("splits", 3)):
        for picture in images:
            mask = (tmp_path / top).joinpath(*picture.parts[-depth:]).with_suffix(".png")
            mask.parent.mkdir(parents=True, exist_ok=True)
            mask.touch()
        found = find_masks(images, tmp_path / top)
        assert found == [(tmp_path / top).joinpath(*p.parts[-depth:]).with_suffix(".png") for p in images]


def test_a_image_is_never_its_own_mask(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "masks").mkdir()
    with pytest.raises(UserError, match=r"data\.mask_folder: .*masks has no a\.png"):
        find_masks([tmp_path / "a.png"], tmp_path / "masks")


def test_two_images_may_not_share_a_mask(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=r"cat/a\.jpg and dog/a\.jpg have the same mask"):
        find_masks([Path("cat/a.jpg"), Path("dog/a.jpg")], tmp_path)


def test_what_is_missing_or_wrong_is_named(layout: Path, masks: Path) -> None:
    def loaded(folder: Path | str = masks, name: str = "waterbirds"):
        return load_split(config_of(name, layout, folder), "train", train=False, seed=0)

    with pytest.raises(UserError, match=r"data\.mask_folder: no folder nowhere"):
        loaded("nowhere")
    with pytest.raises(UserError, match=r"data\.mask_folder: data set 'synthetic' has no image files"):
        loaded(masks, "synthetic")
    last = Path(loaded().raw.masks[-1])
    Image.fromarray(np.zeros((7, 9), np.uint8)).save(last)
    with pytest.raises(UserError, match=rf"{last.name} is 9 x 7 pixels but .* is 48 x 48"):
        loaded().raw.read(len(loaded()) - 1)
    last.unlink()
    with pytest.raises(UserError, match=rf"{last.name} is missing; every image needs a mask"):
        loaded()
    shutil.rmtree(masks)
    masks.mkdir()
    with pytest.raises(UserError, match=r"data\.mask_folder: .* has no .*\.png, directly or below the folders of"):
        loaded()
