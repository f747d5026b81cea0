"""ImageNet-9, the backgrounds challenge (Xiao et al. 2021): nine classes with other backgrounds or none.

Published layout: <variant>/val/<00_dog .. 08_fish>/, fg_mask/val/<class>/<image>.npy, and in_to_in9.json from the
challenge's repository. Test only, for models of ImageNet's 1000 classes; data.variant picks the set.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.files import parse_json, read_file
from datasets.config import DataConfig
from datasets.formats.folders import class_folders
from datasets.readers.files import FileDataset, Record, open_root
from datasets.readers.imagenet_shifts import check_test_only, folder_records
from datasets.readers.synsets import class_list, imagenet_classes
from datasets.types import DatasetInfo

MAPPING = "in_to_in9.json"
MASKS = "fg_mask"
NONE = "(none of the nine)"
NUM_CLASSES = 9
VARIANTS = ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg", "no_fg", "only_bg_b", "only_bg_t")
WITH_OBJECT = ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg")
IMAGE = re.compile(r"n\d+_\d+")
"""Image id of the foreground object, first in "fg_n..._bg_n..."; masks are named by it."""


class ImageNet9(FileDataset):
    """The set config.variant. Labels are the numbers at the start of the class folders' names.

    With config.output_rule "argmax" there is a tenth class, which no image has: that of outputs outside the nine.
    Raises UserError, naming file or folder, on anything missing or wrong.
    """

    rotate = False

    def __init__(self, config: DataConfig, split: str) -> None:
        check_test_only("imagenet9", split)
        if config.variant not in VARIANTS:
            raise UserError(f"data.variant: ImageNet-9 has no set {config.variant!r}; known: {', '.join(VARIANTS)}")
        root = open_root(config, f"{config.variant}/val/ and {MAPPING}")
        base = root / config.variant / "val"
        folders = nine_folders(base)
        names = tuple(folder.partition("_")[2] for folder in folders)
        mapping = Path(config.class_mapping).expanduser() if config.class_mapping else root / MAPPING
        class_of_output = read_mapping(mapping, len(imagenet_classes(class_list(config))))
        if config.output_rule == "argmax":
            names = (*names, NONE)
            class_of_output = tuple(NUM_CLASSES if label < 0 else label for label in class_of_output)
        records = folder_records(base, {folder: label for label, folder in enumerate(folders)})
        if config.variant in WITH_OBJECT:
            records = with_masks(records, root / MASKS / "val")
        super().__init__(DatasetInfo("imagenet9", names, class_of_output=class_of_output), records, split)


def nine_folders(base: Path) -> list[str]:
    """The class folders of one set, in the order of their numbers. Raises UserError unless they are the nine."""
    if not base.is_dir():
        raise UserError(f"{base} is missing; data.root must contain the sets of ImageNet-9, or correct data.variant")
    folders = class_folders(base)
    if [folder.partition("_")[0] for folder in folders] != [f"{label:02d}" for label in range(NUM_CLASSES)]:
        raise UserError(f"{base} must have nine folders 00_dog to 08_fish, not {', '.join(folders)}; restore it")
    return folders


def read_mapping(path: Path, outputs: int) -> tuple[int, ...]:
    """The class of ImageNet-9 for each class of ImageNet, or -1 (the file has another value, or none).

    Raises UserError for a file that is missing or invalid, or that maps nothing to one of the nine classes.
    """
    try:
        table = {int(key): int(value) for key, value in parse_json(read_file(path)).items()}
    except FileNotFoundError:
        problem = f"{path} is missing; take it from the challenge's repository or give data.class_mapping"
        raise UserError(problem) from None
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f'{path} must map "0".."{outputs - 1}" to integers ({error}); restore the file') from None
    strange = [key for key in table if not 0 <= key < outputs]
    lacking = sorted(set(range(NUM_CLASSES)) - set(table.values()))
    if strange or lacking:
        what = f"has a class {strange[0]}" if strange else f"maps no class to {lacking[0]}"
        raise UserError(f"{path} {what}; it must map {outputs} classes of ImageNet to 0..8; restore the file")
    found = (table.get(output, -1) for output in range(outputs))
    return tuple(label if 0 <= label < NUM_CLASSES else -1 for label in found)


def with_masks(records: Sequence[Record], folder: Path) -> list[Record]:
    """The records with the masks of their objects; unchanged if the folder has none of the masks."""
    masks = [folder / record.path.parent.name / f"{_image(record.path)}.npy" for record in records]
    if not any(mask.is_file() for mask in masks):
        return list(records)
    return [Record(record.path, record.label, mask=mask) for record, mask in zip(records, masks, strict=True)]


def _image(path: Path) -> str:
    match = IMAGE.search(path.stem)
    return match.group() if match else path.stem
