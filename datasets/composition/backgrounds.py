"""Find the backgrounds: a list, folders of each kind, or the categories of Places365 that Waterbirds uses."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import UserError
from datasets.composition.files import (
    KINDS,
    LABELS,
    BackgroundFile,
    copies,
    folder_of_list,
    image_files,
    split_of,
    word,
)
from datasets.composition.recipe import LAND_CATEGORIES, WATER_CATEGORIES
from datasets.formats.tables import by_text, read_csv


def listed_backgrounds(path: Path) -> list[BackgroundFile]:
    """Those of a .csv list: file, kind (land or water), and where it has them split and photograph.

    Raises UserError naming file and line.
    """
    folder, found = folder_of_list(path), []
    rows = read_csv(path, ("file", "kind"), optional=("split", "photograph"))
    for name, row in by_text(rows, "file").items():
        place = LABELS[word(row, "kind", tuple(LABELS))]
        photograph = row.text("photograph") if "photograph" in row.cells else name
        found.append(BackgroundFile(name, folder / row.file("file"), place, split_of(row), photograph))
    return _checked(found)


def backgrounds_in(folders: tuple[Sequence[Path], Sequence[Path]]) -> list[BackgroundFile]:
    """All images below the folders of land and those of water; named from the given folder on."""
    found = []
    for place, given in enumerate(folders):
        for folder in given:
            for name in image_files(folder, f"--{KINDS[place]}"):
                full = f"{folder.resolve().name}/{name}"
                found.append(BackgroundFile(full, folder / name, place, None, full))
    return _checked(found)


def backgrounds_of_places(places: Path) -> list[BackgroundFile]:
    """The categories of Places365 that the published Waterbirds uses; named from `places` on.

    A category lies in its letter's folder (b/bamboo_forest, f/forest/broadleaf) or, as in the small version, directly
    in `places` (bamboo_forest, forest-broadleaf). Raises UserError for a category that is missing.
    """
    found = []
    for place, categories in enumerate((LAND_CATEGORIES, WATER_CATEGORIES)):
        for category in categories:
            folder = _category(places, category)
            for name in image_files(folder, "--places"):
                full = (folder / name).relative_to(places).as_posix()
                found.append(BackgroundFile(full, folder / name, place, None, full))
    return _checked(found)


def _category(places: Path, category: str) -> Path:
    options = [places / category[0] / category, places / category, places / category.replace("/", "-")]
    for folder in options:
        if folder.is_dir():
            return folder
    raise UserError(f"--places: none of {', '.join(map(str, options))} is a folder; give the folder that has it")


def _checked(backgrounds: Iterable[BackgroundFile]) -> list[BackgroundFile]:
    """Sorted by name; files with the same bytes are of one photograph.

    Raises UserError unless every file exists, once, and a photograph is in one split and of one kind.
    """
    found = sorted(backgrounds, key=lambda each: each.name)
    names: dict[str, BackgroundFile] = {}
    files: dict[Path, BackgroundFile] = {}
    for each in found:
        if not each.path.is_file():
            raise UserError(f"{each.path} is missing; restore it or remove it from the list of backgrounds")
        if (other := names.setdefault(each.name, each)) is not each:
            raise UserError(f"{other.path} and {each.path} have the same name {each.name}; rename one of the folders")
        if (other := files.setdefault(each.path.resolve(), each)) is not each:
            raise UserError(f"background {each.path} is given twice ({other.path}); give each file once")
    first = copies(each.path for each in found)
    photographs = {each.path: each.photograph for each in found}
    found = [replace(each, photograph=photographs[first[each.path]]) for each in found]
    of: dict[str, BackgroundFile] = {}
    for each in found:
        other = of.setdefault(each.photograph, each)
        if (other.split, other.place) != (each.split, each.place):
            problem = f"{other.path} and {each.path} are of one photograph but differ in split or kind"
            raise UserError(f"{problem}; correct or remove one of them")
    return found
