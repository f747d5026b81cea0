"""Image trees with one folder per class."""

import os
from pathlib import Path

from common.errors import UserError

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
"""Of image files; compared in lower case (ImageNet has .JPEG)."""


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the class folders in e.g. train/. Raises UserError where there are none."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is missing; data.root must be the folder that contains {folder.name}/") from None
    if not names:
        raise UserError(f"{folder} has no class folders; sort its images into {folder.name}/<class>/")
    return names


def image_names(folder: Path) -> list[str]:
    """Sorted names of the images in a class folder. Raises UserError where there are none."""
    names = sorted(name for name in os.listdir(folder) if Path(name).suffix.lower() in EXTENSIONS)
    if not names:
        raise UserError(f"{folder} has no images ({', '.join(sorted(EXTENSIONS))}); fill or remove the folder")
    return names
