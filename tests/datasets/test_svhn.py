"""SVHN's layout: digits, splits, and one clear line for every error in its files."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from common.errors import UserError
from datasets import DATASETS, DataConfig
from datasets.readers.svhn import Svhn
from tests.datasets.published import write_svhn


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_svhn(tmp_path)
    return tmp_path


def read(root: Path, split: str = "test", **keys: Any) -> Svhn:
    return Svhn(DataConfig(name="svhn", root=str(root), **keys), split)


def test_splits_and_digits(root: Path) -> None:
    train, val, test = (read(root, split) for split in ("train", "val", "test"))
    assert Counter(train.labels) == dict.fromkeys(range(10), 2) and Counter(val.labels) == dict.fromkeys(range(10), 1)
    assert test.labels == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert sorted([*train.numbers, *val.numbers]) == list(range(30))
    assert read(root, "val", seed=1).numbers != val.numbers
    assert test.info.class_names == tuple("0123456789")
    assert (test.info.split_origin, val.info.split_origin[:8]) == ("published", "held out")
    assert isinstance(DATASETS["svhn"](DataConfig(root=str(root)), "test"), Svhn)


def test_a_record(root: Path) -> None:
    train = read(root, "train")
    published = loadmat(root / "train_32x32.mat")
    for index in (0, 7, len(train) - 1):
        sample, number = train.read(index), train.numbers[index]
        assert np.array_equal(sample.image, published["X"][..., number]) and sample.image.shape == (32, 32, 3)
        assert sample.label == published["y"][number, 0] % 10
        assert sample.path == f"{root / 'train_32x32.mat'}#{number}"


def save(root: Path, **arrays: np.ndarray) -> None:
    whole = {key: value for key, value in loadmat(root / "test_32x32.mat").items() if key in ("X", "y")}
    savemat(root / "test_32x32.mat", {**whole, **arrays})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 9), np.uint8)}, "X is 32 x 32 x 3 x 9 uint8, not 32 x 32 x 3 x 10 uint8"),
        ({"X": np.zeros((32, 32, 3, 10), np.int16)}, "X is 32 x 32 x 3 x 10 int16"),
        ({"y": np.arange(10)}, "y contains 0, not an integer from 1 to 10"),
        ({"y": np.full(10, 1.5)}, "y contains 1.5"),
        ({"y": np.array(["a"] * 10)}, "y is not numeric"),
    ],
)
def test_wrong_arrays(root: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    save(root, **arrays)
    with pytest.raises(UserError, match=message) as caught:
        read(root)
    assert str(root / "test_32x32.mat") in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_files(root: Path) -> None:
    path = root / "test_32x32.mat"
    whole = path.read_bytes()
    for content in (whole[:4000], b"", b"no MATLAB file at all" * 20):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"test_32x32.mat (\(|it has no array)"):
            read(root)
    savemat(path, {"X": np.zeros(3)})
    with pytest.raises(UserError, match="test_32x32.mat .it has no array y"):
        read(root)
    path.unlink()
    with pytest.raises(UserError, match="test_32x32.mat is missing"):
        read(root)
    with pytest.raises(UserError, match="data.val_fraction is 0"):
        read(root, "val", val_fraction=0)
