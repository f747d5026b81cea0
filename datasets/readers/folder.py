"""A user's own images: a tree with one folder per class, or any files listed in an index file.

    data.root/
        train/<class>/**  test/<class>/**  val/<class>/** (optional)
    or
        index.csv      path, label, split; optional: group or place, mask, box

Names of splits are those of `SPLIT_NAMES`. Without validation images `val` is held out of the training images, class by
class, by data.val_fraction and data.seed. Without test images `val` is the test. One line says which split is what.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import UserError
from datasets.config import DataConfig
from datasets.formats.folders import class_folders, class_images
from datasets.formats.notices import say_once
from datasets.holdout import check_fraction, choose
from datasets.readers.files import FileDataset, Record, check_split, open_root
from datasets.readers.imagenet import read_classes
from datasets.readers.own_index import SPLIT_NAMES, Entry, find_index, read_index
from datasets.readers.synsets import class_list
from datasets.types import SPLITS, DatasetInfo


class Folder(FileDataset):
    """One split: "train", "val" or "test". Labels are 0..C-1 in the sorted order of the classes of the training images.

    Raises UserError, naming file, line or folder, on anything missing or wrong.
    """

    def __init__(self, config: DataConfig, split: str) -> None:
        check_split("folder", split)
        root = open_root(config, "train/, test/ and perhaps val/, or index.csv")
        index = find_index(config, root)
        entries, where = read_index(index, root, config) if index else read_tree(root, config)
        sources = split_sources(where, root, config)
        names = read_classes(class_list(config), classes_of(entries, where))
        labels = {name: label for label, name in enumerate(names)}
        groups = sorted({entry.group for entry in entries if entry.group is not None})
        published = [entry for entry in entries if entry.split == sources[split]]
        held_out_of_train = sources["val"] == "train"
        if held_out_of_train and split != "test":
            check_fraction("folder", split, config)
            chosen = choose([labels[entry.labels[0]] for entry in published], split, config)
            published = [published[i] for i in chosen]
        info = DatasetInfo(
            "folder",
            tuple(names.values()),
            tuple(groups) or None,
            group_fractions=fractions(entries, groups),
            split_origin=origin(split, sources, where, config),
            multi_label=bool(config.label_separator),
        )
        super().__init__(info, [record(entry, labels, groups, info.multi_label) for entry in published], split)


def record(entry: Entry, labels: dict[str, int], groups: Sequence[str], multi_label: bool) -> Record:
    """The image as a record."""
    numbers = [labels[label] for label in entry.labels]
    present = np.isin(np.arange(len(labels)), numbers) if multi_label else None
    group = None if entry.group is None else groups.index(entry.group)
    return Record(entry.path, numbers[0], group, entry.mask, boxes=entry.boxes, present=present)


def read_tree(root: Path, config: DataConfig) -> tuple[list[Entry], dict[str, str]]:
    """The images of all folders of splits, and the folder of each split that is there, as "train/"."""
    folders = split_folders(root)
    entries = []
    for split, folder in folders.items():
        for name, images in class_images(folder, class_folders(folder)).items():
            for image in images:
                place = image.partition("/")[0] if "/" in image else None
                if config.place_folders and place is None:
                    raise UserError(f"{folder / name / image}: data.place_folders needs the folder of a place between")
                group = f"{name}, {place}" if config.place_folders else None
                entries.append(Entry(folder / name / image, split, (name,), group))
    return entries, {split: f"{folder.name}/" for split, folder in folders.items()}


def split_folders(root: Path) -> dict[str, Path]:
    """Split -> its folder in `root`, for the splits that are there. Raises UserError for none, or two of one split."""
    there = sorted(path for path in root.iterdir() if path.is_dir())
    found: dict[str, Path] = {}
    for path in there:
        split = SPLIT_NAMES.get(path.name.lower())
        if split in found:
            raise UserError(f"{path} and {found[split]} are both the {split} split; rename or move one away")
        if split:
            found[split] = path
    if not found:
        raise UserError(
            f"data.root: {root} has neither index.csv nor a folder train/, val/ or test/; "
            "sort the images into train/<class>/ and test/<class>/, or write an index.csv (docs/own-data.md)"
        )
    return {split: found[split] for split in SPLITS if split in found}


def split_sources(where: dict[str, str], root: Path, config: DataConfig) -> dict[str, str]:
    """Split -> the one of `where` whose images it is made of; says it in a line."""
    test = "test" if "test" in where else "val"
    val = "val" if "val" in where and test == "test" else "train"
    sources = {"train": "train", "val": val, "test": test}
    shown = {name: where.get(source, "missing") for name, source in sources.items()}
    if val == "train" and "train" in where:
        shown["val"] = f"{config.val_fraction:g} of {where['train']}"
    say_once(f"{root}: " + ", ".join(f"{name} = {text}" for name, text in shown.items()))
    return sources


def origin(split: str, sources: dict[str, str], where: dict[str, str], config: DataConfig) -> str:
    """`DatasetInfo.split_origin`."""
    source = where.get(sources[split], "")
    if split == "test" or sources["val"] != "train" or config.val_fraction == 0:
        return source
    if split == "train":
        return f"{source}, without what is held out for val"
    return f"held out: {config.val_fraction:g} of every class of {source}, data.seed {config.seed}"


def classes_of(entries: Sequence[Entry], where: dict[str, str]) -> list[str]:
    """The sorted classes of the training images, numbers by value; of all images if there are no training images.

    Raises UserError for an image of another split with another class.
    """
    known = {label for entry in entries if entry.split == "train" or "train" not in where for label in entry.labels}
    for entry in entries:
        if unknown := set(entry.labels) - known:
            raise UserError(
                f"{entry.path}: the {entry.split} split has the class {min(unknown)}, of which there are no training "
                "images; add some, or move it away"
            )
    return sorted(known, key=int) if all(map(str.isdecimal, known)) else sorted(known)


def fractions(entries: Sequence[Entry], groups: Sequence[str]) -> tuple[float, ...] | None:
    """Fraction of each group in the training images, those held out for val included; None without groups."""
    counts = Counter(entry.group for entry in entries if entry.split == "train")
    return tuple(counts[group] / counts.total() for group in groups) if groups and counts else None
