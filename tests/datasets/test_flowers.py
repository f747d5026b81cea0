"""Flowers 102 in torchvision's layout: splits, labels, masks, and errors."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from common.errors import UserError
from datasets import DATASETS, DataConfig
from datasets.readers.flowers import Flowers, not_blue
from tests.datasets.published import write_flowers


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_flowers(tmp_path)


def read(base: Path, split: str = "train") -> Flowers:
    return Flowers(DataConfig(name="flowers102", root=str(base)), split)


def test_published_splits(base: Path) -> None:
    splits = {split: read(base, split) for split in ("train", "val", "test")}
    names = {split: [record.path.name for record in data.records] for split, data in splits.items()}
    assert names["train"] == [f"image_{number:05d}.jpg" for number in range(3, 25, 3)]
    assert names["val"][0] == "image_00001.jpg" and names["test"][0] == "image_00002.jpg"
    assert splits["train"].labels == [2, 5] * 4 and splits["val"].labels == [0, 3] * 4
    info = splits["val"].info
    assert info.num_classes == 102 and info.class_names[:2] == ("pink primrose", "hard-leaved pocket orchid")
    assert info.split_origin == "published"
    assert isinstance(DATASETS["flowers102"](DataConfig(root=str(base.parent)), "test"), Flowers)


def test_a_record_and_its_mask(base: Path) -> None:
    sample = read(base).read(1)
    truth = np.zeros((40, 48), bool)
    truth[8:24, 16:40] = True
    assert sample.mask is not None and sample.mask.dtype == bool
    assert sample.label == 5 and sample.image.shape == (40, 48, 3)
    assert (sample.mask != truth).mean() < 0.05  # JPEG blurs the border, the median rounds the corners


def test_masks_are_optional(tmp_path: Path) -> None:
    assert read(write_flowers(tmp_path, masks=False)).read(0).mask is None


def textbook(picture: np.ndarray) -> np.ndarray:
    """The rule pixel by pixel, then the middle of 25 sorted values; outside, the nearest pixel counts."""
    height, width, _ = picture.shape
    flower = np.ones((height, width))
    for y in range(height):
        for x in range(width):
            red, green, blue = (float(value) for value in picture[y, x])
            flower[y, x] = not blue / (green + red + 1e-6) > 100
    around = np.pad(flower, 2, mode="edge")
    windows = [[sorted(around[y : y + 5, x : x + 5].ravel())[12] for x in range(width)] for y in range(height)]
    return np.array(windows) > 0


def test_not_blue_is_the_textbook_rule() -> None:
    rng = np.random.default_rng(0)
    picture = rng.choice(np.array([0, 1, 2, 128], np.uint8), (24, 30, 3), p=[0.7, 0.1, 0.1, 0.1])
    picture[..., 2] = rng.choice(np.array([99, 101, 199, 254, 255], np.uint8), (24, 30))
    assert 0.05 < textbook(picture).mean() < 0.95
    assert np.array_equal(not_blue(picture), textbook(picture))


def test_red_and_green_do_not_wrap() -> None:
    """128 + 128 is 0 in eight bits, which would make a light violet blue."""
    assert not_blue(np.full((8, 8, 3), (128, 128, 255), np.uint8)).all()
    assert not not_blue(np.full((8, 8, 3), (0, 0, 254), np.uint8)).any()


def test_what_can_be_wrong(base: Path) -> None:
    savemat(base / "setid.mat", {"trnid": [1, 25], "valid": [1], "tstid": [1]})
    with pytest.raises(UserError, match="setid.mat: array trnid contains 25, not an integer from 1 to 24"):
        read(base)
    savemat(base / "setid.mat", {"trnid": [1, 2]})
    with pytest.raises(UserError, match="setid.mat .it has no array tstid"):
        read(base, "test")
    Image.new("RGB", (5, 5)).save(base / "segmim" / "segmim_00001.jpg")
    with pytest.raises(UserError, match="segmim_00001.jpg is 5 x 5 pixels"):
        read(base).read(0)
    (base / "segmim" / "segmim_00002.jpg").unlink()
    with pytest.raises(UserError, match="segmim_00002.jpg is missing"):
        read(base)
    (base / "jpg" / "image_00001.jpg").unlink()
    with pytest.raises(UserError, match="image_00001.jpg is missing"):
        read(base)
    savemat(base / "imagelabels.mat", {"labels": [103]})
    with pytest.raises(UserError, match="imagelabels.mat: array labels contains 103"):
        read(base)
    with pytest.raises(UserError, match=f"neither {base.parent / 'x'} nor .* contains imagelabels.mat"):
        (base.parent / "x").mkdir()
        read(base.parent / "x")
