"""Part maps of a whole split in one HDF5 file: `evaluate.py --save-part-maps`.

One row per image, in the order of the split: `part_maps` [N, K+1, h, w] float16, probabilities, the last channel is the
background; `mask` [N, h, w] bool, the patches that stage 2 saw; `label` and `predicted` [N] int32, numbers of
`class_names`; `group` [N] int32 where the data set has groups; `paths` [N]. The attribute `source` has the run,
checkpoint, split and input as JSON.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from datasets.types import Batch, DatasetInfo
from engine.run.hdf_writer import HdfWriter
from metrics.types import Prediction

FORMAT = "faithful-vit part maps 1"


class PartMapWriter(HdfWriter):
    """An evaluation observer (`engine.evaluation.loop`) of a model with parts."""

    flag = "--save-part-maps"

    def __init__(self, path: Path, info: DatasetInfo, source: Mapping[str, Any]) -> None:
        """`source`: JSON values that say what the maps were computed from."""
        super().__init__(path)
        self.info, self.source = info, source
        self.paths: list[str] = []

    def __enter__(self) -> "PartMapWriter":
        super().__enter__()
        return self

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Append the images of one batch."""
        assert prediction.maps is not None and prediction.mask is not None
        self.paths += batch.paths
        self.append("part_maps", prediction.maps.to(torch.float16).cpu().numpy())
        self.append("mask", prediction.mask.cpu().numpy())
        self.append("label", _int32(batch.label))
        self.append("predicted", _int32(prediction.logits.argmax(1)))
        if batch.group is not None:
            self.append("group", _int32(batch.group))

    def complete(self) -> None:
        """Write names, paths and the source."""
        names = {"paths": self.paths, "class_names": self.info.class_names, "group_names": self.info.group_names}
        for name, texts in names.items():
            if texts is not None:
                self.file.create_dataset(name, data=list(texts), dtype=h5py.string_dtype())
        self.file.attrs.update(format=FORMAT, source=json.dumps(self.source))


def _int32(values: Tensor) -> np.ndarray:
    return values.cpu().numpy().astype(np.int32)
