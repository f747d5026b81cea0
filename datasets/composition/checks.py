"""Check all files before the first image is composed, and name all that cannot be used at once."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from rich.progress import track

from common.errors import UserError
from common.files import read_file
from datasets.composition.pixels import PixelOptions, enlargement, read_cutout, too_small
from datasets.composition.plan import PlannedImage
from datasets.formats.image_source import ImageSource
from datasets.formats.images import FORMATS, UnreadableImageError

EXIF_ORIENTATION = 0x0112


def check_usable(images: Sequence[PlannedImage], options: PixelOptions) -> None:
    """Raise UserError for objects without a mask or with an empty one, and for backgrounds that are too small.

    Of backgrounds, only the header is read here.
    """
    problems = dict(_problems(images, options))
    if len(problems) > 1:
        names, first = ", ".join(problems), next(iter(problems.values()))
        raise UserError(f"{first} (and {len(problems) - 1} more; --exclude leaves files out: {names})")
    for error in problems.values():
        raise error


def _problems(images: Sequence[PlannedImage], options: PixelOptions) -> Iterator[tuple[str, UserError]]:
    """Name of a file that cannot be used, and why."""
    seen = set()
    for image in track(images, "checking"):
        if image.object.name not in seen:
            seen.add(image.object.name)
            try:
                read_cutout(image.object)
            except UserError as error:
                yield image.object.name, error
                continue
        try:
            _check_background(image, options)
        except UserError as error:
            yield image.background.name, error


def _check_background(planned: PlannedImage, options: PixelOptions) -> None:
    target = (options.size, options.size)
    if options.placement == "original":
        target = _image_size(planned.object.path)
    size = _image_size(planned.background.path)
    if enlargement(size, target) > options.max_upscale:
        raise too_small(planned.background.path, size, target)


def _image_size(path: Path) -> tuple[int, int]:
    """Width and height as displayed, from the file's header. Raises UnreadableImageError."""
    try:
        with Image.open(ImageSource(read_file(path)), formats=FORMATS) as image:
            turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
            return (image.height, image.width) if turned else image.size
    except Exception as error:  # on a broken file Pillow raises any kind of error
        raise UnreadableImageError(path, f"not an image in a known format ({type(error).__name__})") from None
