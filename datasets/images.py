"""Reading pictures and masks of any Pillow mode into plain arrays, or saying in one line which file cannot be read.

Orientation: a picture is turned as its EXIF tag asks, as every viewer shows it, and so is a mask. Annotations in text
files (boxes, key points) are taken to be in those displayed coordinates.
Transparency: a see-through picture is laid on white; what hides under transparent pixels is never seen.
"""

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from common.errors import UserError


class UnreadablePictureError(UserError):
    """A picture file that is missing, broken, truncated, too large, or of a kind that has no 8-bit meaning."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"cannot read picture {path}: {reason}; restore the file or remove its line from the index")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.path, self.reason)


def read_image(path: Path | str) -> np.ndarray:
    """[H, W, 3] uint8 RGB. Deeper pictures are scaled to 8 bits, never wrapped. Raises UnreadablePictureError."""
    picture = _load(path)
    if picture.mode.startswith(("I", "F")):
        picture = Image.fromarray(_to_eight_bits(np.asarray(picture), path))
    if picture.has_transparency_data:
        picture = _on_white(picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))


def read_mask(path: Path | str) -> np.ndarray:
    """[H, W] bool: True where the grey value is above zero, whatever the depth. Raises UnreadablePictureError.

    A picture file, or a NumPy array in a file .npy.
    """
    if Path(path).suffix == ".npy":
        return _load_array(path) > 0
    picture = _load(path)
    if not picture.mode.startswith(("I", "F")):
        picture = picture.convert("L")
    return np.asarray(picture) > 0


def read_indices(path: Path | str) -> np.ndarray:
    """[H, W] uint8: the numbers that a picture with a palette holds, such as classes. Raises UnreadablePictureError."""
    picture = _load(path)
    if picture.mode not in ("P", "L"):
        raise UnreadablePictureError(path, f"its pixels are {picture.mode}, not numbers of a palette")
    return np.asarray(picture)


def _load(path: Path | str) -> Image.Image:
    """All pixels of a picture file, upright, with every way Pillow fails turned into one kind of error."""
    try:
        with Image.open(path) as picture:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and picture.width * picture.height > limit:
                raise UnreadablePictureError(path, f"{picture.width} x {picture.height} pixels is over Pillow's limit")
            picture.load()
            return ImageOps.exif_transpose(picture)
    except FileNotFoundError:
        raise UnreadablePictureError(path, "no such file") from None
    except Image.DecompressionBombError:
        raise UnreadablePictureError(path, "far over Pillow's limit on pixels (a decompression bomb?)") from None
    except Image.UnidentifiedImageError:
        raise UnreadablePictureError(path, "not a picture in any format Pillow knows") from None
    except (OSError, SyntaxError, EOFError, ValueError, IndexError, TypeError, struct.error) as error:
        if isinstance(error, UserError):
            raise
        raise UnreadablePictureError(path, " ".join(str(error).split()) or type(error).__name__) from None


def _load_array(path: Path | str) -> np.ndarray:
    """[H, W] bool or numbers. Nothing in the file is unpickled."""
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UnreadablePictureError(path, "no such file") from None
    except (OSError, EOFError, ValueError) as error:
        raise UnreadablePictureError(path, " ".join(str(error).split()) or type(error).__name__) from None
    if not (isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind in "biuf"):
        raise UnreadablePictureError(path, "no array of rows and columns of numbers")
    return values


def _to_eight_bits(values: np.ndarray, path: Path | str) -> np.ndarray:
    """[H, W] uint8 of a 16-bit grey picture (0..65535), or of a floating-point one (0..1)."""
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):  # also catches not-a-number
        raise UnreadablePictureError(path, f"its values run from {low} to {high}, outside 0..{top:g}")
    return np.round(values.astype(np.float64) * (255 / top)).astype(np.uint8)


def _on_white(picture: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
