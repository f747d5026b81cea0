"""Loaders that leave the normalisation to the device: fewer bytes, the same values to the last bit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets import DataConfig, RawSample, Sample, Split, build_transform, eval_loader, train_loader
from datasets.config import IMAGENET_MEAN, IMAGENET_STD, TimmConfig
from datasets.loader import BatchLoader
from datasets.normalise import constants_of, normalise
from datasets.split import Key
from datasets.transforms import EvalTransform
from tests.datasets.test_loader import Images

CPU = torch.device("cpu")
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CONFIG = DataConfig(image_size=8, mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1))
ERASING = TimmConfig(re_prob=1.0, re_mode="pixel")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
def test_every_value_is_rounded_after_each_step(device: str) -> None:
    values = np.arange(256, dtype=np.uint8)
    mean, std = np.float32(IMAGENET_MEAN)[:, None, None], np.float32(IMAGENET_STD)[:, None, None]
    expected = torch.from_numpy((np.broadcast_to(values, (3, 2, 256)) / np.float32(255) - mean) / std)
    pixels = torch.from_numpy(values).to(device).expand(3, 2, 256)
    constants = constants_of((IMAGENET_MEAN, IMAGENET_STD), torch.device(device))
    assert torch.equal(normalise(pixels, constants).cpu(), expected)
    batch = normalise(pixels.expand(4, 3, 2, 256), constants).cpu()
    assert batch.dtype == torch.float32 and all(torch.equal(image, expected) for image in batch)
    with pytest.raises(TypeError, match="uint8, not torch.float32"):
        normalise(pixels / 255, constants)


class Darker(EvalTransform):
    """A user's transform: a network input divided by two."""

    def __call__(self, raw: RawSample, seed: int = 0) -> Sample:
        sample = super().__call__(raw, seed)
        return replace(sample, image=sample.image / 2)


class DarkerSplit(Split):
    """A user's split: the same."""

    def __getitem__(self, key: Key | int) -> Sample:
        sample = super().__getitem__(key)
        return replace(sample, image=sample.image / 2)


def handed_over(loader: BatchLoader) -> torch.Tensor:
    """The images of the first batch as the workers give them."""
    image: torch.Tensor = next(DataLoader.__iter__(loader)).image
    return image


def split_of(kind: type[Split] = Split, **keys: Any) -> Split:
    return kind(Images(8), build_transform(replace(CONFIG, **keys), train=True), train=True, seed=0)


@pytest.mark.parametrize(
    ("split", "bits"),
    [
        *[(split_of(augmentation=name), 8) for name in ("none", "flip", "cub_original", "atcon_voc", "timm")],
        (split_of(augmentation="timm", timm=ERASING), 32),
        (Split(Images(8), Darker(CONFIG), train=True, seed=0), 32),
        (split_of(DarkerSplit, augmentation="flip"), 32),
    ],
    ids=["none", "flip", "cub_original", "atcon_voc", "timm", "random erasing", "own transform", "own split"],
)
def test_batches_are_the_same_with_and_without_a_device(split: Split, bits: int) -> None:
    options: dict[str, Any] = {"batch_size": 4, "seed": 0, "epoch": 1, "workers": 0}
    plain, moved = train_loader(split, **options), train_loader(split, **options, device=CPU)
    for keys, a, b in zip(plain.batches, plain, moved, strict=True):
        assert a.image.dtype == b.image.dtype == torch.float32 and a.paths == b.paths
        assert torch.equal(a.image, b.image) and torch.equal(a.image, torch.stack([split[key].image for key in keys]))
    assert (handed_over(plain).element_size(), handed_over(moved).element_size()) == (4, bits // 8)


def test_a_loading_process_hands_over_bytes() -> None:
    split = split_of(augmentation="none")
    plain, moved = (
        eval_loader(split, batch_size=8, workers=workers, device=CPU if workers else None) for workers in (0, 1)
    )
    assert handed_over(moved).dtype == torch.uint8
    assert torch.equal(next(iter(plain)).image, next(iter(moved)).image)
