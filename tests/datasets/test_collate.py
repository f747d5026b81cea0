"""Batches of samples that do not have the same annotations."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from datasets import RawSample, Split, build_transform, eval_loader, train_loader
from datasets.subset import subset
from tests.datasets.test_loader import CONFIG, Images


class SomeAnnotations(Images):
    """Images of which only the first one has `annotation`."""

    def __init__(self, **annotation: Any) -> None:
        super().__init__(4)
        self.annotation = annotation

    def read(self, index: int) -> RawSample:
        sample = replace(super().read(index), boxes=None)
        return sample if index else replace(sample, **self.annotation)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    "annotation", [{"boxes": np.array([[1.0, 2, 8, 9]])}, {"mask": np.ones((10, 12), bool)}, {"group": 1}]
)
def test_annotations_of_some_images_are_refused(annotation: dict[str, Any], first: int) -> None:
    split = Split(SomeAnnotations(**annotation), build_transform(CONFIG, train=False), train=False, seed=0)
    split = subset(split, [first, 1 - first])
    loaders = eval_loader(split, batch_size=2, workers=0), train_loader(split, batch_size=2, seed=0, epoch=0, workers=0)
    for loader in loaders:
        with pytest.raises(UserError, match=rf"^1\.jpg has no {next(iter(annotation))}, which other images have; give"):
            next(iter(loader))
