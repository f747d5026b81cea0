"""Heat maps on disk: written once, read by as many evaluations as one likes.

One HDF5 file, one group per method, in the order of the split: `maps/predicted` and `maps/label` [n, h, w] float16 in
compressed chunks, each map divided by its largest magnitude, which stands in `scale/...` [n] float32. Float16 rounds
what a map says of a pixel to three digits; a map at patch resolution takes about half a kilobyte.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import h5py
import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from engine.run.renamed_keys import converted_value

Target = Literal["predicted", "label"]
FORMAT = "faithful-vit maps 1"
LARGEST = 2**22
"""Values of a map."""
LARGEST_CHUNK = 2**27
"""Bytes, unpacked."""
CHUNK = 2**18
"""Values of a chunk, about: a part of HDF5's cache, so that appending a batch does not pack a chunk again and again."""


@dataclass(frozen=True)
class MapProvenance:
    """What maps were made of: to be met again when they are read. All of it must have a JSON form."""

    map_provenance: Mapping[str, Any]
    """Weights, stage, split, how its images are made."""
    methods: Mapping[str, Mapping[str, Any]]
    """Method to its options."""


class MapWriter:
    """Writes to a temporary file beside `path`, renamed when the context ends without an error."""

    def __init__(self, path: Path, source: MapProvenance) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.source = source
        self.paths: list[str] = []

    def __enter__(self) -> "MapWriter":
        if self.path.is_dir():
            raise UserError(f"--save-maps: {self.path} is a folder; name a file")
        with self._as_user_error():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = h5py.File(self.temporary, "w")
        return self

    def add(self, method: str, target: Target, maps: Tensor) -> None:
        """Append maps [B, h, w] of one batch."""
        values = maps.detach().float().cpu()
        scale = values.abs().flatten(1).amax(1)
        unit = values / scale.where(scale > 0, torch.ones_like(scale))[:, None, None]
        self._append(f"{method}/maps/{target}", unit.half().numpy())
        self._append(f"{method}/scale/{target}", scale.numpy())

    def add_images(self, paths: Sequence[str], predicted: Tensor) -> None:
        """Append a batch's image paths and predicted classes [B]."""
        self.paths += paths
        self._append("predicted", predicted.cpu().numpy().astype(np.int32))

    def _append(self, name: str, rows: np.ndarray) -> None:
        with self._as_user_error():
            if name not in self.file:
                shape = rows.shape[1:]
                chunk = min(1024, 1 + CHUNK // int(np.prod(shape)))
                self.file.create_dataset(
                    name, shape=(0, *shape), dtype=rows.dtype, maxshape=(None, *shape), chunks=(chunk, *shape),
                    compression="gzip", shuffle=True,
                )  # fmt: skip
            dataset = self.file[name]
            dataset.resize(len(dataset) + len(rows), axis=0)
            dataset[-len(rows) :] = rows

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                self.file.close()
            self.temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        with self._as_user_error():
            self.file.create_dataset("paths", data=self.paths, dtype=h5py.string_dtype())
            stored = {"map_provenance": self.source.map_provenance, "methods": self.source.methods}
            self.file.attrs.update(format=FORMAT, **{key: json.dumps(value) for key, value in stored.items()})
            self.file.close()
            self.temporary.replace(self.path)

    @contextlib.contextmanager
    def _as_user_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as either
            raise UserError(f"--save-maps: cannot write {self.path} ({_line(error)})") from None


class MapReader:
    """Maps of a file that `MapWriter` wrote, checked against what is evaluated now."""

    def __init__(self, path: Path, source: MapProvenance) -> None:
        """Raises UserError where the file is none of ours, or its maps were not made of `source`."""
        self.path = path
        with self._as_user_error():
            self.file = h5py.File(path, "r")
            if str(self.file.attrs.get("format")) != FORMAT:
                raise UserError(f"--maps: {path} was not written by --save-maps")
            made_of = self.file.attrs.get("map_provenance") or self.file.attrs["made_of"]  # its name in older files
            map_provenance = {key: converted_value(key, value) for key, value in dict(json.loads(made_of)).items()}
            methods = dict(json.loads(self.file.attrs["methods"]))
            self.paths = [text.decode() for text in self._dataset("paths", 1, h5py.string_dtype())[()]]
        for key, wanted in _plain(source.map_provenance).items():
            if map_provenance.get(key) != wanted:
                raise UserError(f"--maps: {path} was made with the {key} {map_provenance.get(key)}, not {wanted}")
        for name, options in _plain(source.methods).items():
            if name not in methods:
                raise UserError(f"--maps: {path} holds {', '.join(methods)}, not {name}")
            if methods[name] != options:
                raise UserError(f"--maps: {path} holds {name} with the options {methods[name]}, not {options}")

    def check(self, start: int, paths: Sequence[str], predicted: Tensor) -> None:
        """Raise UserError unless the images from `start` on are these, predicted as the maps were made for."""
        stop = start + len(paths)
        if self.paths[start:stop] != list(paths):
            raise UserError(f"--maps: {self.path} was made of other images; {paths[0]} should be number {start + 1}")
        with self._as_user_error():
            stored = self._dataset("predicted", 1, np.int32)[start:stop]
        if not np.array_equal(stored, predicted.cpu().numpy()):
            raise UserError(f"--maps: {self.path} was made for other predicted classes; make it anew on this device")

    def read(self, method: str, target: Target, start: int, count: int) -> Tensor:
        """Maps [count, h, w] float32 of the images from `start` on."""
        rows = slice(start, start + count)
        with self._as_user_error():
            unit = self._dataset(f"{method}/maps/{target}", 3, np.float16)[rows]
            scale = self._dataset(f"{method}/scale/{target}", 1, np.float32)[rows]
            if len(unit) != len(scale):
                raise ValueError(f"{method} has {len(unit)} maps, but {len(scale)} scales")
        return torch.from_numpy(unit.astype(np.float32)) * torch.from_numpy(scale)[:, None, None]

    def _dataset(self, name: str, dimensions: int, dtype: Any) -> h5py.Dataset:
        """Raises ValueError for what reading would take more memory for than was written."""
        found = self.file[name]
        chunk = prod(found.chunks or ()) * found.dtype.itemsize
        sizes = len(found) <= self.path.stat().st_size, prod(found.shape[1:]) <= LARGEST, chunk <= LARGEST_CHUNK
        if found.ndim != dimensions or found.dtype != dtype or not all(sizes):
            raise ValueError(f"{name} is not as it was written")
        return found

    @contextlib.contextmanager
    def _as_user_error(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # no such file, not HDF5, cut short, damaged in any way
            raise UserError(f"--maps: cannot read {self.path} ({_line(error)})") from None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(values))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
