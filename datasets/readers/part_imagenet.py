"""PartImageNet (He et al. 2022): images of 158 classes of ImageNet, with masks of 40 kinds of parts.

    images/{train,val,test}/<wnid>_<number>.JPEG        or in a folder <wnid>/
    annotations/{train,val,test}/{train,val,test}.json  COCO's format; category = part

An image's class is the WordNet id at the start of its file name. The published files split the classes (109 / 19 / 30),
not the images, so they cannot be used for classification: a split whose file has classes that are not in train.json is
held out of train.json instead. Files that split the images (the same classes in each) are used as they are. With
data.index the images of train.json are split by PDiscoFormer's list ("PartImageNet OOD").
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import UserError
from common.seeds import stable_seed
from datasets.config import DataConfig
from datasets.formats.coco import CocoImage, part_labels, read_coco
from datasets.formats.images import size_advice
from datasets.formats.tables import by_text, read_spaced
from datasets.holdout import check_fraction, choose, split_origin
from datasets.readers.files import FileDataset, Record, check_split, masks_are_read, open_root
from datasets.readers.synsets import class_list, imagenet_classes
from datasets.types import DatasetInfo, RawSample

WNID = re.compile(r"n\d{8}(?=_)")
LIST = ("number", "is_test", "label", "wnid", "name")
"""Columns of PDiscoFormer's list of training and test images."""
TEST_FRACTION = 0.1
"""Of each class of train.json, where the test file has other classes. Independent of data.val_fraction."""


@dataclass(frozen=True)
class Part:
    """One published file, and its images that belong to a split."""

    file: Path
    names: tuple[str, ...]
    """Names of the parts."""
    images: list[CocoImage]
    wnids: list[str]
    """WordNet id of each image."""
    origin: str = "published"

    def only(self, positions: list[int], origin: str) -> "Part":
        """The images at these positions."""
        images = [self.images[i] for i in positions]
        return replace(self, images=images, wnids=[self.wnids[i] for i in positions], origin=origin)


class PartImageNet(FileDataset):
    """One split: "train", "val" or "test". Classes are those of train.json, sorted by name.

    `mask` is the union of the parts. Raises UserError, naming the file, on anything missing or wrong.
    """

    rotate = False

    def __init__(self, config: DataConfig, split: str) -> None:
        check_split("part_imagenet", split)
        check_fraction("part_imagenet", split, config)
        root = open_root(config, "images/ and annotations/")
        train = read_part(root, "train")
        known = imagenet_classes(class_list(config))
        if unknown := sorted(set(train.wnids) - known.keys()):
            raise UserError(f"{train.file}: {unknown[0]} is not a class of ImageNet; give its name in data.class_names")
        order = sorted(set(train.wnids), key=lambda wnid: (known[wnid], wnid))
        part = choose_part(root, train, split, {wnid: label for label, wnid in enumerate(order)}, config)
        if part.names != train.names:
            raise UserError(f"{part.file} has different categories from {train.file}; restore both files")
        self.part = part
        names, folder = tuple(known[wnid] for wnid in order), root / "images" / part.file.stem
        info = DatasetInfo(
            "part_imagenet", names, class_keys=tuple(order), part_names=part.names, split_origin=part.origin
        )
        super().__init__(info, records_of(part, folder, order), split)

    def files(self) -> list[Path]:
        """Every file that `read` opens, and the one that its masks are decoded from."""
        return [*super().files(), self.part.file]

    def read(self, index: int) -> RawSample:
        """Image, parts and object. Raises UserError where a file is unreadable or the sizes differ."""
        sample, record = super().read(index), self.part.images[index]
        if sample.image.shape[:2] != record.size_hw:
            sizes = [f"{width} x {height}" for height, width in (record.size_hw, sample.image.shape[:2])]
            advice = size_advice(record.size_hw, sample.image.shape[:2])
            raise UserError(f"{self.part.file} says {sizes[0]} pixels, but {sample.path} has {sizes[1]}; {advice}")
        if not masks_are_read():
            return sample
        labels = part_labels(record, self.part.file)
        return replace(sample, part_labels=labels, mask=labels >= 0)


def read_part(root: Path, name: str) -> Part:
    """A published file and the classes of its images. Raises UserError for a file name without a WordNet id."""
    file = root / "annotations" / name / f"{name}.json"
    images, names = read_coco(file)
    wnids = []
    for record in images:
        found = WNID.match(Path(record.name).name)
        if not found:
            raise UserError(f"{file}: {record.name!r} does not begin with a WordNet id such as n01440764_; correct it")
        wnids.append(found.group())
    return Part(file, names, images, wnids)


def choose_part(root: Path, train: Part, split: str, labels: Mapping[str, int], config: DataConfig) -> Part:
    """The images of a split: those of its published file, or the part of train.json held out, or left, for it."""
    if config.index:
        return listed_part(train, split, labels, config)
    origin, pool = "published", train
    for name in ("test", "val"):  # in this order: val is held out of what test leaves
        published = read_part(root, name)
        if set(published.wnids) <= labels.keys():
            if name == split:
                return published
            continue
        fraction = TEST_FRACTION if name == "test" else config.val_fraction
        seeded = replace(config, seed=stable_seed("part_imagenet", name, config.seed), val_fraction=fraction)
        wanted = [labels[wnid] for wnid in pool.wnids]
        if name == split:
            origin = f"held out: {fraction:g} of every class of train.json, data.seed {config.seed}"
            return pool.only(choose(wanted, "val", seeded), origin)
        origin = "published train.json, without what is held out"
        pool = pool.only(choose(wanted, "train", seeded), origin)
    return replace(pool, origin=origin)


def listed_part(train: Part, split: str, labels: Mapping[str, int], config: DataConfig) -> Part:
    """The images of a split by the list data.index: lines "number, is_test, label, WordNet id, file name".

    Raises UserError for an image of train.json that is not listed.
    """
    path = Path(config.index).expanduser()
    rows = by_text(read_spaced(path, LIST), "name")
    names = [Path(record.name).name for record in train.images]
    if missing := [name for name in names if name not in rows]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"data.index: {path} has no line for {missing[0]}{more}, which {train.file} has; restore both")
    tests = [rows[name].integer("is_test", (0, 1)) for name in names]
    if split == "test":
        return train.only([i for i, test in enumerate(tests) if test], f"published list {path.name}")
    left = train.only([i for i, test in enumerate(tests) if not test], f"published list {path.name}")
    chosen = choose([labels[wnid] for wnid in left.wnids], split, config)
    return left.only(chosen, f"{left.origin}: {split_origin(split, config)}")


def records_of(part: Part, folder: Path, order: list[str]) -> list[Record]:
    """One record per image, in `folder` or in its class folders."""
    nested = bool(part.wnids) and (folder / part.wnids[0]).is_dir()
    return [
        Record(folder / (wnid if nested else "") / record.name, order.index(wnid))
        for record, wnid in zip(part.images, part.wnids, strict=True)
    ]
