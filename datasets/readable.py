"""Read every image that a run will be measured on before it trains, so that a broken one costs no training.

A split that was read without a problem is remembered as an empty file `readable/DIGEST` in `cache_folder`. The digest
is of the names, sizes and times of all its files, so any change of one makes another digest. Such a file cannot be
damaged, and processes may write the same one at the same time.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from math import ceil
from pathlib import Path

import PIL
from torch.utils.data import DataLoader, Dataset

from common.errors import UserError
from common.processes import gather, gather_blocks, processes
from datasets.formats.images import UnreadableImageError
from datasets.loader import LOADING_SECONDS, lost_worker, quiet_worker
from datasets.split import Split
from datasets.types import RawDataset

VERSION = "1"
"""Raise it when a reader refuses more files than before."""
BATCH = 16
"""Images that a loading process reads at a time."""
MOST_NAMED = 3
PER_WORKER = 100
"""A loading process is started for at least so many images; starting one takes seconds."""

Bar = Callable[[str, int], AbstractContextManager[Callable[[float], None]]]
"""(description, number of steps) -> a progress bar: a function to call after each step with its number of images."""


def check_readable(split: Split, name: str, workers: int, bar: Bar) -> None:
    """Read all records of the split `name`, unless the same files were read before; every process reads its block.

    Raises UserError naming the first files that cannot be read, in every process. Nothing is read of a data set
    without `files`, which has no image files.
    """
    if not hasattr(split.raw, "files"):
        return
    here = processes()
    mark = _mark(split.raw) if here.is_main else None
    if gather(mark is not None and mark.exists())[0]:
        return
    block = here.block(len(split))
    with bar(f"checking {name} images", ceil(len(block) / BATCH)) as advance:
        problems = gather_blocks(list(_problems(split.raw, block, workers, advance)))
    if problems:
        more = f"; and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
        raise UserError(
            f"{len(problems)} of the {len(split)} {name} images cannot be read: "
            f"{'; '.join(problems[:MOST_NAMED])}{more}. Restore the files or leave the images out of the data set; "
            "data.check_images=false trains without this check"
        )
    if mark:
        with contextlib.suppress(OSError):  # a read-only home: the files are read again next time
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


class _Reading(Dataset[str]):
    """Record by record what is wrong with it; "" for one that can be read."""

    def __init__(self, raw: RawDataset) -> None:
        self.raw = raw

    def __getitem__(self, index: int) -> str:
        try:
            self.raw.read(index)
        except UnreadableImageError as error:
            return f"{error.path} ({error.reason})"
        except UserError as error:
            return str(error)
        return ""


def _problems(raw: RawDataset, block: range, workers: int, advance: Callable[[float], None]) -> Iterator[str]:
    workers = min(workers, len(block) // PER_WORKER)
    loader: DataLoader[list[str]] = DataLoader(
        _Reading(raw),  # type: ignore[arg-type]  # the type of batches, after collation
        sampler=block, batch_size=BATCH, num_workers=workers, collate_fn=list, worker_init_fn=quiet_worker,
        timeout=LOADING_SECONDS if workers else 0,
    )  # fmt: skip
    try:
        for found in loader:
            advance(len(found))
            yield from filter(None, found)
    except (RuntimeError, OSError, EOFError) as error:
        raise lost_worker(error) or error from None


def _mark(raw: RawDataset) -> Path | None:
    """The file that says that these files were read; None if one of them is missing or there is no home."""
    files: Sequence[Path] = raw.files()  # type: ignore[attr-defined]
    rotate = getattr(getattr(raw, "raw", raw), "rotate", "")  # decides whether a mask has the size of its image
    digest = hashlib.blake2b(f"{VERSION} {PIL.__version__} {type(raw).__name__} {rotate}".encode(), digest_size=16)
    try:
        with ThreadPoolExecutor(16) as pool:  # a network file system answers many at once
            for path, found in zip(files, pool.map(os.stat, files), strict=True):
                digest.update(f"\n{os.path.abspath(path)} {found.st_size} {found.st_mtime_ns}".encode(errors="replace"))
        return cache_folder() / "readable" / digest.hexdigest()
    except (OSError, RuntimeError):
        return None


def cache_folder() -> Path:
    """$FAITHFUL_VIT_CACHE, else faithful-vit in $XDG_CACHE_HOME or ~/.cache. Raises RuntimeError without a home."""
    if own := os.environ.get("FAITHFUL_VIT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faithful-vit"
