"""Images and masks of any Pillow mode as plain arrays, or one line that names the unreadable file.

Orientation: with `rotate`, an image is rotated as its EXIF tag says, as viewers do. Annotations of published data sets
refer to the pixels as stored, because their loaders do not rotate.
Transparency: images are composited on white, so colours hidden under transparent pixels are not used.
"""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import UserError
from common.files import check_regular, read_file
from datasets.formats.image_source import ImageSource, check_pieces
from datasets.formats.stored_pixels import as_declared

try:
    from PIL import AvifImagePlugin  # from Pillow 11.3 on, where it was built with libavif

    AVIF = ("AVIF",) if AvifImagePlugin.SUPPORTED else ()
except ImportError:
    AVIF = ()
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", *AVIF)
"""The formats read. Pillow knows more, but for EPS it runs an external program on the file."""
LARGEST = 1 << 30
"""Bytes of an image file."""


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
    image = _eight_bits(_load(path, rotate), path)
    if image.has_transparency_data:
        image = _convert(image, "RGBA", path)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(_convert(image, "RGB", path))


def read_rgba(path: Path | str, *, rotate: bool = True) -> np.ndarray:
    """[H, W, 4] uint8 RGB and alpha, not composited; alpha is 255 without transparency. Raises UnreadableImageError."""
    return np.array(_convert(_eight_bits(_load(path, rotate), path), "RGBA", path))


def read_grey(path: Path | str, *, rotate: bool = True) -> np.ndarray:
    """[H, W] uint8 grey values; 16-bit and float images are scaled to 8 bits. Raises UnreadableImageError."""
    return np.array(_convert(_eight_bits(_load(path, rotate), path), "L", path))


def read_mask(path: Path | str, *, rotate: bool = True) -> np.ndarray:
    """[H, W] bool: True where the grey value is above zero. An image file or a .npy file.

    Raises UnreadableImageError.
    """
    if Path(path).suffix == ".npy":
        values = _load_array(path)
    else:
        image = _load(path, rotate)
        values = np.asarray(image if image.mode.startswith(("I", "F")) else _convert(image, "L", path))
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise UnreadableImageError(path, "it has values that are not a number")
    return values > 0


def read_indices(path: Path | str, *, rotate: bool = True) -> np.ndarray:
    """[H, W] uint8: the palette indices of an image, such as classes. Raises UnreadableImageError."""
    image = _load(path, rotate)
    if image.mode not in ("P", "L"):
        raise UnreadableImageError(path, f"its mode is {image.mode}, not palette indices (P or L)")
    return np.asarray(image)


def size_advice(first: tuple[float, ...], second: tuple[float, ...]) -> str:
    """What to do where the sizes of an image and its annotation differ: a swap of the sides is a rotation by EXIF."""
    return "set data.exif, or restore both files" if first == second[::-1] else "restore both files"


def check_pixels(path: Path | str, width: int, height: int) -> None:
    """Raise UnreadableImageError for an image over Pillow's limit on pixels, before memory is taken for it."""
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise UnreadableImageError(path, f"{width} x {height} pixels is over Pillow's limit")


def _load(path: Path | str, rotate: bool) -> Image.Image:
    """The decoded image, rotated by its EXIF tag if `rotate`. All failures of Pillow become UnreadableImageErrors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # real problems raise
            source = ImageSource(read_file(path, LARGEST))
            with Image.open(source, formats=FORMATS) as image:
                check_pixels(path, *image.size)
                check_pieces(image, source)
                return as_declared(image, rotate)
    except UserError:
        raise
    except FileNotFoundError:
        raise UnreadableImageError(path, "no such file") from None
    except Image.DecompressionBombError:
        raise UnreadableImageError(path, "far over Pillow's limit on pixels (a decompression bomb?)") from None
    except Image.UnidentifiedImageError:
        raise UnreadableImageError(path, f"not an image in a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # on a broken file Pillow raises any kind of error
        raise UnreadableImageError(path, reason_of(error)) from None


def _load_array(path: Path | str) -> np.ndarray:
    """[H, W] bool or numbers. Never unpickles; the memory map fails where the header promises more than the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes that overflow
            check_regular(path)
            values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise UnreadableImageError(path, reason_of(error)) from None
    if not (isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind in "biuf"):
        raise UnreadableImageError(path, "not a 2-D array of numbers")
    check_pixels(path, values.shape[1], values.shape[0])
    return values


def reason_of(error: Exception) -> str:
    """What went wrong, in at most 200 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def _convert(image: Image.Image, mode: str, path: Path | str) -> Image.Image:
    try:
        return image.convert(mode)
    except ValueError:  # CIELAB
        raise UnreadableImageError(path, f"its colours ({image.mode}) cannot be converted") from None


def _eight_bits(image: Image.Image, path: Path | str) -> Image.Image:
    """16-bit grey values (0..65535) and floats (0..1) as 8 bits; other images are returned as they are."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):  # false for NaN too
        raise UnreadableImageError(path, f"its values run from {low} to {high}, outside 0..{top:g}")
    grey = Image.fromarray(np.round(values.astype(np.float64) * (255 / top)).astype(np.uint8))
    if "transparency" not in image.info:
        return grey
    visible = (values != image.info["transparency"]).astype(np.uint8) * 255
    return Image.merge("LA", (grey, Image.fromarray(visible)))
