"""The certificate through resizing: exact with a margin, whatever the geometry; without one it measures what leaks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from datasets.config import DataConfig
from datasets.split import Split
from datasets.transforms import EvalTransform
from datasets.types import Batch, DatasetInfo, RawSample, collate
from engine.explanation.masked_classifier import MaskedClassifier
from engine.explanation.through_resize import ThroughResize, shown_pixels
from engine.run.memory import AutoBatchSize
from models.selection import Selection
from tests.metrics.test_faithfulness import two_stage
from tests.models.small import random_mask

MODEL = two_stage()
INFO = DatasetInfo(name="noise", class_names=tuple("abcde"))


@dataclass
class Noise:
    """Four images of noise, of different sizes."""

    sizes: Sequence[tuple[int, int]]
    info = INFO
    labels = (0, 1, 2, 3)
    groups = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> RawSample:
        height, width = self.sizes[index % len(self.sizes)]
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
        return RawSample(pixels, index, str(index))


SIZES = {"larger": ((70, 90), (91, 64)), "smaller": ((20, 24), (19, 31)), "the input's": ((32, 32),)}
VIEWS: tuple[dict[str, object], ...] = (
    {"evaluation": "center_crop", "interpolation": "bilinear", "crop": 1.0},
    {"evaluation": "imagenet", "interpolation": "bicubic", "crop": 0.875},
    {"evaluation": "squash", "interpolation": "bicubic", "crop": 0.9},
)


def measured(sizes: str, view: dict[str, object], mask: torch.Tensor, pieces: Sequence[int] = (4,)) -> dict[str, float]:
    data = DataConfig(image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3, **view)  # type: ignore[arg-type]
    split = Split(Noise(SIZES[sizes]), EvalTransform(data), train=False, seed=0)
    check = ThroughResize(split, MaskedClassifier(MODEL, data, data, AutoBatchSize(4, print)))
    for rows in torch.arange(4).split(list(pieces)):
        batch: Batch = collate([split[int(i)] for i in rows])
        check.update(batch, Selection(mask[rows]))
    return check.compute()


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: f"{view['evaluation']}, {view['interpolation']}")
@pytest.mark.parametrize("sizes", SIZES)
def test_a_margin_makes_it_exact(sizes: str, view: dict[str, object]) -> None:
    found = measured(sizes, view, random_mask(4, 16).view(4, 4, 4))
    assert (found["through_resize_margin/max_logit_change"], found["through_resize_margin/moved_pixels"]) == (0, 0)
    assert found["through_resize_margin/holds"] == 1
    if sizes == "the input's" and view["crop"] == 1:  # not resized
        assert found["through_resize/holds"] == 1 and found["through_resize_margin/pixels"] == 0
    else:
        assert found["through_resize/holds"] == 0 and 0 < found["through_resize/moved_pixels"] < 1
        assert found["through_resize/max_logit_change"] > 0 and found["through_resize_margin/pixels"] >= 2


def test_batches_do_not_matter_and_an_empty_mask_is_never_certified() -> None:
    mask = random_mask(4, 16).view(4, 4, 4)
    whole, parts = (measured("larger", VIEWS[0], mask, pieces) for pieces in ((4,), (1, 3)))
    assert whole == pytest.approx(parts, rel=1e-5)
    mask[0] = False
    assert measured("larger", VIEWS[0], mask)["through_resize_margin/holds"] == 3 / 4


def test_which_pixels_of_a_file_are_shown() -> None:
    """A file of 64 x 128 is halved and its middle cut out: input column 0 is file columns 32 and 33."""
    data = DataConfig(image_size=32, interpolation="bilinear", evaluation="center_crop", crop=1.0)
    raw = RawSample(np.zeros((64, 128, 3), np.uint8), 0, "x")
    visible = np.zeros((32, 32), bool)
    visible[8:16, :8] = True
    shown, wider, margin = shown_pixels(visible, raw, data)
    expected = np.zeros((64, 128), bool)
    expected[16:32, 32:48] = True
    assert np.array_equal(shown, expected) and margin == 3
    expected[13:35, 29:51] = True
    assert np.array_equal(wider, expected)
