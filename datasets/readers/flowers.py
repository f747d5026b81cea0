"""Oxford Flowers 102 (Nilsback and Zisserman 2008) in torchvision's layout, with object masks from segmim/.

    flowers-102/
        jpg/image_00001.jpg ...           the images
        imagelabels.mat, setid.mat        class of every image, from 1; image numbers of the three splits
        segmim/segmim_00001.jpg ...       optional: the images with the background in blue

Published splits: 1020 / 1020 / 6149 images.
"""

from pathlib import Path

import numpy as np
from scipy.ndimage import median_filter
from torchvision.datasets import Flowers102

from datasets.config import DataConfig
from datasets.formats.images import read_image
from datasets.formats.matlab import read_numbers
from datasets.readers.files import FileDataset, Record, check_split, find_root
from datasets.types import DatasetInfo

NAMES = tuple(name.strip() for name in Flowers102.classes)
SETS = {"train": "trnid", "val": "valid", "test": "tstid"}


class Flowers(FileDataset):
    """One split: "train", "val" or "test", as published. Raises UserError, naming the file, on anything wrong."""

    rotate = False

    def __init__(self, config: DataConfig, split: str) -> None:
        check_split("flowers102", split)
        base = find_root(config, "imagelabels.mat", ("flowers-102",))
        labels = read_numbers(base / "imagelabels.mat", "labels", highest=len(NAMES))
        chosen = read_numbers(base / "setid.mat", SETS[split], highest=len(labels))
        masks = base / "segmim" if (base / "segmim").is_dir() else None
        records = []
        for number in chosen:
            mask = masks and masks / f"segmim_{number:05d}.jpg"
            records.append(Record(base / "jpg" / f"image_{number:05d}.jpg", labels[number - 1] - 1, mask=mask))
        super().__init__(DatasetInfo("flowers102", NAMES), records, split)

    def object(self, path: Path) -> np.ndarray:
        """[H, W] bool: the pixels of an image of segmim/ that are not blue."""
        return not_blue(read_image(path, rotate=self.rotate))


def not_blue(image: np.ndarray) -> np.ndarray:
    """Image [H, W, 3] uint8 -> mask [H, W] bool: not (blue / (green + red + 1e-6) > 100), then a 5 x 5 median filter.

    The published code sums green and red in uint8, which wraps (128 + 128 = 0); here the sum is float64.
    """
    red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
    flower = ~(blue / (green + red + 1e-6) > 100)
    return median_filter(flower.astype(np.uint8), size=5, mode="nearest").astype(bool)
