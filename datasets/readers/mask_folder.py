"""Masks from a folder of your own (data.mask_folder) instead of the data set's."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import UserError
from datasets.formats.images import read_mask
from datasets.readers.files import FileDataset, check_files, check_mask_size, masks_are_read
from datasets.types import RawDataset, RawSample


class MaskedDataset:
    """The records of `raw` with the masks of `folder`, rotated by EXIF or not as its images are; a RawDataset.

    A mask has its image's relative path with the suffix .png. Raises UserError at construction if one is missing, or
    if the data set does not consist of image files.
    """

    def __init__(self, raw: RawDataset, folder: Path) -> None:
        if not isinstance(raw, FileDataset):
            raise UserError(f"data.mask_folder: data set {raw.info.name!r} has no image files to match masks to")
        self.raw = raw
        self.info, self.labels, self.groups = raw.info, raw.labels, raw.groups
        self.masks = find_masks([record.path for record in raw.records], folder)

    def __len__(self) -> int:
        return len(self.raw)

    def files(self) -> list[Path]:
        """Every file that `read` opens."""
        return [*self.raw.files(), *self.masks]

    def read(self, index: int) -> RawSample:
        """One record with its mask. Raises UserError if the mask is unreadable or not as large as the image."""
        sample = self.raw.read(index)
        if not masks_are_read():
            return sample
        mask = read_mask(self.masks[index], rotate=self.raw.rotate)
        check_mask_size(mask, self.masks[index], sample.image, sample.path)
        return replace(sample, mask=mask)


def find_masks(images: Sequence[Path], folder: Path) -> list[Path]:
    """The mask file of every image. The first image's mask decides how many parent folders a relative path has.

    Raises UserError naming the first missing mask, or two images with the same mask.
    """
    if not folder.is_dir():
        raise UserError(f"data.mask_folder: no folder {folder}; correct the path")
    depths = range(len(images[0].parts) - bool(images[0].anchor), 0, -1)
    depth = next((depth for depth in depths if _mask_of(images[0], folder, depth).is_file()), None)
    if depth is None:
        name = images[0].with_suffix(".png").name
        raise UserError(f"data.mask_folder: {folder} has no {name}, directly or below the folders of {images[0]}")
    owner: dict[Path, Path] = {}
    for image in images:
        other = owner.setdefault(_mask_of(image, folder, depth), image)
        if other != image:
            problem = f"{other} and {image} have the same mask"
            raise UserError(f"data.mask_folder: {problem}; keep the images' folders in {folder}")
    check_files(owner, "every image needs a mask at its own path below data.mask_folder")
    return list(owner)


def _mask_of(image: Path, folder: Path, depth: int) -> Path:
    """The mask's path if the image's relative path is its last `depth` parts."""
    return folder.joinpath(*image.parts[-depth:]).with_suffix(".png")
