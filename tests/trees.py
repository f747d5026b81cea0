"""Data sets in their published layouts, as small as they can be. Every image has a colour of its own."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from common.seeds import stable_seed
from datasets.readers.imagenet9 import VARIANTS

WNIDS = ("n01440764", "n01498041", "n02102040", "n03000684")
"""Of ImageNet's classes: outputs 0 (tench), 6 (stingray), 217 (English springer), 491 (chain saw)."""
OUTPUTS = (0, 6, 217, 491)
NINE = (
    "00_dog", "01_bird", "02_wheeled vehicle", "03_reptile", "04_carnivore", "05_insect", "06_musical instrument",
    "07_primate", "08_fish",
)  # fmt: skip
IN9 = {0: 8, 1: 8, 6: 8, 217: 0, 9: 1, 10: 1, 817: 2, 33: 3, 340: 4, 300: 5, 402: 6, 370: 7}
"""A part of the published mapping."""


def save_image(path: Path, size: tuple[int, int] = (32, 32)) -> Path:
    """A plain image of (width, height), its colour a function of the last four names of its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, f"#{stable_seed(*path.parts[-4:]) % (1 << 24):06x}").save(path)
    return path


def save_on_its_side(path: Path, pixels: np.ndarray, kind: str = "JPEG") -> None:
    """An image with EXIF orientation 6: a viewer shows the stored pixels after a quarter turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, kind, exif=exif)


def write_box(path: Path, size_hw: tuple[int, int]) -> None:
    """A box file of ImageNet for an image of that size: one box from (1, 2) to (20, 21)."""
    height, width = size_hw
    corners = "<xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>21</ymax>"
    path.write_text(
        f"<annotation><size><width>{width}</width><height>{height}</height></size>"
        f"<object><name>x</name><bndbox>{corners}</bndbox></object></annotation>"
    )


def class_tree(root: Path, folders: Iterable[str], count: int, size: tuple[int, int] = (32, 32)) -> Path:
    """`count` images FOLDER_0.JPEG, ... in every folder."""
    for folder in folders:
        for i in range(count):
            save_image(root / folder / f"{Path(folder).name}_{i}.JPEG", size)
    return root


def imagenet_tree(root: Path) -> Path:
    """ImageNet with four of its classes: 8 training and 2 validation images of each."""
    for split, count in (("train", 8), ("val", 2)):
        class_tree(root / split, WNIDS, count)
    return root


def imagenet9_tree(root: Path, side: int = 32) -> Path:
    """All eight sets, one image of each class; masks of the objects: the left half; the mapping (partly)."""
    for label, folder in enumerate(NINE):
        name = f"n{label:08d}_00007"
        for variant in VARIANTS:
            file = f"fg_{name}_bg_n00000099_00001" if variant.startswith("mixed") else name
            save_image(root / variant / "val" / folder / f"{file}.JPEG", (side, side))
        mask = np.zeros((side, side), bool)
        mask[:, : side // 2] = True
        (root / "fg_mask" / "val" / folder).mkdir(parents=True)
        np.save(root / "fg_mask" / "val" / folder / f"{name}.npy", mask)
    mapping = {str(output): IN9.get(output, -1) for output in range(1000)}
    (root / "in_to_in9.json").write_text(json.dumps(mapping))
    return root


METASHIFT = {"train/cat": ("cat(sofa)", "cat(bed)"), "train/dog": ("dog(bench)", "dog(bike)"),
             "test/cat": ("cat(shelf)",), "test/dog": ("dog(shelf)",)}  # fmt: skip


def metashift_tree(root: Path, count: int = 5) -> Path:
    """`count` images of every class and context."""
    for folder, contexts in METASHIFT.items():
        class_tree(root / folder, contexts, count)
    return root
