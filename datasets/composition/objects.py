"""Find the objects: CUB-200-2011, a list, or a folder per class, with masks or alpha channels."""

from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from common.errors import UserError
from datasets.composition.files import KINDS, LABELS, ObjectFile, copies, folder_of_list, image_files, split_of, word
from datasets.composition.recipe import bare_name, published_label
from datasets.formats.folders import EXTENSIONS
from datasets.formats.layout import CUB
from datasets.formats.tables import by_text, read_csv, read_spaced
from datasets.readers.cub import column_of
from datasets.readers.cub_annotations import read_annotations

Labelling = Callable[[str], int]
"""A category (a folder below the objects' folder) to its label."""


def find_objects(source: Path, masks: Path | None, labels: Path | None, published: bool) -> list[ObjectFile]:
    """All objects of `source`, sorted by name: a .csv list, CUB's folder (or its parent), or a folder per class.

    `masks` has one mask per image, under the same path with any image ending. `labels` is a text file with lines "land
    CLASS" or "water CLASS"; classes that it does not name have the label of the published Waterbirds if `published`,
    else that of a folder land/ or water/ above them. Raises UserError for anything missing.
    """
    if masks is not None and not masks.is_dir():
        raise UserError(f"--masks: no folder {masks}; correct the path")
    cub = next((base for base in (source, source / CUB) if (base / "images.txt").is_file()), None)
    if published and cub is None:
        raise UserError(f"--preset waterbirds: {source} has no images.txt; give --objects CUB_200_2011")
    label_of = _Labels(labels, published)
    if source.suffix.lower() == ".csv":
        if labels is not None:
            raise UserError("--labels contradicts --objects: the column y of a list states the labels")
        found = _listed(source, masks)
    elif cub is not None:
        found = _of_cub(cub, masks or cub / "segmentations", label_of)
    else:
        found = _in_folders(source, masks, label_of)
    label_of.check_all_used()
    found.sort(key=lambda each: each.name)
    _check(found)
    if cub is None:  # CUB's splits are used as published
        _check_copies(found)
    return found


class _Labels:
    """Category -> label. Raises UserError for a category without one."""

    def __init__(self, path: Path | None, published: bool) -> None:
        rows = by_text(read_spaced(path, ("label", "category")), "category") if path else {}
        self.rows, self.published = rows, published
        self.used: set[str] = set()

    def __call__(self, category: str) -> int:
        folders = PurePosixPath(category).parts
        # A list may name a class by its whole path, its folder, or its folder without CUB's number.
        for name in (category, folders[-1], bare_name(folders[-1])):
            if name in self.rows:
                self.used.add(name)
                return LABELS[word(self.rows[name], "label", tuple(LABELS))]
        if self.published:
            return published_label(folders[-1])
        if words := [folder.lower() for folder in folders if folder.lower() in LABELS]:
            return LABELS[words[0]]
        advice = 'give --labels with a line "land NAME" or "water NAME", or put its folder into land/ or water/'
        raise UserError(f"--objects: class {category} has no label; {advice}")

    def check_all_used(self) -> None:
        """Raise UserError for a line that names no class."""
        for name, row in self.rows.items():
            if name not in self.used:
                raise row.error(f"--objects has no class {name}; correct the name or remove the line")


def _listed(path: Path, masks: Path | None) -> list[ObjectFile]:
    folder, found = folder_of_list(path), []
    rows = read_csv(path, ("file", "y"), optional=("species", "split"))
    for name, row in by_text(rows, "file").items():
        file, label = row.file("file"), row.integer("y", (0, 1))
        category = row.text("species") if "species" in row.cells else PurePosixPath(file).parent.name or KINDS[label]
        if category == ".." or PurePosixPath(category).name != category:  # it becomes a folder
            raise row.error(f"species is {category!r}; it must be a name without /")
        mask = None if masks is None else _mask_of(name, masks)
        found.append(ObjectFile(file, folder / file, mask, category, label, split_of(row)))
    return found


def _of_cub(base: Path, masks: Path, label_of: Labelling) -> list[ObjectFile]:
    if not masks.is_dir():
        raise UserError(f"{masks} is missing; unpack CUB's segmentations (a separate download) there, or give --masks")
    notes = read_annotations(base)
    training, _ = column_of(notes, base / "train_test_split.txt", "is_training", (0, 1))
    found = []
    for key, name in zip(notes.ids.tolist(), notes.position, strict=True):
        category, split = PurePosixPath(name).parent.name, "train" if training[key] else "test"
        file, mask = base / "images" / name, _mask_of(name, masks)
        found.append(ObjectFile(name, file, mask, category, label_of(category), split, rotate=False))
    return found


def _in_folders(folder: Path, masks: Path | None, label_of: Labelling) -> list[ObjectFile]:
    names: Iterable[str] = image_files(folder, "--objects")
    if masks is not None and masks.resolve() == folder.resolve():  # a.png is the mask of a.jpg beside it
        names = [name for name in names if not name.lower().endswith(".png")]
    found = []
    for name in names:
        category = PurePosixPath(name).parent.as_posix()
        if category == ".":
            raise UserError(f"--objects: {folder / name} is in no class folder; move it to {folder.name}/CLASS/")
        label = label_of(category)
        mask = None if masks is None else _mask_of(name, masks)
        found.append(ObjectFile(name, folder / name, mask, PurePosixPath(category).name, label, None))
    return found


def _mask_of(name: str, masks: Path) -> Path:
    """The mask of an image: the same path with .png, or else another ending. It need not exist."""
    stem = masks / name
    options = [stem.with_suffix(suffix) for suffix in (".png", *sorted(EXTENSIONS - {".png"}))]
    return next((mask for mask in options if mask.is_file()), options[0])


def _check(objects: list[ObjectFile]) -> None:
    """Raise UserError unless every object exists, under a name of its own, and a category has one label."""
    first: dict[str, ObjectFile] = {}
    labels: dict[str, ObjectFile] = {}
    for each in objects:
        if not each.path.is_file():
            raise UserError(f"{each.path} is missing; restore it or remove it from the list of objects")
        other = first.setdefault(f"{each.category}/{each.stem}", each)
        if other is not each:
            raise UserError(f"{other.path} and {each.path} would have the same name {other.stem}; rename one of them")
        if labels.setdefault(each.category, each).label != each.label:
            raise UserError(f"class {each.category} has both labels ({labels[each.category].name}, {each.name})")
    for label, kind in enumerate(KINDS):
        if not any(each.label == label for each in objects):
            raise UserError(f"--objects: no object belongs on {kind}; two classes are needed (--labels)")


def _check_copies(objects: list[ObjectFile]) -> None:
    """Raise UserError for two files with the same bytes that could be in different splits."""
    by_path = {each.path: each for each in objects}
    for path, first in copies(by_path).items():
        splits = (by_path[first].split, by_path[path].split)
        if path != first and (splits[0] != splits[1] or None in splits):
            raise UserError(f"{first} and {path} are the same photograph; remove one of them")
