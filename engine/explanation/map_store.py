"""Explanation maps on disk: written once, then read by any number of evaluations.

An HDF5 file with one group per method, in the order of the split: `maps/predicted` and `maps/label` [n, h, w] float16,
compressed, of the classes in `predicted` and `label` [n] int32. Each map is divided by its largest magnitude, which is
stored in `scale/...` [n] float32. Float16 keeps three digits of each value. A map at patch resolution takes about half
a kilobyte.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.files import check_regular
from datasets.config import earlier_view
from engine.run.hdf_writer import HdfWriter, line_of
from engine.run.renamed_keys import converted_value

Target = Literal["predicted", "label"]
REWRITE: Mapping[Target, str] = {
    "predicted": "predicted classes; write it again on this device",
    "label": "labels of the images; write it again",
}
"""What another class of an image's map means."""
FORMAT = "faithful-vit maps 1"
LARGEST = 2**22
"""Limit of values per map in files that are read."""
LARGEST_CHUNK = 2**27
"""Limit of bytes per uncompressed chunk in files that are read."""


@dataclass(frozen=True)
class MapProvenance:
    """What maps were computed from; must be the same when they are read. All values must be JSON serialisable."""

    inputs: Mapping[str, Any]
    """Weights, stage, split, preprocessing of its images."""
    methods: Mapping[str, Mapping[str, Any]]
    """Method -> its options."""


class MapWriter(HdfWriter):
    """Appends the maps of batches."""

    flag = "--save-maps"

    def __init__(self, path: Path, provenance: MapProvenance) -> None:
        super().__init__(path)
        self.provenance = provenance
        self.paths: list[str] = []

    def __enter__(self) -> "MapWriter":
        super().__enter__()
        return self

    def add(self, method: str, target: Target, maps: Tensor) -> None:
        """Append the maps [B, h, w] of a batch."""
        values = maps.detach().float().cpu()
        scale = values.abs().flatten(1).amax(1)
        # Scaled to [-1, 1]: float16 could overflow or underflow otherwise.
        unit = values / scale.where(scale > 0, torch.ones_like(scale))[:, None, None]
        self.append(f"{method}/maps/{target}", unit.half().numpy())
        self.append(f"{method}/scale/{target}", scale.numpy())

    def add_images(self, paths: Sequence[str], classes: Mapping[Target, Tensor]) -> None:
        """Append a batch's image paths, and the classes [B] that its maps explain."""
        self.paths += paths
        for target, of_target in classes.items():
            self.append(target, _int32(of_target))

    def complete(self) -> None:
        """Write the paths and the provenance."""
        self.file.create_dataset("paths", data=self.paths, dtype=h5py.string_dtype())
        stored = {"map_provenance": self.provenance.inputs, "methods": self.provenance.methods}
        self.file.attrs.update(format=FORMAT, **{key: json.dumps(value) for key, value in stored.items()})


class MapReader:
    """Reads maps written by `MapWriter` and checks that they belong to the current evaluation."""

    def __init__(self, path: Path, provenance: MapProvenance) -> None:
        """Raises UserError if `MapWriter` did not write the file, or its maps have another provenance."""
        self.path = path
        with self._as_user_error():
            check_regular(path)
            self.file = h5py.File(path, "r")
            if str(self.file.attrs.get("format")) != FORMAT:
                raise UserError(f"--maps: {path} was not written by --save-maps")
            stored = self.file.attrs.get("map_provenance") or self.file.attrs["made_of"]  # the key in older files
            inputs = {key: converted_value(key, value) for key, value in dict(json.loads(stored)).items()}
            earlier = earlier_view({"evaluation": inputs.get("data.evaluation")})
            inputs = {f"data.{key}": value for key, value in (earlier | {"exif": "auto"}).items()} | inputs
            methods = dict(json.loads(self.file.attrs["methods"]))
            self.paths = [text.decode() for text in self._dataset("paths", 1, h5py.string_dtype())[()]]
        for key, wanted in _plain(provenance.inputs).items():
            if inputs.get(key) != wanted:
                raise UserError(f"--maps: {path} was made with the {key} {inputs.get(key)}, not {wanted}")
        for name, options in _plain(provenance.methods).items():
            if name not in methods:
                raise UserError(f"--maps: {path} holds {', '.join(methods)}, not {name}")
            if methods[name] != options:
                raise UserError(f"--maps: {path} holds {name} with the options {methods[name]}, not {options}")

    def check(self, start: int, paths: Sequence[str], classes: Mapping[Target, Tensor]) -> None:
        """Raise UserError unless the images from `start` on have these paths, and their maps explain these classes [B].

        Files of earlier versions do not hold the labels.
        """
        stop = start + len(paths)
        if self.paths[start:stop] != list(paths):
            raise UserError(f"--maps: {self.path} was made with other images; image {start + 1} should be {paths[0]}")
        for target, advice in REWRITE.items():
            with self._as_user_error():
                known = target == "predicted" or target in self.file
                stored = self._dataset(target, 1, np.int32)[start:stop] if known else None
            if stored is not None and not np.array_equal(stored, _int32(classes[target])):
                raise UserError(f"--maps: {self.path} was made for other {advice}")

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
        """Raise ValueError for a data set of unexpected type or size, so that a small file cannot fill the memory, and
        for one that is stored elsewhere: HDF5 would read any file that it names.
        """
        parts = name.split("/")
        paths = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        if not all(isinstance(self.file.get(path, getlink=True), h5py.HardLink) for path in paths):
            raise ValueError(f"{name} is missing, or a link")
        dataset = self.file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
            raise ValueError(f"{name} is not stored in this file")
        chunk = prod(dataset.chunks or ()) * dataset.dtype.itemsize
        sizes = len(dataset) <= self.path.stat().st_size, prod(dataset.shape[1:]) <= LARGEST, chunk <= LARGEST_CHUNK
        if dataset.ndim != dimensions or dataset.dtype != dtype or not all(sizes):
            raise ValueError(f"{name} has another type or size than written")
        return dataset

    @contextlib.contextmanager
    def _as_user_error(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # no such file, not HDF5, truncated, or damaged in any other way
            raise UserError(f"--maps: cannot read {self.path} ({line_of(error)})") from None


def _int32(classes: Tensor) -> np.ndarray:
    return classes.cpu().numpy().astype(np.int32)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they are after a round trip through JSON."""
    return json.loads(json.dumps(values))
