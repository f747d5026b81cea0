import numpy as np
import pytest
from sklearn.datasets import load_digits

from common.errors import UserError
from datasets import DataConfig, load_split
from datasets.readers.digits import Digits

CONFIG = DataConfig(name="digits", image_size=32, augmentation="none")


def test_splits_share_nothing_and_miss_nothing() -> None:
    splits = {name: Digits(CONFIG, name) for name in ("train", "val", "test")}
    numbers = [number for split in splits.values() for number in split.numbers]
    assert sorted(numbers) == list(range(1797))
    assert {name: len(split) for name, split in splits.items()} == {"train": 969, "val": 109, "test": 719}
    assert splits["test"].numbers == Digits(DataConfig(name="digits", seed=5), "test").numbers
    assert splits["val"].numbers != Digits(DataConfig(name="digits", seed=5), "val").numbers


def test_a_record_is_scikit_learns() -> None:
    images, digits = load_digits(return_X_y=True)
    split = Digits(CONFIG, "val")
    record = split.read(3)
    number = int(record.path.removeprefix("digits/"))
    assert record.label == split.labels[3] == digits[number]
    assert record.image.shape == (8, 8, 3) and record.image.dtype == np.uint8
    assert np.abs(record.image / 255 - images[number].reshape(8, 8, 1) / 16).max() <= 0.5 / 255
    assert load_split(CONFIG, "val", train=False, seed=0)[3].image.shape == (3, 32, 32)


def test_what_cannot_be_had() -> None:
    with pytest.raises(UserError, match="no split 'extra'"):
        Digits(CONFIG, "extra")
    with pytest.raises(UserError, match="data.val_fraction is 1"):
        Digits(DataConfig(name="digits", val_fraction=1), "train")
