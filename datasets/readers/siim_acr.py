"""SIIM-ACR pneumothorax: chest radiographs with chest tubes as a shortcut, as prepare_siim_acr.py writes them.

Published layout: train_set/, full_test_set/, robust_test_set/ and non_robust_test_set/, each with the folders 0 and 1
(1 = pneumothorax) of DICOM files, and all_masks/<image id>.png.
"""

from pathlib import Path

import numpy as np

from common.errors import UserError
from datasets.config import DataConfig
from datasets.formats.dicom import read_dicom
from datasets.holdout import check_fraction, choose, split_origin
from datasets.readers.files import FileDataset, Record, check_split, open_root
from datasets.types import DatasetInfo

TRAIN, MASKS = "train_set", "all_masks"
TESTS = {"full": "full_test_set", "robust": "robust_test_set", "non_robust": "non_robust_test_set"}
CLASSES = ("no pneumothorax", "pneumothorax")
GROUPS = tuple(f"{finding}, {tube}" for finding in CLASSES for tube in ("no tube", "tube"))
"""A group's id is 2 * label + tube."""
MINORITY = (1, 2)


def folders_of(label: int, tube: int) -> tuple[str, str]:
    """The two test sets of an image with a known tube. Non-robust: the tube agrees with the label, a shortcut."""
    return TESTS["full"], TESTS["non_robust" if label == tube else "robust"]


class SiimAcr(FileDataset):
    """One split. "test" is the test set data.variant, with groups; "val" is held out of train_set, class by class.

    Raises UserError, naming file or folder, on anything missing or wrong.
    """

    rotate = False

    def __init__(self, config: DataConfig, split: str) -> None:
        check_split("siim_acr", split)
        root = open_root(config, f"{TRAIN}/ and {TESTS['full']}/, as prepare_siim_acr.py writes them")
        check_fraction("siim_acr", split, config)
        tubes: dict[Path, int] = {}
        if split == "test":
            images = labelled(root / TESTS[chosen_variant(config)])
            tubes = known_tubes(root, chosen_variant(config), images)
        else:
            labels = labelled(root / TRAIN)
            paths = list(labels)
            images = {paths[i]: labels[paths[i]] for i in choose(list(labels.values()), split, config)}
        has_masks = (root / MASKS).is_dir()
        records = []
        for path, label in images.items():
            mask = root / MASKS / f"{path.stem}.png" if has_masks else None
            records.append(Record(path, label, 2 * label + tubes[path] if tubes else None, mask))
        info = DatasetInfo("siim_acr", CLASSES, split_origin=split_origin(split, config))
        if tubes:
            info = DatasetInfo("siim_acr", CLASSES, GROUPS, MINORITY)
        super().__init__(info, records, split)

    def pixels(self, path: Path) -> np.ndarray:
        """[H, W, 3] uint8: grey in three channels."""
        return np.repeat(read_dicom(path)[..., None], 3, axis=2)


def chosen_variant(config: DataConfig) -> str:
    """data.variant, where "original" (the default) means "full". Raises UserError for other data sets' variants."""
    variant = "full" if config.variant == "original" else config.variant
    if variant not in TESTS:
        raise UserError(f"data.variant is {variant}; siim_acr has the test sets {', '.join(TESTS)}")
    return variant


def labelled(folder: Path) -> dict[Path, int]:
    """DICOM file -> label (the name of its folder), sorted by path."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; run prepare_siim_acr.py, or correct data.root")
    labels = {}
    for path in sorted(folder.rglob("*.dcm")):
        if path.parent.name not in ("0", "1"):
            raise UserError(f"{path} is not in a folder 0 or 1, its label; run prepare_siim_acr.py again")
        labels[path] = int(path.parent.name)
    return labels


def known_tubes(root: Path, variant: str, images: dict[Path, int]) -> dict[Path, int]:
    """Test image -> 1 if a tube is visible, by the test sets it is in; empty unless known for all images."""
    if variant != "full":
        return {path: label if variant == "non_robust" else 1 - label for path, label in images.items()}
    tubes = {}
    for path, label in images.items():
        homes = [tube for tube in (0, 1) if (root / folders_of(label, tube)[1] / str(label) / path.name).is_file()]
        if len(homes) != 1:
            return {}
        tubes[path] = homes[0]
    return tubes
