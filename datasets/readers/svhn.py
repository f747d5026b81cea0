"""SVHN, house numbers cropped to one digit, 32 x 32 pixels (Netzer et al. 2011): train_32x32.mat, test_32x32.mat.

73257 training and 26032 test images; the extra set is not read. No validation split is published: `val` is held out
of training. The published label 10 is the digit 0; here a label is the digit. A split is held in memory.
"""

import numpy as np

from common.errors import UserError
from datasets.config import DataConfig
from datasets.formats.matlab import read_mat, read_numbers
from datasets.holdout import check_fraction, choose, split_origin
from datasets.readers.files import check_split, open_root
from datasets.types import DatasetInfo, RawSample

DIGITS = tuple("0123456789")


class Svhn:
    """One split: "train", "val" or "test". Raises UserError, naming the file, on anything missing or wrong."""

    groups = None

    def __init__(self, config: DataConfig, split: str) -> None:
        check_split("svhn", split)
        check_fraction("svhn", split, config)
        root = open_root(config, "train_32x32.mat and test_32x32.mat")
        self.path = root / f"{'test' if split == 'test' else 'train'}_32x32.mat"
        digits = [number % 10 for number in read_numbers(self.path, "y", highest=10)]
        images = read_mat(self.path, "X")
        if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(digits)) or not digits:
            shape = " x ".join(map(str, images.shape))
            raise UserError(
                f"{self.path}: array X is {shape} {images.dtype}, not 32 x 32 x 3 x {max(1, len(digits))} uint8; "
                "restore the file as published"
            )
        self.numbers = choose(digits, split, config)
        if not self.numbers:
            raise UserError(f"the {split} split of {self.path} is empty; check data.val_fraction")
        self.labels = [digits[number] for number in self.numbers]
        # MATLAB has the image number last: [32, 32, 3, N] -> [N, 32, 32, 3].
        self.images = np.ascontiguousarray(images.transpose(3, 0, 1, 2)[self.numbers])
        self.info = DatasetInfo("svhn", DIGITS, split_origin=split_origin(split, config))

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> RawSample:
        """Image and label; the path is "FILE#number", counted from 0."""
        return RawSample(self.images[index], self.labels[index], f"{self.path}#{self.numbers[index]}")
