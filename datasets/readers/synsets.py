"""ImageNet's 1000 classes: WordNet ids, which its folders are named by, and class names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from timm.data import ImageNetInfo

from common.errors import UserError
from datasets.config import DataConfig
from datasets.formats.tables import by_text, read_spaced


def imagenet_classes(names: Path | None) -> dict[str, str]:
    """Folder -> class name, sorted by folder, which is the order of a classifier's outputs.

    Read from the lines "folder name" of a file such as LOC_synset_mapping.txt, which may list other classes than the
    1000, or from timm's list if `names` is None. Raises UserError if the file is missing or has a folder twice.
    """
    if names is None:
        known = ImageNetInfo()
        return {folder: known.label_name_to_description(folder) for folder in known.label_names()}
    rows = by_text(read_spaced(names, ("folder", "name")), "folder")
    return {folder: rows[folder].text("name") for folder in sorted(rows)}


def class_list(config: DataConfig) -> Path | None:
    """The file data.class_names, if given."""
    return Path(config.class_names).expanduser() if config.class_names else None


def known_folders(classes: Mapping[str, str], folders: Sequence[str], base: Path) -> dict[str, str]:
    """The classes, all of them. Raises UserError if a folder in `base` is not one of them."""
    unknown = sorted(set(folders) - classes.keys())
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(
            f"{base / unknown[0]}{more} is not a class of ImageNet-1k; move it away, correct data.root or give the "
            "class list as data.class_names"
        )
    return dict(classes)
