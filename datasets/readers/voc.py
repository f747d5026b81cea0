"""PASCAL VOC 2012: 20 classes, several per image, with boxes and, for some images, object masks.

    VOCdevkit/VOC2012/
        JPEGImages/<id>.jpg
        Annotations/<id>.xml              objects: names and boxes
        ImageSets/Main/{train,val}.txt    ids; data.variant=segmentation reads ImageSets/Segmentation instead
        SegmentationClass/<id>.png        needed only for that variant

`test` is the published val, because the annotations of the published test are not public; `val` is held out of the
published train by the class of the largest box. `present` has the classes of all objects, including those marked
difficult, and `label` is the class of the largest box.
"""

from pathlib import Path

import numpy as np

from common.errors import UserError
from datasets.config import DataConfig
from datasets.formats.box_xml import read_box_file
from datasets.formats.images import read_indices
from datasets.formats.tables import read_spaced
from datasets.holdout import check_fraction, choose, split_origin
from datasets.readers.files import FileDataset, Record, check_files, check_split, find_root
from datasets.types import DatasetInfo

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
SETS = {"original": "Main", "segmentation": "Segmentation"}
VOID = 255
"""Pixel value of object borders and ambiguous regions in a mask."""


class Voc2012(FileDataset):
    """One split: "train", "val" or "test". Raises UserError, naming the file, on anything missing or wrong."""

    rotate = False

    def __init__(self, config: DataConfig, split: str) -> None:
        check_split("voc2012", split)
        if config.variant not in SETS:
            raise UserError(f"data.variant is {config.variant}; voc2012 has the variants {', '.join(SETS)}")
        check_fraction("voc2012", split, config)
        base = find_root(config, "ImageSets", ("VOCdevkit/VOC2012", "VOC2012"))
        index = base / "ImageSets" / SETS[config.variant] / ("val.txt" if split == "test" else "train.txt")
        names = [row.file("id") for row in read_spaced(index, ("id",))]
        files = [base / "Annotations" / f"{name}.xml" for name in names]
        check_files(files, "unpack Annotations/ of the published archive again")
        masks = base / "SegmentationClass" if config.variant == "segmentation" else None
        records = [_record(base / "JPEGImages" / f"{file.stem}.jpg", file, masks) for file in files]
        records = [records[i] for i in choose([record.label for record in records], split, config)]
        origin = split_origin(split, config)
        super().__init__(DatasetInfo("voc2012", CLASSES, split_origin=origin, multi_label=True), records, split)

    def object(self, path: Path) -> np.ndarray:
        """[H, W] bool: pixels of any class, without void pixels."""
        classes = read_indices(path, rotate=self.rotate)
        return (classes > 0) & (classes != VOID)


def _record(image: Path, annotation: Path, masks: Path | None) -> Record:
    """An image with the boxes of its XML file."""
    found = read_box_file(annotation, first_pixel=1)
    if unknown := [name for name in found.names if name not in CLASSES]:
        raise UserError(f"{annotation}: {unknown[0]!r} is not one of the 20 classes; restore the file as published")
    if not found.names:
        raise UserError(f"{annotation} has no object with a box; restore the file as published")
    classes = np.array([CLASSES.index(name) for name in found.names])
    present = np.zeros(len(CLASSES), bool)
    present[classes] = True
    mask = masks and masks / f"{image.stem}.png"
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)
    label = int(classes[areas.argmax()])  # of the largest box, the first on a tie
    return Record(image, label, mask=mask, boxes=found.boxes, box_labels=classes, present=present)
