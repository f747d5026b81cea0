"""Images and masks of any Pillow mode as plain arrays, or one line that names the unreadable file.

Orientation: with `rotate`, an image is rotated as its EXIF tag says, as viewers do. Annotations of published data sets
refer to the pixels as stored, because their loaders do not rotate.
Transparency: images are composited on white, so colours hidden under transparent pixels are not used.
"""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from common.errors import UserError

try:
    from PIL import AvifImagePlugin  # from Pillow 11.3 on, where it was built with libavif

    AVIF = ("AVIF",) if AvifImagePlugin.SUPPORTED else ()
except ImportError:
    AVIF = ()
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", *AVIF)
"""The formats read. Pillow knows more, but for EPS it runs an external program on the file."""


class UnreadableImageError(UserError):
    """An image file that is missing, broken, truncated, too large, or cannot be converted to 8 bits."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"cannot read image {path}: {reason}; restore the file or remove its line from the index")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.path, self.reason)


def read_image(path: Path | str, *, rotate: bool = True) -> np.ndarray:
    """[H, W, 3] uint8 RGB; 16-bit and float images are scaled to 8 bits. Raises UnreadableImageError."""
    image = _load(path, rotate)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_eight_bits(np.asarray(image), path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def read_rgba(path: Path | str, *, rotate: bool = True) -> np.ndarray:
    """[H, W, 4] uint8 RGB and alpha, not composited; alpha is 255 without transparency. Raises UnreadableImageError."""
    return np.array(_load(path, rotate).convert("RGBA"))


def read_grey(path: Path | str, *, rotate: bool = True) -> np.ndarray:
    """[H, W] uint8 grey values; 16-bit and float images are scaled to 8 bits. Raises UnreadableImageError."""
    image = _load(path, rotate)
    if image.mode.startswith(("I", "F")):
        return _to_eight_bits(np.asarray(image), path)
    return np.array(image.convert("L"))


def read_mask(path: Path | str, *, rotate: bool = True) -> np.ndarray:
    """[H, W] bool: True where the grey value is above zero. An image file or a .npy file.

    Raises UnreadableImageError.
    """
    if Path(path).suffix == ".npy":
        return _load_array(path) > 0
    image = _load(path, rotate)
    if not image.mode.startswith(("I", "F")):
        image = image.convert("L")
    return np.asarray(image) > 0


def read_indices(path: Path | str, *, rotate: bool = True) -> np.ndarray:
    """[H, W] uint8: the palette indices of an image, such as classes. Raises UnreadableImageError."""
    image = _load(path, rotate)
    if image.mode not in ("P", "L"):
        raise UnreadableImageError(path, f"its mode is {image.mode}, not palette indices (P or L)")
    return np.asarray(image)


def size_advice(first: tuple[float, ...], second: tuple[float, ...]) -> str:
    """What to do where the sizes of an image and its annotation differ: a swap of the sides is a rotation by EXIF."""
    return "set data.exif, or restore both files" if first == second[::-1] else "restore both files"


def check_regular(path: Path | str) -> None:
    """Raise UnreadableImageError unless the path is a regular file: a pipe or device could be read forever."""
    if not Path(path).is_file():
        raise UnreadableImageError(path, "not a regular file" if Path(path).exists() else "no such file")


def check_pixels(path: Path | str, width: int, height: int) -> None:
    """Raise UnreadableImageError for an image over Pillow's limit on pixels, before memory is taken for it."""
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise UnreadableImageError(path, f"{width} x {height} pixels is over Pillow's limit")


def _load(path: Path | str, rotate: bool) -> Image.Image:
    """The decoded image, rotated by its EXIF tag if `rotate`. All failures of Pillow become UnreadableImageErrors."""
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # real problems raise
            with Image.open(path, formats=FORMATS) as image:
                check_pixels(path, *image.size)
                image.load()
                return ImageOps.exif_transpose(image) if rotate else image.copy()
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImageError(path, "far over Pillow's limit on pixels (a decompression bomb?)") from None
    except Image.UnidentifiedImageError:
        raise UnreadableImageError(path, f"not an image in a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # on a broken file Pillow raises any kind of error
        raise UnreadableImageError(path, _reason(error)) from None


def _load_array(path: Path | str) -> np.ndarray:
    """[H, W] bool or numbers. Never unpickles; the memory map fails where the header promises more than the file."""
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes that overflow
            values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise UnreadableImageError(path, _reason(error)) from None
    if not (isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind in "biuf"):
        raise UnreadableImageError(path, "not a 2-D array of numbers")
    check_pixels(path, values.shape[1], values.shape[0])
    return values


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _to_eight_bits(values: np.ndarray, path: Path | str) -> np.ndarray:
    """[H, W] uint8 from 16-bit grey values (0..65535) or floats (0..1)."""
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):  # false for NaN too
        raise UnreadableImageError(path, f"its values run from {low} to {high}, outside 0..{top:g}")
    return np.round(values.astype(np.float64) * (255 / top)).astype(np.uint8)
