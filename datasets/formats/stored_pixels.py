"""Decode an image as its tags say, where Pillow reads the values but not what they mean."""

from typing import Any

import numpy as np
from PIL import Image, ImageOps, TiffTags
from PIL.TiffImagePlugin import TiffImageFile

BITS, MEANING, SAMPLES = (TiffTags.lookup(number).value for number in (258, 262, 339))
SIGNED, WHITE_IS_ZERO = 2, 0
PNG_STEPS = {"1": 255, "L;2": 85, "L;4": 17}
"""Grey values of one step, by how a PNG stores them; its transparent value counts steps."""


def as_declared(image: Image.Image, rotate: bool) -> Image.Image:
    """The pixels of an opened file, rotated by its EXIF tag if `rotate`.

    Values of 12 bits become floats in 0..1; where white is stored as zero, they are inverted; 32 bits without a sign
    that do not fit into 32 with one become the largest that does. Raises ValueError for what cannot be read as it is
    meant, and whatever Pillow raises.
    """
    stored = _stored_form(image)
    image.load()
    turned = ImageOps.exif_transpose(image) if rotate else image.copy()
    if image.format == "PNG" and isinstance(image.info.get("transparency"), int):
        turned.info["transparency"] = image.info["transparency"] * PNG_STEPS.get(stored, 1)
    if image.format == "PNG" and stored == "RGB;16B" and "transparency" in image.info:
        raise ValueError("one of its 16-bit colours is transparent, which 8 bits cannot tell from others")
    return _tiff_values(turned, image.tag_v2) if isinstance(image, TiffImageFile) else turned


def _stored_form(image: Image.Image) -> str:
    """Pillow's name for how the file stores a pixel, such as L;4."""
    tiles = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    return str(arguments if isinstance(arguments, str) else next(iter(arguments or ("",))))


def _tiff_values(image: Image.Image, tags: Any) -> Image.Image:
    bits, signed = tags.get(BITS, (1,))[0], SIGNED in tags.get(SAMPLES, (1,))
    if bits == 8 and signed:
        raise ValueError("its 8-bit values have a sign")
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if bits == 32 and values.dtype.kind == "i" and not signed:
        values = np.minimum(values.view(np.uint32), 2**31 - 1).astype(np.int32)
    if bits == 12:
        values = (values / 4095).astype(np.float32)
    if tags.get(MEANING) == WHITE_IS_ZERO:
        values = (1.0 if values.dtype.kind == "f" else 65535) - values
    return Image.fromarray(values)
