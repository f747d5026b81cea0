"""Files that `python -m explain` reads and writes: image files, sheets that may be overwritten, saved maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from common.errors import UserError, printable

if TYPE_CHECKING:
    from explain.sheet import ExplainedImage

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".jp2"})
MAP_SUFFIXES = (".npy", ".h5")
FORMAT = "faithful-vit explain maps 1"
"""Attribute "format" of the .h5 files written here."""


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files, and in place of a folder its images, sorted by name. Raises UserError for a folder without images."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"IMAGE: the folder {path} has no images ({', '.join(sorted(SUFFIXES))})")
        found += inside
    return found


def check_output(out: Path, flag: str, inputs: Sequence[Path], overwrite: bool) -> None:
    """Raise UserError if `out` is an input, or, unless `overwrite`, an existing file that was not made here."""
    if not out.exists():
        return
    if not out.is_file():
        raise UserError(f"{flag}: {out} is not a file; name a file")
    if any(path.exists() and out.samefile(path) for path in inputs):
        raise UserError(f"{flag}: {out} is one of the images; name another file")
    if not overwrite and not _made_here(out):
        raise UserError(f"{flag}: {out} exists and was not written by this command; name another file or --overwrite")


def _made_here(path: Path) -> bool:
    if path.suffix.lower() == ".h5":
        import h5py  # slow to import

        try:
            with h5py.File(path) as file:
                return bool(file.attrs.get("format") == FORMAT)
        except OSError:
            return False
    try:
        with Image.open(path, formats=("PNG",)) as image:
            # The text of `report.sheets.SOFTWARE`, whose import would be slow.
            return str(image.info.get("Software", "")).startswith("Faithful ViT")
    except (OSError, ValueError, SyntaxError):
        return False


def write_maps(path: Path, images: Sequence["ExplainedImage"], names: Sequence[str]) -> Path:
    """Save the unscaled maps, float32.

    .npy, for a single method: [images, targets, h, w]. .h5: a dataset of this shape per method, and `paths` [images],
    `targets` [images, targets], `probabilities` [images, classes] and `class_names`. A method that does not depend on
    the class has one map per image. Raises UserError if the file cannot be written.
    """
    maps = {name: np.stack([image.maps[name].float().numpy() for image in images]) for name in images[0].maps}
    temporary = path.with_name(f".{path.name}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(temporary, next(iter(maps.values())))
        else:
            _write_h5(temporary, maps, images, names)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"--save-maps: cannot write {path} ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _write_h5(
    path: Path, maps: Mapping[str, np.ndarray], images: Sequence["ExplainedImage"], names: Sequence[str]
) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["format"] = FORMAT
        for name, values in maps.items():
            file.create_dataset(f"maps/{name}", data=values, compression="gzip")
        text = h5py.string_dtype()
        file.create_dataset("paths", data=[str(image.path) for image in images], dtype=text)
        file.create_dataset("class_names", data=[printable(name) for name in names], dtype=text)
        file["targets"] = np.array([image.targets for image in images])
        file["probabilities"] = np.stack([image.probability.numpy() for image in images])
