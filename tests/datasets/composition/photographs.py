"""Small drawn photographs: objects cut out as discs and bars, striped backgrounds."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.composition.files import BackgroundFile, ObjectFile

SHARED = Path(__file__).parents[4] / "shared" / "data"
"""Published data that a checkout may not have; tests that read it are skipped then."""
SOURCES = SHARED / "real_birds" / "sources"


def disc(size: int = 48, radius: float = 18, centre: tuple[float, float] = (24, 24)) -> np.ndarray:
    """[S, S] float alpha of a disc with a soft edge of 2 pixels; `centre` is (x, y)."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    return np.clip((radius - np.hypot(columns - centre[0], rows - centre[1])) / 2 + 0.5, 0, 1)


def photograph(seed: int, size: int = 48) -> np.ndarray:
    """[S, S, 3] uint8: another one for each seed."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def save_cutout(path: Path, seed: int, radius: float = 18) -> Path:
    """A photograph with an alpha channel."""
    return save(path, np.dstack([photograph(seed), (disc(radius=radius) * 255).astype(np.uint8)]))


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_sources(root: Path, order: int = 1) -> Path:
    """Lists and files in the form of real_birds/sources: 20 / 4 / 6 objects, 4 / 2 / 3 backgrounds of each kind.

    `order` -1 writes the files and lines in the reverse order.
    """
    objects, backgrounds = [], []
    for split, birds, places in (("train", 10, 4), ("val", 2, 2), ("test", 3, 3)):
        for label, kind in enumerate(("land", "water")):
            for i in range(birds):
                species = f"{kind}_species_{i % 3}"
                objects.append((f"{kind}bird/{species}/{split}_{i}.png", label, species, split))
            backgrounds += [(f"{kind}/{split}_{i}.png", kind, split) for i in range(places)]
    for name, *_ in objects[::order]:
        save_cutout(root / "objects" / name, seed=sum(name.encode()) * len(name))
    for name, *_ in backgrounds[::order]:
        save(root / "backgrounds" / name, photograph(sum(name.encode()), size=40))
    write_table(root / "objects.csv", ("file", "y", "species", "split"), objects[::order])
    write_table(root / "backgrounds.csv", ("file", "kind", "split"), backgrounds[::order])
    return root


def object_files(land: int, water: int, split: str | None = None, start: int = 0) -> list[ObjectFile]:
    """Records without files: two objects in each class."""
    kinds = [(0, i) for i in range(start, start + land)] + [(1, i) for i in range(start, start + water)]
    return [ObjectFile(f"{y}/{i // 2}/{i}.png", Path(f"{y}-{i}"), None, f"{y}-{i // 2}", y, split) for y, i in kinds]


def background_files(land: int, water: int, split: str | None = None, start: int = 0) -> list[BackgroundFile]:
    """Records without files; two backgrounds a photograph."""
    kinds = [(0, i) for i in range(start, start + land)] + [(1, i) for i in range(start, start + water)]
    return [BackgroundFile(f"{p}/{i}.jpg", Path(f"{p}-{i}"), p, split, f"{p}/{i // 2}") for p, i in kinds]
