"""What a split consists of, in a few values: to notice that the data of a run have changed."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

from datasets.readers.files import FileDataset
from datasets.split import Split
from datasets.types import RawDataset

MEANING = {
    "images": "the number of images",
    "names": "the names of the images",
    "labels": "the labels",
    "groups": "the groups",
    "classes": "the names of the classes",
}
"""Key of `fingerprint` -> what it stands for, in messages."""


def fingerprint(split: Split) -> dict[str, Any]:
    """JSON values: the number of images, and hashes of their names and labels, in their order, groups and classes.

    Names are relative to the folder that all images are in, so that data may be moved; "" where a reader has none. The
    files themselves are not read.
    """
    raw = split.raw
    present = [record.present.tobytes() for record in _records(raw) if record.present is not None]
    return {
        "images": len(split),
        "names": _digest(_names(raw)),
        "labels": _digest([*raw.labels, *present]),
        "groups": _digest(raw.groups or ()),
        "classes": _digest(split.info.keys),
    }


def _digest(values: Iterable[object]) -> str:
    """A hash of the values and their order; "" without values."""
    digest, empty = hashlib.blake2b(digest_size=16), True
    for value in values:
        digest.update(f"{value!r}\n".encode())
        empty = False
    return "" if empty else digest.hexdigest()


def _names(raw: RawDataset) -> Sequence[object]:
    """What a reader knows its images by."""
    if (inner := getattr(raw, "raw", None)) is not None:
        names, chosen = _names(inner), getattr(raw, "indices", None)
        return names if chosen is None or not names else [names[index] for index in chosen]
    if isinstance(raw, FileDataset):
        paths = [str(record.path) for record in raw.records]
        shared = len(os.path.commonpath({os.path.dirname(path) for path in paths}))
        return [path[shared:] for path in paths]
    return getattr(raw, "names", None) or getattr(raw, "numbers", None) or ()


def _records(raw: RawDataset) -> Sequence[Any]:
    inner, chosen = getattr(raw, "raw", None), getattr(raw, "indices", None)
    if inner is None:
        return raw.records if isinstance(raw, FileDataset) else ()
    records = _records(inner)
    return records if chosen is None or not records else [records[index] for index in chosen]
