"""COCO 2017: 80 classes, several per image, with boxes.

    train2017/<number>.jpg
    val2017/<number>.jpg
    annotations/instances_{train,val}2017.json

`test` is the published val2017, because the annotations of the published test set are not public; `val` is held out of
train2017 by the class of the largest box. Crowds and boxes without area are left out, but their class is present.
Images without any object are left out. There are no masks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from datasets.config import DataConfig
from datasets.formats.coco import load_coco
from datasets.holdout import check_fraction, choose, split_origin
from datasets.readers.files import FileDataset, Record, check_split, find_root
from datasets.types import DatasetInfo


@dataclass(frozen=True)
class Instances:
    """An annotation file: the class names, in the order of their ids, and the records of images with an object."""

    class_names: tuple[str, ...]
    records: tuple[Record, ...]


class Coco(FileDataset):
    """One split: "train", "val" or "test". Raises UserError, naming the file, on anything missing or wrong."""

    rotate = False

    def __init__(self, config: DataConfig, split: str) -> None:
        check_split("coco", split)
        check_fraction("coco", split, config)
        base = find_root(config, "annotations", ("coco", "COCO", "coco2017"))
        train, test = (base / "annotations" / f"instances_{name}2017.json" for name in ("train", "val"))
        found = instances(test if split == "test" else train)
        if split == "test" and found.class_names != instances(train).class_names:
            raise UserError(f"{test} has other categories than {train}; restore both files")
        records = [found.records[i] for i in choose([record.label for record in found.records], split, config)]
        origin = split_origin(split, config)
        super().__init__(DatasetInfo("coco", found.class_names, split_origin=origin, multi_label=True), records, split)


def instances(path: Path) -> Instances:
    """Read an annotation file once for the splits that share it. Raises UserError."""
    try:
        found = path.stat()
    except OSError:
        return _instances(path, 0, 0)  # which says what is wrong
    return _instances(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=2)
def _instances(path: Path, size: int, time: int) -> Instances:
    with load_coco(path) as content:
        categories = {int(item["id"]): str(item["name"]) for item in content["categories"]}
        numbers = {key: number for number, key in enumerate(sorted(categories))}
        images = {int(item["id"]): item for item in content["images"]}
        boxes: dict[int, list[tuple[np.ndarray, int]]] = {}
        present: dict[int, set[int]] = {}
        for item in content["annotations"]:
            image, label = images[item["image_id"]], numbers[item["category_id"]]
            present.setdefault(image["id"], set()).add(label)
            box = None if item.get("iscrowd") else _box(item, image)
            if box is not None:
                boxes.setdefault(image["id"], []).append((box, label))
        folder = path.parents[1] / path.stem.removeprefix("instances_")
        records = tuple(
            _record(folder, images[key], boxes.get(key, []), present[key], len(numbers)) for key in sorted(present)
        )
    return Instances(tuple(categories[key] for key in sorted(categories)), records)


def _box(item: Mapping[str, Any], image: Mapping[str, Any]) -> np.ndarray | None:
    """[4] float32 xyxy pixels; None for a box without area in its image, of which the published files have some."""
    x, y, width, height = map(float, item["bbox"])
    edges = (max(x, 0.0), max(y, 0.0), min(x + width, float(image["width"])), min(y + height, float(image["height"])))
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError(f"the box of annotation {item['id']} is not finite")
    return np.array(edges, np.float32) if edges[0] < edges[2] and edges[1] < edges[3] else None


def _record(
    folder: Path, image: Mapping[str, Any], found: list[tuple[np.ndarray, int]], present: set[int], classes: int
) -> Record:
    """An image, labelled with the class of its largest box (the first on a tie), or its first class without boxes."""
    name = str(image["file_name"])
    if Path(name).name != name:
        raise ValueError(f"file_name is no name of a file: {name!r}")
    edges = np.array([box for box, _ in found], np.float32).reshape(-1, 4)
    labels = np.array([label for _, label in found], np.int64)
    areas = (edges[:, 2:] - edges[:, :2]).prod(axis=1)
    there = np.zeros(classes, bool)
    there[list(present)] = True
    label = int(labels[areas.argmax()]) if len(labels) else min(present)
    return Record(folder / name, label, boxes=edges, box_labels=labels, present=there)
