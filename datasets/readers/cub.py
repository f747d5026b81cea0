"""CUB-200-2011: 200 bird species, with boxes, 15 key points and (a separate download) object masks.

Published split: 5994 training and 5794 test images. No validation split is published: `val` is held out of the
training images, class by class, by data.val_fraction and data.seed. With data.image_folder =
waterbird_complete95_forest2water2 the same birds are read on the backgrounds of Waterbirds.
"""

from collections.abc import Mapping

from datasets.config import DataConfig
from datasets.formats.tables import by_id, read_spaced
from datasets.holdout import check_fraction, choose, split_origin
from datasets.readers.cub_annotations import IMAGES, read_annotations, rows_of
from datasets.readers.files import FileDataset, Record, check_split, find_root
from datasets.types import DatasetInfo


class Cub(FileDataset):
    """One split: "train", "val" or "test". Labels are 0..C-1 in the order of the published class ids.

    Raises UserError, naming file and line, on anything missing or wrong in the folder.
    """

    def __init__(self, config: DataConfig, split: str) -> None:
        check_split("cub", split)
        base = find_root(config, "images.txt")
        paths = by_id(read_spaced(base / "images.txt", IMAGES), "id")
        classes = by_id(read_spaced(base / "classes.txt", ("class_id", "name")), "class_id")
        labelled = rows_of(paths, base / "images.txt", base / "image_class_labels.txt", ("id", "class_id"))
        flagged = rows_of(paths, base / "images.txt", base / "train_test_split.txt", ("id", "is_training"))
        class_ids = {key: row.integer("class_id", classes) for key, row in labelled.items()}
        present = sorted(set(class_ids.values()))
        labels = {key: present.index(class_id) for key, class_id in class_ids.items()}
        train = {key: bool(row.integer("is_training", (0, 1))) for key, row in flagged.items()}
        notes = read_annotations(base)
        names = tuple(classes[key].text("name") for key in present)
        info = DatasetInfo("cub", names, part_names=notes.part_names, split_origin=split_origin(split, config))
        records = []
        for key in choose_split(labels, train, split, config):
            path = paths[key].file("path")
            boxes, keypoints, mask = notes.of(path)
            image = base / (config.image_folder or "images") / path
            records.append(Record(image, labels[key], None, mask, keypoints, boxes))
        super().__init__(info, records, split)


def choose_split(labels: Mapping[int, int], train: Mapping[int, bool], split: str, config: DataConfig) -> list[int]:
    """Ids of one split, ascending. `val` is the same fraction of every class of the published training split."""
    check_fraction("cub", split, config)
    ids = sorted(key for key, flag in train.items() if flag == (split != "test"))
    return [ids[i] for i in choose([labels[key] for key in ids], split, config)]
