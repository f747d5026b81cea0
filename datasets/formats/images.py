"""Reading images and masks of any Pillow mode into plain arrays, or saying in one line which file cannot be read.

Orientation: an image is turned as its EXIF tag asks, as every viewer shows it, and so is a mask. Annotations in text
files (boxes, key points) are taken to be in those displayed coordinates.
Transparency: a see-through image is laid on white; what hides under transparent pixels is never seen.
"""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from common.errors import UserError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")
"""What images come as. Pillow knows more, and for one of them (EPS) it starts a program with the file."""


class UnreadableImageError(UserError):
    """An image file that is missing, broken, truncated, too large, or of a kind that has no 8-bit meaning."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"cannot read image {path}: {reason}; restore the file or remove its line from the index")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.path, self.reason)


def read_image(path: Path | str) -> np.ndarray:
    """[H, W, 3] uint8 RGB. Deeper images are scaled to 8 bits, never wrapped. Raises UnreadableImageError."""
    image = _load(path)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_eight_bits(np.asarray(image), path))
    if image.has_transparency_data:
        image = _on_white(image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def read_mask(path: Path | str) -> np.ndarray:
    """[H, W] bool: True where the grey value is above zero, whatever the depth. Raises UnreadableImageError.

    An image file, or a NumPy array in a file .npy.
    """
    if Path(path).suffix == ".npy":
        return _load_array(path) > 0
    image = _load(path)
    if not image.mode.startswith(("I", "F")):
        image = image.convert("L")
    return np.asarray(image) > 0


def read_indices(path: Path | str) -> np.ndarray:
    """[H, W] uint8: the numbers that an image with a palette holds, such as classes. Raises UnreadableImageError."""
    image = _load(path)
    if image.mode not in ("P", "L"):
        raise UnreadableImageError(path, f"its pixels are {image.mode}, not numbers of a palette")
    return np.asarray(image)


def check_regular(path: Path | str) -> None:
    """Raise UnreadableImageError for what is no file: one reads a pipe or a device without end."""
    if not Path(path).is_file():
        raise UnreadableImageError(path, "no regular file" if Path(path).exists() else "no such file")


def check_pixels(path: Path | str, width: int, height: int) -> None:
    """Raise UnreadableImageError for an image over Pillow's limit on pixels, before memory is taken for it."""
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise UnreadableImageError(path, f"{width} x {height} pixels is over Pillow's limit")


def _load(path: Path | str) -> Image.Image:
    """All pixels of an image file, upright, with every way Pillow fails turned into one kind of error."""
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is worth a word is an error
            with Image.open(path, formats=FORMATS) as image:
                check_pixels(path, *image.size)
                image.load()
                return ImageOps.exif_transpose(image)
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImageError(path, "far over Pillow's limit on pixels (a decompression bomb?)") from None
    except Image.UnidentifiedImageError:
        raise UnreadableImageError(path, f"not an image in a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # parsers of broken files raise anything at all
        raise UnreadableImageError(path, _reason(error)) from None


def _load_array(path: Path | str) -> np.ndarray:
    """[H, W] bool or numbers. Nothing in the file is unpickled, nor is more of it read than it has."""
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that overflow
            values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise UnreadableImageError(path, _reason(error)) from None
    if not (isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind in "biuf"):
        raise UnreadableImageError(path, "no array of rows and columns of numbers")
    check_pixels(path, values.shape[1], values.shape[0])
    return values


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _to_eight_bits(values: np.ndarray, path: Path | str) -> np.ndarray:
    """[H, W] uint8 of a 16-bit grey image (0..65535), or of a floating-point one (0..1)."""
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):  # also catches not-a-number
        raise UnreadableImageError(path, f"its values run from {low} to {high}, outside 0..{top:g}")
    return np.round(values.astype(np.float64) * (255 / top)).astype(np.uint8)


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
