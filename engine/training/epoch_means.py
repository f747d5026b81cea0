"""Running means over the images of an epoch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common.processes import gather
from datasets.types import Batch
from engine.training.objectives import ObjectiveOutput

Sums = dict[str, list[float]]
"""Name -> [sum, number of images]."""


class EpochMeans:
    """Sums of losses and metrics over images, kept on the device, with the number of images of each."""

    def __init__(self, device: torch.device, state: Mapping[str, list[float]]) -> None:
        """`state`: result of `state()` from the finished part of the epoch; empty at its start."""
        self.sums = {
            name: torch.tensor(value, dtype=torch.float64, device=device) for name, (value, _) in state.items()
        }
        self.counts = {name: int(count) for name, (_, count) in state.items()}

    def add(self, output: ObjectiveOutput, batch: Batch) -> None:
        """Add the loss and its terms, and metrics if there is a prediction for the whole batch."""
        count = len(batch)
        for name, value in _sums(output, batch).items():
            self.sums[name] = self.sums.get(name, 0.0) + value.double()
            self.counts[name] = self.counts.get(name, 0) + count

    def means(self) -> dict[str, float]:
        """Name -> mean over the images of all processes; all must call this. Waits for the device."""
        return {name: value / max(1, count) for name, (value, count) in merged(gather(self.state())).items()}

    def state(self) -> Sums:
        """The sums of this process. Waits for the device."""
        return {name: [value.item(), self.counts[name]] for name, value in self.sums.items()}


def merged(parts: Sequence[Sums]) -> Sums:
    """Add up the sums of all parts."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: [sum(part.get(name, [0.0, 0])[i] for part in parts) for i in (0, 1)] for name in names}


def _sums(output: ObjectiveOutput, batch: Batch) -> dict[str, Tensor]:
    n, prediction = len(batch), output.prediction
    # Losses are means over the batch: times n they become sums.
    values = {"loss": output.loss.detach() * n, **{name: value * n for name, value in output.terms.items()}}
    if prediction is not None:
        if batch.present is None:  # one class per image
            values["accuracy"] = (prediction.logits.argmax(1) == batch.label).sum()
        if prediction.mask is not None:
            values["keep_ratio"] = prediction.mask.float().mean() * n
        if prediction.empty is not None:
            values["empty_ratio"] = prediction.empty.sum()
    return values
