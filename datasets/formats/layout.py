"""Write generated data sets in the published folder layout of CUB-200-2011, with Waterbirds inside it."""

import csv
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import UserError
from datasets.types import SPLITS

CUB = "CUB_200_2011"
WATERBIRDS = "waterbird_complete95_forest2water2"
METADATA = ("img_id", "img_filename", "y", "split", "place", "place_filename")


@dataclass(frozen=True)
class Entry:
    """One image to write, with its entries in the index files."""

    image: np.ndarray
    """[H, W, 3] uint8."""
    mask: np.ndarray
    """[H, W] bool, with at least one pixel set."""
    species: int
    """Index into the list of species."""
    label: int
    split: int
    """0 train, 1 val, 2 test."""
    place: int
    place_name: str
    keypoints: np.ndarray | None = None
    """[P, 3] (x, y, visible), pixels."""
    stem: str = ""
    """Path of the image without ending; default: numbered, in the folder of its species."""
    object_name: str | None = None
    """File of the object, where images are composed of photographs: one more column of metadata.csv."""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder to fill; renamed to `out` at the end, deleted on an error: `out` is never half-written.

    Raises UserError if `out` exists already or cannot be created.
    """
    if out.exists():
        raise UserError(f"{out} exists already; choose another folder or delete it first")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise UserError(f"cannot write beside {out}: {error.strerror}; choose another folder") from None
    try:
        scratch.chmod(0o755)
        yield scratch
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_layout(
    root: Path,
    entries: Iterator[Entry],
    species: Sequence[str],
    *,
    parts: Sequence[str] = (),
    cub_images: bool = True,
    suffix: str = ".jpg",
    quality: int = 92,
) -> int:
    """Write images and index files into root/CUB_200_2011; return the number of images.

    `suffix` is .jpg or .png, `quality` that of JPEG files.

    With `cub_images` the images of Waterbirds are also written as CUB's own `images/`. As published, Waterbirds' train
    and val images are CUB's training split, and its test images CUB's test split.
    """
    base, index = root / CUB, _Index(suffix)
    for number, entry in enumerate(entries, start=1):
        name = f"{entry.species + 1:03d}.{species[entry.species]}"
        stem = entry.stem or f"{name}/{species[entry.species]}_{number:05d}"
        for folder in (WATERBIRDS, "images") if cub_images else (WATERBIRDS,):
            _save(entry.image, base / folder / f"{stem}{suffix}", quality)
        _save(entry.mask.astype(np.uint8) * 255, base / "segmentations" / f"{stem}.png", quality)
        index.add(number, stem, entry)
    index.write(base, species, parts)
    return len(index.metadata)


def _save(pixels: np.ndarray, path: Path, quality: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=quality)


class _Index:
    """Lines of the index files, collected image by image."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self.columns: tuple[str, ...] = METADATA
        self.metadata: list[tuple[int | str, ...]] = []
        self.lines: defaultdict[str, list[str]] = defaultdict(list)
        """File -> its lines."""

    def add(self, number: int, stem: str, entry: Entry) -> None:
        rows, columns = np.flatnonzero(entry.mask.any(1)), np.flatnonzero(entry.mask.any(0))
        box = (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)
        name, cells = f"{stem}{self.suffix}", (entry.label, entry.split, entry.place, entry.place_name)
        self.metadata.append((number, name, *cells))
        if entry.object_name is not None:
            self.columns = (*METADATA, "object_filename")
            self.metadata[-1] += (entry.object_name,)
        self.lines["images.txt"].append(f"{number} {name}")
        self.lines["image_class_labels.txt"].append(f"{number} {entry.species + 1}")
        self.lines["train_test_split.txt"].append(f"{number} {int(entry.split != SPLITS.index('test'))}")
        self.lines["bounding_boxes.txt"].append(f"{number} " + " ".join(f"{value:.1f}" for value in box))
        for part, (x, y, visible) in enumerate(() if entry.keypoints is None else entry.keypoints, start=1):
            self.lines["parts/part_locs.txt"].append(f"{number} {part} {x:.1f} {y:.1f} {int(visible)}")

    def write(self, base: Path, species: Sequence[str], parts: Sequence[str]) -> None:
        with open(base / WATERBIRDS / "metadata.csv", "w", newline="") as file:
            csv.writer(file).writerows([self.columns, *self.metadata])
        self.lines["classes.txt"] = [f"{i} {i:03d}.{name}" for i, name in enumerate(species, start=1)]
        if parts:
            self.lines["parts/parts.txt"] = [f"{i} {name}" for i, name in enumerate(parts, start=1)]
        for name, lines in self.lines.items():
            (base / name).parent.mkdir(exist_ok=True)
            (base / name).write_text("\n".join(lines) + "\n")
