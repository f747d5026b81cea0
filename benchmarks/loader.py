"""Images per second of one loading process: decoding, augmentation and evaluation of CUB-like photographs.

python -m benchmarks.loader --save                               # made-up photographs, 20 seconds
python -m benchmarks.loader --root DIR/CUB_200_2011 --save       # photographs of your own copy of CUB
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.harness import Section, log, parser, report
from common.errors import exit_on_user_error
from common.ranges import PositiveInt
from datasets import Sample, collate, load_split
from datasets.config import DataConfig

PHOTOGRAPHS = 24
BATCH = 16
SIDES = ((375, 500), (500, 375), (333, 500))
"""Height and width of the made-up photographs, pixels: usual sizes in CUB."""
METHOD = (
    "One process with one thread. Images/s count CPU seconds of that process, so that other work on the machine does "
    "not matter as long as it leaves the caches alone; medians over the rounds. `train`: cub_original. `annotations`: "
    "with masks, key points and boxes, as a model that is given masks needs; without them as in all other training. "
    "`test`: the evaluation transform, which keeps annotations for the metrics. `check`: the pass over validation and "
    "test images before training (`data.check_images`), without a transform. `batches`: also collated, "
    f"{BATCH} images at a time, and moved to shared memory, as a loading process hands them over: normalised, or as "
    "bytes that the device normalises (training and evaluation); `image_cache`: with images that are stored already. "
    "Files are in the page cache."
)


def make_photographs(root: Path) -> Path:
    """A folder in CUB's layout of smooth random images as JPEG (quality 90) with elliptic masks; half for training."""
    random = np.random.default_rng(0)
    names = [f"001.Bird/bird_{index:04d}" for index in range(PHOTOGRAPHS)]
    for folder in ("images/001.Bird", "segmentations/001.Bird", "parts"):
        (root / folder).mkdir(parents=True)
    boxes = []
    for index, name in enumerate(names):
        height, width = SIDES[index % len(SIDES)]
        coarse = random.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        pixels = (pixels + random.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
        mask = np.zeros((height, width), np.uint8)
        cv2.ellipse(mask, (width // 2, height // 2), (width // 4, height // 4), 30, 0, 360, 255, -1)
        Image.fromarray(pixels).save(root / "images" / f"{name}.jpg", quality=90)
        Image.fromarray(mask).save(root / "segmentations" / f"{name}.png")
        boxes.append((width // 4, height // 4, width // 2, height // 2))
    ids = range(1, len(names) + 1)
    points = [f"{i} {part} {50 + part}.0 {60 + i}.0 1" for i in ids for part in range(1, 16)]
    tables = {
        "classes.txt": ["1 001.Bird"], "images.txt": [f"{i} {name}.jpg" for i, name in zip(ids, names, strict=True)],
        "image_class_labels.txt": [f"{i} 1" for i in ids], "train_test_split.txt": [f"{i} {i % 2}" for i in ids],
        "bounding_boxes.txt": [" ".join(map(str, (i, *box))) for i, box in zip(ids, boxes, strict=True)],
        "parts/parts.txt": [f"{part} part {part}" for part in range(1, 16)], "parts/part_locs.txt": points,
    }  # fmt: skip
    for name, lines in tables.items():
        (root / name).write_text("\n".join(lines) + "\n")
    return root


def images_per_second(read: Callable[[int, int], object], images: int, rounds: int, count: int) -> list[float]:
    """One value for each round of `images` images out of `count`, read anew each time by (round, index)."""
    found = []
    for number in range(rounds + 1):  # the first one warms up
        started = time.process_time()
        for index in range(images):
            read(number, index % count)
        found.append(images / (time.process_time() - started))
    return found[1:]


def handing_over(sample: Callable[[tuple[int, int]], Sample]) -> Callable[[int, int], None]:
    """Read by (round, index); `BATCH` samples at a time are collated in shared memory."""
    samples: list[Sample] = []

    def read(number: int, index: int) -> None:
        samples.append(sample((number, index)))
        if len(samples) == BATCH:
            collate(samples).image.share_memory_()
            samples.clear()

    return read


def measure(root: Path, cache: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the table; `cache`: an empty folder for data.image_cache."""
    rows = []

    def add(
        size: int | str, name: str, annotations: bool, read: Callable[[int, int], object], count: int,
        batches: str = "no",
    ) -> None:  # fmt: skip
        speeds = images_per_second(read, options.images, options.rounds, min(options.images, count))
        row: dict[str, Any] = {"size": size, "split": name, "annotations": annotations, "batches": batches}
        row |= {"images_per_second": median(speeds), "milliseconds_per_image": 1000 / median(speeds)}
        rows.append(row | {"each_round": speeds})
        log(str(rows[-1]))

    for size in options.sizes:
        config = DataConfig(name="cub", root=str(root), image_size=size, val_fraction=0.0)
        for name, annotations in (("train", True), ("train", False), ("test", True)):
            split = load_split(config, name, train=name == "train", seed=0)
            split.annotations = annotations
            add(size, name, annotations, lambda number, index, split=split: split[number, index], len(split))  # type: ignore[misc]
        plain, stored = (
            load_split(replace(config, image_cache=folder), "train", train=True, seed=0) for folder in ("", cache)
        )
        plain.annotations = stored.annotations = False
        ways = {"float32": plain.__getitem__, "uint8": plain.pixels, "uint8, image_cache": stored.pixels}
        for batches, sample in ways.items():
            add(size, "train", False, handing_over(sample), len(plain), batches)
    add("any", "check", True, lambda number, index: split.raw.read(index), len(split))
    return rows


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__, rounds=3, precisions=["fp32"])
    flags.add_argument("--root", type=Path, help="folder of CUB, instead of made-up photographs")
    flags.add_argument("--sizes", type=PositiveInt, nargs="+", default=[224, 518], help="sides of the input, pixels")
    flags.add_argument("--images", type=PositiveInt, default=64, help="images per round")
    return flags.parse_args(args)


@exit_on_user_error
def main(args: Sequence[str] | None = None) -> None:
    """Measure, report."""
    options = parse(args)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # as in a loading process
    unused = ("root", "image_size", "device", "precision", "threads")  # of the flags that all benchmarks have
    kept = argparse.Namespace(**{name: value for name, value in vars(options).items() if name not in unused})
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.root or make_photographs(Path(folder)), f"{folder}/cache", options)
    what, stem = ("photographs of CUB", "loader_cub") if options.root else ("made-up photographs", "loader_made_up")
    report("Loading images", [Section(what, rows)], METHOD, kept, f"{stem}_cpu")


if __name__ == "__main__":
    main()
