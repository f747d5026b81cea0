"""Run a model over a split: metrics, and one record per image."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from common.processes import processes
from datasets import Split, eval_loader
from datasets.config import DataConfig
from datasets.loader import BatchLoader
from datasets.types import Batch
from engine.evaluation.predict import evaluation_mode, predict
from engine.run.machine import machine_errors
from metrics.class_mapping import to_dataset_classes
from metrics.registry import MetricSet
from metrics.types import Prediction

Observer = Callable[[Batch, Prediction], None]
SMALLER = "measuring takes data.eval_batch_size images at a time: give half as many"
"""What to change where a batch does not fit into memory."""


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    metrics: MetricSet,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    observers: Iterable[Observer] = (),
    seed: int = 0,
    options: Mapping[str, Any] = MappingProxyType({}),
    training: Iterable[Batch] = (),
) -> dict[str, float]:
    """The metrics over all batches; `observers` see every batch with its prediction; `options` go to the model.

    Both see the data set's classes, which need not be the model's outputs (`metrics.class_mapping`).

    `training`: the training split in its evaluation transform, read where a metric asks for it (`MetricSet.to_fit`).

    Of several processes each brings other images (`split_loader`); all get the metrics of all of them.

    Deterministic: noise that a published quirk keeps in evaluation is drawn from `seed`, and global generators are left
    as they were. The model's mode is restored.
    """
    metrics.reset()

    def show(some: Iterable[Batch], observe: Iterable[Observer]) -> None:
        with machine_errors(SMALLER, device), evaluation_mode(model, device, seed):
            for batch in some:
                batch = batch.to(device)
                prediction = to_dataset_classes(predict(model, batch, precision, **options), metrics.info)
                for look in observe:
                    look(batch, prediction)

    if metrics.to_fit:
        show(training, (metrics.fit,))
    show(batches, (metrics.update, *observers))
    return metrics.compute()


def split_loader(split: Split, data: DataConfig) -> BatchLoader:
    """This process's images of a split, in the evaluation's batches: no image twice, none left out."""
    here = processes()
    return eval_loader(
        split, batch_size=data.eval_batch_size, workers=data.workers, rank=here.rank, world_size=here.world_size
    )
