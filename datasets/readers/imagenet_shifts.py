"""Test sets for models of ImageNet's 1000 classes: ImageNet-A, ImageNet-R and ImageNet-V2. No training splits.

data.root is the folder of the class folders. A and R (Hendrycks et al. 2021) have images of 200 of the classes; as
published, the prediction is the highest of those 200 outputs. V2 (Recht et al. 2019) has all 1000 classes.
"""

from collections.abc import Mapping
from pathlib import Path

from common.errors import UserError
from datasets.config import DataConfig
from datasets.formats.folders import class_folders, class_images
from datasets.readers.files import FileDataset, Record, check_split, open_root
from datasets.readers.synsets import class_list, imagenet_classes, known_folders
from datasets.types import DatasetInfo


class ImageNetSubset(FileDataset):
    """ImageNet-A or -R: folders named by WordNet ids. The existing folders, sorted, are the classes 0..C-1.

    Raises UserError, naming file or folder, on anything missing or wrong.
    """

    name: str
    rotate = False

    def __init__(self, config: DataConfig, split: str) -> None:
        check_test_only(self.name, split)
        root = open_root(config, "one folder per WordNet id")
        folders = class_folders(root)
        known = known_folders(imagenet_classes(class_list(config)), folders, root)
        labels = {folder: label for label, folder in enumerate(folders)}
        class_of_output = tuple(labels.get(folder, -1) for folder in known)
        info = DatasetInfo(self.name, tuple(known[folder] for folder in folders), class_of_output=class_of_output)
        super().__init__(info, folder_records(root, labels), split)


class ImageNetA(ImageNetSubset):
    """Natural images that ResNet-50 gets wrong."""

    name = "imagenet_a"


class ImageNetR(ImageNetSubset):
    """Renditions: art, toys, sculptures, ..."""

    name = "imagenet_r"


class ImageNetV2(FileDataset):
    """ImageNet-V2: folders 0 to 999, named by class index (sorted as text they are in another order).

    Raises UserError, naming file or folder, on anything missing or wrong.
    """

    rotate = False

    def __init__(self, config: DataConfig, split: str) -> None:
        check_test_only("imagenet_v2", split)
        root = open_root(config, "one folder per class, 0 to 999")
        classes = imagenet_classes(class_list(config))
        labels = {folder: _number(root / folder, len(classes)) for folder in class_folders(root)}
        info = DatasetInfo("imagenet_v2", tuple(classes.values()), class_keys=tuple(classes))
        super().__init__(info, folder_records(root, labels), split)


def check_test_only(name: str, split: str) -> None:
    """Raise a UserError on any split but "test"."""
    check_split(name, split)
    if split != "test":
        raise UserError(f"data set {name!r} has only a test split; train on imagenet1k and evaluate that run on it")


def folder_records(root: Path, labels: Mapping[str, int]) -> list[Record]:
    """All images in the folders of `root`, sorted by label, then by name."""
    images = class_images(root, sorted(labels, key=labels.__getitem__))
    return [Record(root / folder / name, labels[folder]) for folder, names in images.items() for name in names]


def _number(folder: Path, count: int) -> int:
    if not (folder.name.isdecimal() and int(folder.name) < count):
        raise UserError(f"{folder}: folders of ImageNet-V2 are numbered 0 to {count - 1}; move it away")
    return int(folder.name)
