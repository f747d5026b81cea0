"""Tiny trees in the published layouts of SVHN, Flowers 102, NABirds, VOC 2012 and PartImageNet."""

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

WIDTH, HEIGHT = 48, 40
BOXES = ((1, 1, 12, 10), (11, 6, 40, 30))
"""As VOC counts: from 1, last pixel included."""
WNIDS = ("n02009912", "n01440764", "n04591713")
"""American egret, tench, wine bottle: by name great egret < tench < wine bottle, by id otherwise."""


def save_image(path: Path, value: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, format="JPEG", quality=95)


def write_svhn(root: Path) -> None:
    """30 training images, three of each digit, and ten test images."""
    for name, count in (("train", 30), ("test", 10)):
        pixels = np.random.default_rng(count).integers(0, 256, (32, 32, 3, count), np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(root / f"{name}_32x32.mat", {"X": pixels, "y": labels})


def write_flowers(root: Path, masks: bool = True) -> Path:
    """24 images of the first six classes, eight a split (train: the numbers 3, 6, 9 ...). Returns flowers-102."""
    base = root / "flowers-102"
    for number in range(1, 25):
        save_image(base / "jpg" / f"image_{number:05d}.jpg", number)
        if masks:
            blue = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            blue[..., 2] = 254
            blue[8:24, 16:40] = (120, 90, 30)
            (base / "segmim").mkdir(exist_ok=True)
            Image.fromarray(blue).save(base / "segmim" / f"segmim_{number:05d}.jpg", format="JPEG", quality=100)
    savemat(base / "imagelabels.mat", {"labels": (np.arange(24) % 6 + 1).astype(np.uint8)[None]})
    numbers = {name: np.arange(first, 25, 3)[None] for name, first in (("trnid", 3), ("valid", 1), ("tstid", 2))}
    savemat(base / "setid.mat", numbers)
    return base


NABIRDS = {0: "Birds", 1: "Ducks", 295: "Common Eider (Adult male)", 817: "Oak Titmouse", 1010: "Barn Owl"}
"""Class id -> name: the root and a group, which have no images, and three classes with images."""
NABIRDS_PARTS = ("bill", "crown", "left eye", "tail")


def write_nabirds(root: Path) -> Path:
    """12 training and 6 test images of three classes in nabirds/; ids have dashes that the file names lack."""
    base, lines = root / "nabirds", {name: list[str]() for name in ("images", "image_class_labels", "train_test_split",
                                                                     "bounding_boxes", "parts/part_locs")}  # fmt: skip
    for i in range(18):
        key, class_id = str(uuid.UUID(int=(17 * i % 18) << 100 | i)), (295, 817, 1010)[i % 3]
        name = f"{class_id:04d}/{key.replace('-', '')}.jpg"
        save_image(base / "images" / name, i)
        lines["images"].append(f"{key} {name}")
        lines["image_class_labels"].append(f"{key} {class_id}")
        lines["train_test_split"].append(f"{key} {int(i < 12)}")
        lines["bounding_boxes"].append(f"{key} {i} 4 20 30")
        for part in range(len(NABIRDS_PARTS)):
            visible = (i + part) % 3 > 0
            x, y = (10 + part, i) if visible else (-1, -1)
            lines["parts/part_locs"].append(f"{key} {part} {x} {y} {visible:d}")
    tables = lines | {
        "classes": [f"{number} {name}" for number, name in NABIRDS.items()],
        "hierarchy": ["1 0", "295 1", "817 0", "1010 0"],
        "parts/parts": [f"{number} {name}" for number, name in enumerate(NABIRDS_PARTS)],
    }
    (base / "parts").mkdir()
    for name, rows in tables.items():
        (base / f"{name}.txt").write_text("".join(f"{row}\n" for row in rows))
    return base


def voc_xml(names: Sequence[str], boxes: Sequence[tuple[float, ...]] = BOXES) -> str:
    corners = ("xmin", "ymin", "xmax", "ymax")
    objects = ""
    for name, box in zip(names, boxes, strict=False):
        edges = "".join(f"<{c}>{value}</{c}>" for c, value in zip(corners, box, strict=True))
        part = f"<part><name>head</name><bndbox>{edges}</bndbox></part>"
        objects += f"<object><name>{name}</name><difficult>1</difficult><bndbox>{edges}</bndbox>{part}</object>"
    return f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>{objects}</annotation>"


def write_voc(root: Path) -> Path:
    """12 images in train, 4 in val: a small dog, and a large person or cat; the even ones have masks. VOC2012."""
    base = root / "VOCdevkit" / "VOC2012"
    for folder in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "SegmentationClass"):
        (base / folder).mkdir(parents=True)
    ids = [f"2008_{i:06d}" for i in range(16)]
    for i, name in enumerate(ids):
        save_image(base / "JPEGImages" / f"{name}.jpg", i)
        (base / "Annotations" / f"{name}.xml").write_text(voc_xml(("dog", "person" if i % 4 < 2 else "cat")))
        if i % 2 == 0:
            write_voc_mask(base / "SegmentationClass" / f"{name}.png")
    for split, chosen in (("train", ids[:12]), ("val", ids[12:])):
        (base / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in chosen))
        (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{n}\n" for n in chosen[::2]))
    return base


def write_voc_mask(path: Path) -> None:
    """Rows 5 to 30 and columns 10 to 40 are person (15), with a border of one void pixel (255)."""
    classes = np.zeros((HEIGHT, WIDTH), np.uint8)
    classes[4:31, 9:41], classes[5:30, 10:40] = 255, 15
    mask = Image.fromarray(classes, mode="P")
    mask.putpalette([0, 0, 0] + [255, 128, 0] * 254 + [224, 224, 192])
    mask.save(path)


COCO_NAMES = {1: "person", 18: "dog", 17: "cat"}
"""Ids with gaps, not in order, as published."""


def square(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def annotation(number: int, image: int, category: int, outline: Any, **changes: Any) -> dict[str, Any]:
    return {
        "id": number, "image_id": image, "category_id": category, "segmentation": outline, "area": 100,
        "bbox": [2, 3, 10, 20], "iscrowd": 0, **changes,
    }  # fmt: skip


def coco(wnids: Sequence[str], count: int) -> dict[str, Any]:
    """`count` images of each class, each with a head (category 0) and a body (1); the last one of all has nothing."""
    names = [f"{wnid}_{i}.JPEG" for wnid in wnids for i in range(count)]
    return {
        "categories": [{"id": 1, "name": "Fish Body"}, {"id": 0, "name": "Fish Head"}],
        "images": [
            {"id": 10 + i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in enumerate([*names, "x"])
        ],
        "annotations": [
            annotation(2 * i + part, 10 + i, part, [square(4 + 20 * part, 6, 10)])
            for i in range(len(names))
            for part in (0, 1)
        ],
    }


def write_coco(root: Path) -> Path:
    """12 images in train2017, 4 in val2017: a small dog (18) and a large person (1) or cat (17), or a crowd alone."""
    for split, count in (("train", 12), ("val", 4)):
        content = coco((), 0) | {"categories": [{"id": key, "name": name} for key, name in COCO_NAMES.items()]}
        content["images"] = [
            {"id": 40 + i, "file_name": f"{40 + i:012d}.jpg", "height": HEIGHT, "width": WIDTH}
            for i in range(count + 1)
        ]  # the last one shows nothing
        for i in range(count):
            save_image(root / f"{split}2017" / f"{40 + i:012d}.jpg", i)
            crowd = int(i % 4 == 3)
            large = annotation(2 * i, 40 + i, 1 if i % 4 < 2 else 17, [], bbox=[9, 4, 31, 26], iscrowd=crowd)
            dog = annotation(2 * i + 1, 40 + i, 18, [], bbox=[0, 0, 12, 0 if crowd else 10])
            content["annotations"] += [dog, large]
        path = root / "annotations" / f"instances_{split}2017.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return root


def write_part_imagenet(root: Path, by_class: bool = False, count: int = 4) -> None:
    """Three classes in every split; `by_class`: as published, other classes in val and test."""
    for split in ("train", "val", "test"):
        wnids = WNIDS
        if by_class and split != "train":
            wnids = ("n02102040",) if split == "val" else ("n03000684",)
        content = coco(wnids, count)
        path = root / "annotations" / split / f"{split}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
        for item in content["images"][:-1]:
            save_image(root / "images" / split / item["file_name"], item["id"])
