"""Image trees with one folder per class."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.errors import UserError
from datasets.formats.notices import say_once

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp", ".avif", ".jp2", ".tif", ".tiff", ".ppm", ".pgm")
)
"""Of image files; compared in lower case (ImageNet has .JPEG)."""
NOT_DATA = frozenset(("thumbs.db", "desktop.ini", "__macosx", "__pycache__"))
"""Files and folders that systems leave behind, in lower case; so are those that begin with a dot."""


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the class folders in e.g. train/. Raises UserError where there are none."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and is_data(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is missing; data.root must be the folder that contains {folder.name}/") from None
    if not names:
        raise UserError(f"{folder} has no class folders; sort its images into {folder.name}/<class>/")
    return names


def class_images(base: Path, folders: Sequence[str]) -> dict[str, list[str]]:
    """Class folder in `base` -> sorted relative paths of the images in it, at any depth.

    One line says how many files are left out because they are no images. Raises UserError for a folder without images.
    """
    left_out: Counter[str] = Counter()
    images: dict[str, list[str]] = {}
    for folder in folders:
        images[folder], others = [], 0
        for name in files_below(base / folder):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in EXTENSIONS:
                images[folder].append(name)
            else:
                left_out[suffix or "no ending"] += 1
                others += 1
        if not images[folder]:
            kinds = f"; its {others} files are no images" if others else ""
            raise UserError(
                f"{base / folder} has no images ({', '.join(sorted(EXTENSIONS))}){kinds}; fill or remove the folder"
            )
        images[folder].sort()
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in left_out.most_common(5))
        say_once(f"{base}: {left_out.total()} files are left out, they are no images ({kinds})")
    return images


def files_below(folder: Path) -> Iterator[str]:
    """Relative paths of all files at any depth, "a/b.jpg", except those of `NOT_DATA`; follows links."""
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if is_data(name) and not _leads_back(os.path.join(here, name))]
        below = os.path.relpath(here, folder).replace(os.sep, "/")
        yield from (name if below == "." else f"{below}/{name}" for name in files if is_data(name))


def is_data(name: str) -> bool:
    """Whether a file or folder may belong to the data."""
    return not name.startswith(".") and name.lower() not in NOT_DATA


def _leads_back(path: str) -> bool:
    """Whether a folder is a link to one that it is in, which would never end."""
    return os.path.islink(path) and Path(path).parent.resolve().is_relative_to(Path(path).resolve())
