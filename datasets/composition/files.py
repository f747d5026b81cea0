"""The files that images are composed of."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from common.errors import UserError
from datasets.formats.folders import EXTENSIONS
from datasets.formats.tables import IndexRow, by_text, read_spaced
from datasets.types import SPLITS

KINDS = ("land", "water")
"""The two kinds of place."""
LABELS = {"land": 0, "landbird": 0, "0": 0, "water": 1, "waterbird": 1, "1": 1}
"""Words for a class or a kind of place."""


@dataclass(frozen=True)
class ObjectFile:
    """A photograph of an object, with the mask that cuts it out."""

    name: str
    """Path below the folder of the objects, with /."""
    path: Path
    mask: Path | None
    """Grey image of the object; None: the alpha channel of `path`."""
    category: str
    """Such as a species."""
    label: int
    """0 or 1: the kind of place where the object belongs."""
    split: str | None
    """Where the source states one."""
    rotate: bool = True
    """Whether to apply the EXIF orientation of `path`; published masks refer to the pixels as stored."""

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return Path(self.name).stem


@dataclass(frozen=True)
class BackgroundFile:
    """A photograph of a place."""

    name: str
    path: Path
    place: int
    """0 land, 1 water."""
    split: str | None
    photograph: str
    """Backgrounds with the same value are of one photograph and stay in one split."""


def without_ending(name: str) -> str:
    """A name without the ending of an image: draws depend on it, so they are the same for a.jpg and a.png."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in EXTENSIONS else name


def image_files(folder: Path, flag: str) -> Iterator[str]:
    """Sorted paths of the images below `folder`, relative to it, with /. Raises UserError naming `flag`."""
    if not folder.is_dir():
        raise UserError(f"{flag}: no folder {folder}; correct the path")
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS]
    # Names that begin with a dot: thumbnails and other notes of file managers.
    names = sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))
    if not names:
        raise UserError(f"{flag}: no images ({', '.join(sorted(EXTENSIONS))}) in {folder}; correct the path")
    return iter(names)


def copies(paths: Iterable[Path]) -> dict[Path, Path]:
    """Each file -> the first of `paths` with the same bytes (itself where there is no other)."""
    by_size: dict[int, list[Path]] = {}
    for path in paths:
        by_size.setdefault(path.stat().st_size, []).append(path)
    found: dict[Path, Path] = {}
    for same in by_size.values():
        first: dict[bytes, Path] = {}
        for path in same:
            content = hashlib.blake2b(path.read_bytes()).digest() if len(same) > 1 else b""
            found[path] = first.setdefault(content, path)
    return found


def excluding(
    path: Path, objects: Sequence[ObjectFile], backgrounds: Sequence[BackgroundFile]
) -> tuple[list[ObjectFile], list[BackgroundFile]]:
    """The files that a text file does not name, one name a line. Raises UserError for a line that names none."""
    rows = by_text(read_spaced(path, ("name",)), "name")
    names = {each.name for each in objects} | {each.name for each in backgrounds}
    for name, row in rows.items():
        if name not in names:
            raise row.error(f"no object or background is called {name}; correct the name or remove the line")
    return [each for each in objects if each.name not in rows], [each for each in backgrounds if each.name not in rows]


def folder_of_list(path: Path) -> Path:
    """The folder that the files named in a list lie in: objects/ beside objects.csv if it exists, else the list's."""
    return path.with_suffix("") if path.with_suffix("").is_dir() else path.parent


def word(row: IndexRow, column: str, allowed: Sequence[str]) -> str:
    """A cell that is one of `allowed`. Raises UserError otherwise."""
    cell = row.text(column)
    if cell not in allowed:
        raise row.error(f"{column} is {cell!r}; it must be {', '.join(allowed)}")
    return cell


def split_of(row: IndexRow) -> str | None:
    """The cell `split`; None where the list has no such column."""
    return word(row, "split", SPLITS) if "split" in row.cells else None
