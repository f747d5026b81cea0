"""Valid files of labels, boxes, part annotations and configs, and their readers."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from datasets.formats.box_xml import read_box_file
from datasets.formats.coco import part_labels, read_coco
from datasets.formats.tube_labels import read_tube_labels
from engine.run.command_line import parse_config
from engine.run.config import RunConfig
from tests.datasets.radiographs import smooth
from tests.fuzz.kind import File

SIDE = 24


def tubes() -> list[File]:
    table = {"1.2.3": 1, "1.2.4": 0, "abc": np.int64(1), np.str_("x"): np.float32(0)}
    return [(".pkl", pickle.dumps(table, protocol)) for protocol in range(6)] + [
        (".json", b'{"1.2.3": 1, "abc": 0}'), (".csv", b"ImageId,tube\n1.2.3,1\nabc,0\n"),
    ]  # fmt: skip


def read_tubes(path: Path) -> None:
    table = read_tube_labels(path)
    assert table and all(type(name) is str and type(tube) is bool for name, tube in table.items())


def boxes() -> list[File]:
    box = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8.5</ymax></bndbox></object>"
    return [(".xml", f"<annotation><size><width>24</width><height>20</height></size>{box * 2}</annotation>".encode())]


def read_box_xml(path: Path) -> None:
    found = read_box_file(path)
    assert found.boxes.shape == (len(found.names), 4) and np.isfinite(found.boxes).all()


def parts() -> list[File]:
    mask = np.asfortranarray(smooth(1, SIDE, SIDE) > 99).astype(np.uint8)
    packed = coco_mask.encode(mask)
    outlines: list[Any] = [
        [[1.0, 1.0, 20.0, 2.0, 9.5, 22.0]], {"size": [SIDE, SIDE], "counts": packed["counts"].decode()},
        {"size": [SIDE, SIDE], "counts": [100, 50, SIDE * SIDE - 150]},
    ]  # fmt: skip
    notes = [
        {"id": i, "image_id": 7, "category_id": i % 2, "area": 50, "bbox": [1, 1, 5, 5], "segmentation": outline}
        for i, outline in enumerate(outlines)
    ]
    images = [{"id": 7, "file_name": "n01440764_1.JPEG", "height": SIDE, "width": SIDE}]
    table = {"categories": [{"id": 0, "name": "head"}, {"id": 1, "name": "tail"}], "images": images}
    return [(".json", json.dumps({**table, "annotations": notes[start:]}).encode()) for start in range(3)]


def read_parts(path: Path) -> None:
    images, names = read_coco(path)
    for image in images:
        if max(image.size_hw) > 100:  # the data set compares it with the image's size first
            continue
        labels = part_labels(image, path)
        assert labels.shape == image.size_hw and labels.min() >= -1 and labels.max() < len(names)


def configs() -> list[File]:
    text = (
        "model:\n  name: vit\n  parts: {num_parts: 4}\ndata:\n  image_size: [32, 48]\noptim: {lr: 1e-3}\nout: runs/x\n"
    )
    return [(".yaml", text.encode())]


def read_config(path: Path) -> None:
    assert isinstance(parse_config([f"--config={path}"]), RunConfig)
