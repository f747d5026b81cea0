"""Means over the images of a running epoch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common.processes import gather
from datasets.types import Batch
from engine.training.objectives import ObjectiveOutput

Sums = dict[str, list[float]]
"""Name -> sum and number of images."""


class EpochMeans:
    """Of everything that some or all batches have: its sum, on the device, and over how many images that is."""

    def __init__(self, device: torch.device, state: Mapping[str, list[float]]) -> None:
        """`state`: what `state` gave of the part of the epoch that is done; nothing at its start."""
        self.sums = {
            name: torch.tensor(value, dtype=torch.float64, device=device) for name, (value, _) in state.items()
        }
        self.counts = {name: int(count) for name, (_, count) in state.items()}

    def add(self, outcome: ObjectiveOutput, batch: Batch) -> None:
        """Count the batch's loss, terms and, where the model answered all its images, its answers."""
        count = len(batch)
        for name, value in _sums(outcome, batch).items():
            zero = torch.zeros((), dtype=torch.float64, device=value.device)
            self.sums[name] = self.sums.get(name, zero) + value
            self.counts[name] = self.counts.get(name, 0) + count

    def means(self) -> dict[str, float]:
        """Name -> mean over the images of all processes, which all must ask. Reads the device."""
        return {name: value / max(1, count) for name, (value, count) in merged(gather(self.state())).items()}

    def state(self) -> Sums:
        """This process's sums. Reads the device."""
        return {name: [value.item(), self.counts[name]] for name, value in self.sums.items()}


def merged(parts: Sequence[Sums]) -> Sums:
    """The sums of all parts together."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: [sum(part.get(name, [0.0, 0])[i] for part in parts) for i in (0, 1)] for name in names}


def _sums(outcome: ObjectiveOutput, batch: Batch) -> dict[str, Tensor]:
    n, prediction = len(batch), outcome.prediction
    values = {"loss": outcome.loss.detach() * n, **{name: value * n for name, value in outcome.terms.items()}}
    if prediction is not None:
        if batch.present is None:
            values["accuracy"] = (prediction.logits.argmax(1) == batch.label).sum()
        if prediction.mask is not None:
            values["keep_ratio"] = prediction.mask.float().mean() * n
        if prediction.empty is not None:
            values["empty_ratio"] = prediction.empty.sum()
    return values
