"""Waterbirds: CUB's birds on land or water; background and class agree in 95 % of the training images.

Published layout: waterbird_complete95_forest2water2/ with metadata.csv and the images, usually in CUB_200_2011. CUB's
masks, boxes and key points are used where they are present. Splits: 4795 / 1199 / 5794.
"""

from datasets.config import DataConfig
from datasets.formats.layout import WATERBIRDS
from datasets.formats.tables import by_id, by_text, read_csv
from datasets.readers.cub_annotations import mask_folder, read_annotations
from datasets.readers.files import FileDataset, Record, check_split, find_root
from datasets.types import SPLITS, DatasetInfo

METADATA_COLUMNS = ("img_id", "img_filename", "y", "split", "place")
CLASSES = ("landbird", "waterbird")
PLACES = ("land", "water")
GROUPS = tuple(f"{bird} on {place}" for bird in CLASSES for place in PLACES)
"""A group's id is 2 * y + place."""
MINORITY = (1, 2)


class Waterbirds(FileDataset):
    """One split: "train", "val" or "test", by the split column of metadata.csv.

    Raises UserError, naming file and line, on anything missing or wrong in the folder.
    """

    rotate = False

    def __init__(self, config: DataConfig, split: str) -> None:
        check_split("waterbirds", split)
        base = find_root(config, f"{WATERBIRDS}/metadata.csv")
        by_number = by_id(read_csv(base / WATERBIRDS / "metadata.csv", METADATA_COLUMNS), "img_id")
        rows = by_text(by_number.values(), "img_filename").values()  # an image with two lines could be in two splits
        images, masks, notes = base / (config.image_folder or WATERBIRDS), mask_folder(base), read_annotations(base)
        records, training = [], [0] * len(GROUPS)  # training: images of each group in the training split
        for row in rows:
            label, place = row.integer("y", (0, 1)), row.integer("place", (0, 1))
            number = row.integer("split", (0, 1, 2))
            training[2 * label + place] += SPLITS[number] == "train"
            if SPLITS[number] == split:
                name = row.file("img_filename")
                boxes, keypoints = notes.of(name)
                mask = masks and (masks / name).with_suffix(".png")
                records.append(Record(images / name, label, 2 * label + place, mask, keypoints, boxes))
        fractions = tuple(count / sum(training) for count in training) if any(training) else None
        info = DatasetInfo("waterbirds", CLASSES, GROUPS, MINORITY, notes.part_names, fractions)
        super().__init__(info, records, split)
