"""Run a model over a split: figures, and one record per image."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from common.processes import gather_blocks, processes
from datasets import Split, eval_loader
from datasets.config import DataConfig
from datasets.loader import BatchLoader
from datasets.types import Batch
from engine.given_masks import given_mask
from engine.guards import machine_errors
from engine.objectives import prediction_of
from metrics.outputs import in_classes
from metrics.registry import MetricSet
from metrics.types import Prediction

Observer = Callable[[Batch, Prediction], None]
SMALLER = "measuring takes data.eval_batch_size images at a time: give half as many"
"""What to change where a batch does not fit into memory."""


@dataclass(frozen=True)
class ImageRecord:
    """How one image was answered."""

    path: str
    label: int
    """The true class; where a picture shows several, the predicted one if that is among them."""
    predicted: int
    group: int | None
    wrong_confidence: float
    """Probability of the most likely wrong class."""
    kept_share: float | None
    """Share of patches stage 2 saw."""


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

    Both see the data set's classes, which need not be the model's outputs (`metrics.outputs`).

    `training`: the training split in its evaluation transform, read where a metric asks for it (`MetricSet.to_fit`).

    Of several processes each brings other images (`split_loader`); all get the figures of all of them.

    Deterministic: noise that a published quirk keeps in evaluation is drawn from `seed`, and global generators are left
    as they were. The model's mode is restored.
    """
    metrics.reset()

    def show(some: Iterable[Batch], observe: Iterable[Observer]) -> None:
        with machine_errors(SMALLER, device), evaluation_mode(model, device, seed):
            for batch in some:
                batch = batch.to(device)
                prediction = in_classes(predict(model, batch, precision, **options), metrics.info)
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


def predict(model: nn.Module, batch: Batch, precision: torch.dtype = torch.float32, **options: Any) -> Prediction:
    """The model's answer, in its own outputs, for one batch on its device."""
    with torch.autocast(batch.image.device.type, dtype=precision, enabled=precision != torch.float32):
        return prediction_of(model(batch.image, **given_mask(model, batch), **options))


@contextlib.contextmanager
def evaluation_mode(model: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """No gradients, eval mode, seeded generators; everything restored after."""
    was_training = model.training
    model.eval()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            yield
    finally:
        model.train(was_training)


class Recorder:
    """An observer that keeps one ImageRecord per image."""

    def __init__(self) -> None:
        self.records: list[ImageRecord] = []

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Note every image of the batch."""
        probability = prediction.logits.double().softmax(1).cpu()
        predicted = probability.argmax(1)
        shown = torch.zeros_like(probability, dtype=torch.bool).scatter(1, batch.label.cpu()[:, None], True)
        if batch.present is not None:
            shown = batch.present.cpu()
        wrong = probability.masked_fill(shown, 0.0).amax(1)
        kept = None if prediction.mask is None else prediction.mask.flatten(1).double().mean(1).cpu()
        for i, path in enumerate(batch.paths):
            self.records.append(
                ImageRecord(
                    path=path,
                    label=int(predicted[i] if shown[i, predicted[i]] else batch.label[i]),
                    predicted=int(predicted[i]),
                    group=None if batch.group is None else int(batch.group[i]),
                    wrong_confidence=float(wrong[i]),
                    kept_share=None if kept is None else float(kept[i]),
                )
            )

    def everyone(self) -> list[ImageRecord]:
        """The records of all processes, in the order of the split; every process must ask."""
        return gather_blocks(self.records)
