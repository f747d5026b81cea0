"""From a model's outputs to the classes of a data set that it was not trained on.

`DatasetInfo.class_of_output` gives the mapping: ImageNet-A and -R have 200 of ImageNet's 1000 classes, ImageNet-9 has
nine superclasses. The score of a class is the highest of its outputs; an output without a class is ignored.
"""

import math
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from datasets.types import DatasetInfo
from metrics.types import Prediction


def class_logits(logits: Tensor, info: DatasetInfo) -> Tensor:
    """[B, outputs] -> [B, C]: the maximum over each class's outputs. Raises ValueError where they do not fit."""
    if info.class_of_output is None:
        return logits
    if logits.shape[1] != info.num_outputs:
        raise ValueError(f"logits have {logits.shape[1]} outputs, {info.name!r} expects {info.num_outputs}")
    owner = _owners(info.class_of_output, logits.device)
    # One extra column collects the outputs without a class: their owner -1 becomes the last index.
    scores = logits.new_full((len(logits), info.num_classes + 1), -math.inf)
    return scores.scatter_reduce(1, (owner % (info.num_classes + 1)).expand_as(logits), logits, "amax")[:, :-1]


def best_outputs(logits: Tensor, classes: Tensor, info: DatasetInfo) -> Tensor:
    """[B] int64: the highest output in each row of logits [B, outputs] that belongs to the row's class, classes [B]."""
    if info.class_of_output is None:
        return classes
    others = _owners(info.class_of_output, logits.device) != classes[:, None]
    return logits.masked_fill(others, -math.inf).argmax(1)


def to_dataset_classes(prediction: Prediction, info: DatasetInfo) -> Prediction:
    """The prediction with the logits of both stages mapped to the data set's classes."""
    stage_1 = prediction.stage_1_logits
    return replace(
        prediction,
        logits=class_logits(prediction.logits, info),
        stage_1_logits=None if stage_1 is None else class_logits(stage_1, info),
    )


@lru_cache(maxsize=4)
def _owners(class_of_output: tuple[int, ...], device: torch.device) -> Tensor:
    """[outputs] int64 on the device; cached, so that it is copied there once."""
    return torch.tensor(class_of_output, device=device)
