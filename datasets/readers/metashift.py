"""MetaShift's cats and dogs (Liang and Zou 2022, DISC's split): the test contexts differ from the training contexts.

Published layout: train/ and test/, in them <class>/<context>/*.jpg such as cat/cat(sofa)/ or dog/dog(bench)/. There is
no folder of validation images. By default `val` is held out of train/, class by class, by data.val_fraction and
data.seed, and the test is all of test/, as iFAM evaluates. With data.variant=disc `val` is 15 % of test/, as in DISC.
Groups are class x context. The test has one context, so the paper's worst group is the worse class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sklearn.model_selection import train_test_split

from common.errors import UserError
from datasets.config import DataConfig
from datasets.formats.folders import class_folders, class_images
from datasets.holdout import check_fraction, choose, split_origin
from datasets.readers.files import FileDataset, Record, check_split, open_root
from datasets.readers.imagenet import refuse_third_split
from datasets.types import DatasetInfo

VARIANTS = ("original", "disc")
DISC_TEST = 0.85
"""Fraction of test/ that DISC leaves for the test."""
DISC_FEWEST = 7
"""Images of test/ of which 15 % are at least one."""
DISC = {
    "train": "published",
    "val": "DISC's: 15 % of test/, drawn with seed 0 from the sorted files",
    "test": "DISC's: test/ without the 15 % for val",
}
"""Origin of each split with data.variant=disc."""


class MetaShift(FileDataset):
    """One split: "train", "val" or "test". Labels are 0..C-1 in the sorted order of the class folders.

    Every split has the groups of both folders; those of the other folder are empty. Raises UserError, naming file or
    folder, on anything missing or wrong.
    """

    rotate = False

    def __init__(self, config: DataConfig, split: str) -> None:
        check_split("metashift", split)
        if config.variant not in VARIANTS:
            raise UserError(f"data.variant is {config.variant}; metashift has the variants {', '.join(VARIANTS)}")
        disc = config.variant == "disc"
        if not disc:
            check_fraction("metashift", split, config)
        root = open_root(config, "train/ and test/")
        base = root / ("test" if split == "test" or (disc and split == "val") else "train")
        classes = class_folders(base)
        refuse_third_split(root, "val", classes, "data.name=metashift holds val out of train/")
        sides = [side for side in (root / "train", root / "test") if side.is_dir()]
        found = {side: read_side(side, classes) for side in sides}
        groups = sorted({(entry.label, entry.context) for entries in found.values() for entry in entries})
        labels = [entry.label for entry in found[base]]
        chosen = disc_choice(base, len(labels), split) if disc else choose(labels, split, config)
        entries = [found[base][i] for i in chosen]
        records = [Record(base / e.path, e.label, groups.index((e.label, e.context))) for e in entries]
        names = tuple(context for _, context in groups)
        info = DatasetInfo(
            "metashift", tuple(classes), names, split_origin=DISC[split] if disc else split_origin(split, config)
        )
        super().__init__(info, records, split)


@dataclass(frozen=True)
class Entry:
    """An image in train/ or test/."""

    path: str
    """Relative to that folder."""
    label: int
    context: str


def read_side(side: Path, classes: Sequence[str]) -> list[Entry]:
    """All images of train/ or test/. Raises UserError for other class folders, or one without images."""
    there = class_folders(side)
    if there != list(classes):
        problem = f"{side} has the class folders {', '.join(there)}, not {', '.join(classes)}"
        raise UserError(f"{problem}; make train/ and test/ the same")
    return [
        Entry(f"{name}/{path}", label, context_of(path, name))
        for label, (name, images) in enumerate(class_images(side, classes).items())
        for path in images
    ]


def disc_choice(side: Path, count: int, split: str) -> list[int]:
    """Indices of a split of DISC among the `count` images of train/ or test/: all of train/, or a part of test/.

    DISC draws from cats, then dogs, each in the order in which the file system lists them, which differs between
    machines. Here they are sorted: the sizes are those of DISC, but not the images. Raises UserError for a test/ that
    is too small.
    """
    if split == "train":
        return list(range(count))
    if count < DISC_FEWEST:
        raise UserError(f"{side} has {count} images; data.variant=disc needs at least {DISC_FEWEST}")
    val, test = train_test_split(range(count), test_size=DISC_TEST, random_state=0)
    return sorted(val if split == "val" else test)


def context_of(path: str, name: str) -> str:
    """The context folder of an image of class `name`, as "cat(sofa)"; the class if the image is in no such folder."""
    folder, _, rest = path.partition("/")
    if not rest:
        return name
    return folder if folder.startswith(f"{name}(") else f"{name}({folder})"
