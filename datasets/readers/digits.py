"""scikit-learn's handwritten digits, 8 x 8 pixels with 17 grey levels (Alpaydin and Kaynak 1998).

1797 images, no published splits. `test` is a fixed random 40 % of every digit; `val` is held out of the rest by
data.val_fraction and data.seed.
"""

import numpy as np
from sklearn.datasets import load_digits

from common.seeds import stable_seed
from datasets.config import DataConfig
from datasets.holdout import check_fraction, choose
from datasets.readers.files import check_split
from datasets.types import DatasetInfo, RawSample

TEST_FRACTION = 0.4
ORIGIN = "none published; test is a fixed random 40 % of every digit, val is data.val_fraction of the rest"


class Digits:
    """One split: "train", "val" or "test"."""

    groups = None

    def __init__(self, config: DataConfig, split: str) -> None:
        """Raises UserError for an unknown split, or a data.val_fraction that leaves one empty."""
        check_split("digits", split)
        check_fraction("digits", split, config)
        images, digits = load_digits(return_X_y=True)
        tested = _test_numbers(digits)
        published = [number for number in range(len(digits)) if (number in tested) == (split == "test")]
        self.numbers = [published[i] for i in choose(digits[published].tolist(), split, config)]
        self.labels: list[int] = digits[self.numbers].tolist()
        # Grey levels 0..16 -> 0..255, [N, 8, 8, 3].
        grey = (images[self.numbers] * (255 / 16)).round().astype(np.uint8).reshape(-1, 8, 8, 1)
        self.images = grey.repeat(3, axis=3)
        self.info = DatasetInfo("digits", tuple("0123456789"), split_origin=ORIGIN)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> RawSample:
        """Image [8, 8, 3] and label."""
        return RawSample(self.images[index], self.labels[index], f"digits/{self.numbers[index]:04d}")


def _test_numbers(digits: np.ndarray) -> set[int]:
    random = np.random.default_rng(stable_seed("digits", "test"))
    chosen: set[int] = set()
    for digit in range(10):
        numbers = random.permutation(np.flatnonzero(digits == digit))
        chosen |= set(numbers[: round(len(numbers) * TEST_FRACTION)].tolist())
    return chosen
