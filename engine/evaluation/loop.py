"""The evaluation loop: a model over a split, with metrics and observers."""

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
from engine.evaluation.predict import FiniteLogits, evaluation_mode, predict_unchecked
from engine.run.machine import machine_errors
from metrics.class_mapping import to_dataset_classes
from metrics.registry import MetricSet
from metrics.types import Prediction

Observer = Callable[[Batch, Prediction], None]
OUT_OF_MEMORY = "evaluation takes data.eval_batch_size images at a time: halve it"
"""Advice for a batch that does not fit into memory."""


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
    """Compute metrics over all batches; `observers` get every batch with its prediction; `options` go to the model.

    Metrics and observers get logits of the data set's classes, which may differ from the model's outputs
    (`metrics.class_mapping`). `training`: the training split with the evaluation transform, read only if a metric must
    be fitted (`MetricSet.to_fit`).

    With several processes, each passes its own images (`split_loader`), and all get the metrics of all images.

    Deterministic: noise that `compat=reference` keeps in evaluation is drawn from `seed`. Global random generators and
    the model's mode are restored afterwards. Raises UserError, after the last batch, if a logit is not finite.
    """
    metrics.reset()

    def predict_all(source: Iterable[Batch], consumers: Iterable[Observer]) -> None:
        logits = FiniteLogits()
        with machine_errors(OUT_OF_MEMORY, device), evaluation_mode(model, device, seed):
            for batch in source:
                batch = batch.to(device)
                prediction = predict_unchecked(model, batch, precision, **options)
                logits.add(prediction.logits, batch.paths)
                prediction = to_dataset_classes(prediction, metrics.info)
                for consume in consumers:
                    consume(batch, prediction)
        logits.check()

    if metrics.to_fit:
        predict_all(training, (metrics.fit,))
    predict_all(batches, (metrics.update, *observers))
    return metrics.compute()


def split_loader(split: Split, data: DataConfig, device: torch.device | None = None) -> BatchLoader:
    """Evaluation batches of this process's part of the split; over all processes, each image occurs exactly once.

    `device`: where they are moved and normalised (`BatchLoader`).
    """
    here = processes()
    return eval_loader(
        split, batch_size=data.eval_batch_size, workers=data.loading_processes, rank=here.rank,
        world_size=here.world_size, device=device,
    )  # fmt: skip
