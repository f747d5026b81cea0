"""Trees of images: one folder for each class."""

import os
from pathlib import Path

from common.errors import UserError

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
"""Of images, in lower case; on disk in any (ImageNet's are .JPEG)."""


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in a folder, such as train/ or val/. Raises UserError where there are none."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is missing; data.root must be the folder that holds {folder.name}/") from None
    if not names:
        raise UserError(f"{folder} has no class folders; sort its images into {folder.name}/<class>/")
    return names


def image_names(folder: Path) -> list[str]:
    """Sorted names of the images in a class folder. Raises UserError where there are none."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if Path(entry.name).suffix.lower() in EXTENSIONS)
    if not names:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(EXTENSIONS))}); fill or remove the folder")
    return names
