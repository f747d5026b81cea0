"""CUB-200-2011: 200 bird species, with boxes, 15 key points and (a separate download) object masks.

Published split: 5994 training and 5794 test images. No validation split is published: `val` is held out of the
training images, class by class, by data.val_fraction and data.seed. With data.image_folder =
waterbird_complete95_forest2water2 the same birds are read on the backgrounds of Waterbirds.

NABirds (Van Horn et al. 2015) has the same files, with boxes and 11 key points; its ids are texts, and 555 of the 1011
classes of classes.txt, which are the nodes of hierarchy.txt, have images. Published split: 23929 and 24633 images.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from datasets.config import DataConfig
from datasets.formats.notices import say_once
from datasets.formats.number_table import NumberTable
from datasets.formats.tables import by_id, read_spaced
from datasets.holdout import check_fraction, choose, split_origin
from datasets.readers.cub_annotations import CubAnnotations, mask_folder, read_annotations
from datasets.readers.files import FileDataset, Record, check_split, find_root
from datasets.types import DatasetInfo

LABELS, SPLIT = "image_class_labels.txt", "train_test_split.txt"


class Cub(FileDataset):
    """One split: "train", "val" or "test". Labels are 0..C-1 in the order of the published class ids.

    Raises UserError, naming file and line, on anything missing or wrong in the folder.
    """

    rotate = False
    name, folder = "cub", "CUB_200_2011"
    text_ids = False

    def __init__(self, config: DataConfig, split: str) -> None:
        check_split(self.name, split)
        check_fraction(self.name, split, config)
        base = find_root(config, "images.txt", (self.folder,))
        classes = by_id(read_spaced(base / "classes.txt", ("class_id", "name")), "class_id")
        notes, masks = read_annotations(base, text_ids=self.text_ids), mask_folder(base)
        class_ids, other_labels = column_of(notes, base / LABELS, "class_id", classes.keys())
        training, other_flags = column_of(notes, base / SPLIT, "is_training", (0, 1))
        say_left_out(notes, {LABELS: other_labels, SPLIT: other_flags, **notes.left_out})
        present = sorted(set(class_ids.values()))
        labels = {key: present.index(class_id) for key, class_id in class_ids.items()}
        train = {key: bool(flag) for key, flag in training.items()}
        names = tuple(classes[key].text("name") for key in present)
        origin = split_origin(split, config)
        info = DatasetInfo(self.name, names, part_names=notes.part_names, split_origin=origin)
        paths = dict(zip(notes.ids.tolist(), notes.position, strict=True))
        records = []
        for key in choose_split(labels, train, split, config):
            image = base / (config.image_folder or "images") / paths[key]
            mask = masks and (masks / paths[key]).with_suffix(".png")
            boxes, keypoints = notes.of(paths[key])
            records.append(Record(image, labels[key], None, mask, keypoints, boxes))
        super().__init__(info, records, split)


class NABirds(Cub):
    """The same for NABirds."""

    name, folder = "nabirds", "nabirds"
    text_ids = True


def choose_split(labels: Mapping[int, int], train: Mapping[int, bool], split: str, config: DataConfig) -> list[int]:
    """Ids of one split, ascending. `val` is the same fraction of every class of the published training split."""
    ids = sorted(key for key, flag in train.items() if flag == (split != "test"))
    return [ids[i] for i in choose([labels[key] for key in ids], split, config)]


def column_of(notes: CubAnnotations, path: Path, column: str, allowed: Collection[int]) -> tuple[dict[int, int], int]:
    """Image id -> the value of `column` in a file of ids and numbers, and the number of rows of other images."""
    table = NumberTable(path, ("id", column), notes.text_ids)
    values = table.integers(column, allowed)
    rows, other = table.positions(notes.ids, notes.source)
    return dict(zip(notes.ids.tolist(), values[rows].tolist(), strict=True)), other


def say_left_out(notes: CubAnnotations, rows: Mapping[str, int]) -> None:
    """One line for a data set whose images.txt was shortened: file -> number of its rows that were not read."""
    if any(rows.values()):
        files = ", ".join(f"{count} of {name}" for name, count in rows.items() if count)
        say_once(f"{notes.source} lists {len(notes.ids)} images; rows of other images are left out: {files}")
