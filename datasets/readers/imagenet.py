"""ImageNet-1k (ILSVRC 2012), or any tree train/<class>/ and val/<class>/ with one folder per class.

`test` is the published validation folder, val/. `val` is held out of train/, class by class, by data.val_fraction and
data.seed. At construction only folders are listed; images and boxes are read on demand.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from datasets.config import DataConfig
from datasets.formats.box_xml import read_boxes
from datasets.formats.folders import class_folders, class_images
from datasets.formats.images import read_image
from datasets.formats.tables import read_spaced
from datasets.holdout import check_fraction, hold_out, split_origin
from datasets.image_cache import stored_image
from datasets.readers.files import check_files, check_split, open_root
from datasets.readers.synsets import class_list, imagenet_classes, known_folders
from datasets.types import DatasetInfo, RawSample

CLASS_NAMES = "LOC_synset_mapping.txt"
IMAGES, BOXES = "Data/CLS-LOC", "Annotations/CLS-LOC/val"
WNID = re.compile(r"n\d{8}")


class ImageNet:
    """One split: "train", "val" or "test". Labels are 0..C-1 in the sorted order of the class folders' names.

    Where there is a list of classes by folder name (`read_classes`), it defines the labels, so that a tree with a few
    classes keeps their labels among all 1000. Raises UserError, naming file or folder, on anything missing or wrong.
    """

    name = "imagenet"
    groups = None

    def __init__(self, config: DataConfig, split: str) -> None:
        check_split(self.name, split)
        check_fraction(self.name, split, config)
        root = open_root(config, "train/ and val/")
        archive = archive_folder(root)
        tree = root if archive is None else archive / IMAGES
        self.folder = tree / ("val" if split == "test" else "train")
        folders = class_folders(self.folder)
        refuse_third_split(tree, "test", folders, f"data.name={self.name} reports val/ as the test")
        other = tree / ("train" if split == "test" else "val")
        if other.is_dir():
            same_classes(self.folder, folders, other, class_folders(other))
        classes = self.classes(_names_file(config, root), folders)
        self.folders = tuple(classes)
        self.info = DatasetInfo(
            self.name, tuple(classes.values()), class_keys=self.folders, split_origin=split_origin(split, config)
        )
        images = class_images(self.folder, folders)
        self.labels: list[int] = []
        self.names: list[str] = []  # file names only: a million paths would take a gigabyte
        for label, folder in enumerate(self.folders):
            names = images.get(folder, [])
            held_out = set() if split == "test" else hold_out(names, label, config)
            chosen = [name for name in names if split == "test" or (name in held_out) == (split == "val")]
            self.names += chosen
            self.labels += [label] * len(chosen)
        if not self.names:
            raise UserError(f"the {split} split of {root} is empty; raise data.val_fraction or add images")
        boxes = _box_folder(config, archive or root)
        self.boxes = boxes if split == "test" else None
        # Of this class only a tree of your own is rotated: ImageNet's images, and boxes, are as stored.
        self.rotate = self.name == "imagenet" and boxes is None and not all(map(WNID.fullmatch, folders))
        if self.boxes:
            check_files(map(self._xml, self.names), "unpack the box files again or correct data.box_folder")

    def __len__(self) -> int:
        return len(self.names)

    def files(self) -> list[Path]:
        """Every file that `read` opens: images, and boxes where there are some."""
        images = [self._image(index) for index in range(len(self))]
        return images + (list(map(self._xml, self.names)) if self.boxes else [])

    def read(self, index: int) -> RawSample:
        """Image, label and, where the data set has them, boxes. Raises UserError for an unreadable file."""
        path = self._image(index)
        image = stored_image(path, f"read_image {self.rotate}", lambda: read_image(path, rotate=self.rotate))
        boxes = read_boxes(self._xml(path.name), image.shape[:2]) if self.boxes else None
        return RawSample(image, self.labels[index], str(path), boxes=boxes)

    def classes(self, names: Path | None, folders: Sequence[str]) -> dict[str, str]:
        """Class folder -> class name, in the order of the labels; `names`: the list of classes, if any.

        Without a list, ImageNet's names where all folders are its WordNet ids (Imagenette).
        """
        if (
            names is None
            and all(map(WNID.fullmatch, folders))
            and set(folders) <= (known := imagenet_classes(None)).keys()
        ):
            return {folder: known[folder] for folder in folders}
        return read_classes(names, folders)

    def _image(self, index: int) -> Path:
        return self.folder / self.folders[self.labels[index]] / self.names[index]

    def _xml(self, name: str) -> Path:
        assert self.boxes is not None
        return self.boxes / f"{Path(name).stem}.xml"


class ImageNet1k(ImageNet):
    """The same with the labels of all 1000 classes, even if the tree has fewer, to fit pretrained models."""

    name = "imagenet1k"

    def classes(self, names: Path | None, folders: Sequence[str]) -> dict[str, str]:
        """The classes of the list, or the published ones. Raises UserError for a folder that is not a class."""
        return known_folders(imagenet_classes(names), folders, self.folder)


def archive_folder(root: Path) -> Path | None:
    """The folder with the published archive's `Data/CLS-LOC` and `Annotations`: `root`, or ILSVRC/ in it; None if there
    is none, or if `root` has train/ or val/ itself.
    """
    if any((root / split).is_dir() for split in ("train", "val")):
        return None
    return next((folder for folder in (root, root / "ILSVRC") if (folder / IMAGES).is_dir()), None)


def refuse_third_split(root: Path, name: str, folders: Sequence[str], reading: str) -> None:
    """Raise UserError if the folder `name`, which the data set never opens, has any of the class folders.

    `reading`: what it does instead.
    """
    if any((root / name / folder).is_dir() for folder in folders):
        raise UserError(
            f"{root} has {name}/ with class folders, but {reading}; use data.name=folder, which uses {name}/ as the "
            f"{name} split, or move it away"
        )


def same_classes(first: Path, first_names: Sequence[str], second: Path, second_names: Sequence[str]) -> None:
    """Raise UserError unless train/ and val/ have the same class folders, and so the same labels."""
    a, b = set(first_names), set(second_names)
    for here, there, lacking in ((first, second, a - b), (second, first, b - a)):
        if lacking:
            more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
            raise UserError(f"{there} has no class folder {min(lacking)}{more}, which {here} has; make them the same")


def read_classes(path: Path | None, folders: Sequence[str]) -> dict[str, str]:
    """Class folder -> class name, in the order of the labels.

    The file has either lines "folder name" for at least the existing folders (then all folders it names, sorted, are
    the classes), or one class name per line, in the sorted order of the folders. Without a file, a class is named by
    its folder.
    """
    if path is None:
        return {folder: folder for folder in folders}
    lines = [row.text("line") for row in read_spaced(path, ("line",))]
    by_folder: dict[str, str] = {}
    for line in lines:
        folder, *name = line.split(maxsplit=1)
        by_folder.setdefault(folder, name[0] if name else folder)
    if by_folder.keys() >= set(folders):
        return dict(sorted(by_folder.items()))
    if len(lines) == len(folders):
        return dict(zip(folders, lines, strict=True))
    lacking = min(set(folders) - by_folder.keys())
    raise UserError(
        f"{path} has {len(lines)} lines for {len(folders)} class folders, and none begins with {lacking}; "
        "give one name per folder in sorted order, or lines of folder and name"
    )


def _names_file(config: DataConfig, root: Path) -> Path | None:
    published = root / CLASS_NAMES
    return class_list(config) or (published if published.exists() else None)


def _box_folder(config: DataConfig, root: Path) -> Path | None:
    if not config.box_folder:
        return root / BOXES if (root / BOXES).is_dir() else None
    folder = Path(config.box_folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.box_folder: no folder {folder}; unpack the box files there or correct the path")
    return folder
