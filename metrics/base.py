"""What all metrics share: states that add up exactly, on the prediction's device and across processes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor

from common.metric_info import MetricInfo, declare
from common.processes import gather, processes
from common.transfer import on_host
from datasets.types import Batch
from metrics.types import Explanation, Prediction


def _on_the_device(method: Callable[..., None]) -> Callable[..., None]:
    # Not inside the method: `self.rows.append(f(...))` looks the list up before it calls f, so that moving the states
    # in f would append to a list that is no longer the state.
    @wraps(method)
    def moved(self: "ExactMetric", batch: Batch, prediction: Prediction | Explanation) -> None:
        self.follow(prediction)
        with torch.no_grad():
            method(self, batch, prediction)

    return moved


def _of_all_processes(method: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    @wraps(method)
    def gathered(self: "ExactMetric") -> dict[str, float]:
        if not processes().is_distributed or self._gathered:  # a subclass may call the method of its base
            return method(self)
        own, device = dict(self.states()), self.device
        try:
            self._gathered = True
            for name, state in own.items():
                parts = gather(self.values(name).cpu() if isinstance(state, list) else state.cpu())
                together = [torch.cat(parts)] if isinstance(state, list) else torch.stack(parts).sum(0)
                setattr(self, name, together)
            self.device = torch.device("cpu")
            return method(self)
        finally:
            self._gathered, self.device = False, device
            vars(self).update(own)

    return gathered


class ExactMetric(ABC):
    """A metric whose results depend neither on the batch size nor on the number of processes.

    It achieves this with two kinds of state: int64 counters, and float64 values per image that are kept until `compute`
    adds them with a correctly rounded sum. Every process must hold different images, and all of them must call
    `compute`, whose body sees the states of all.

    Subclasses define `update` (and `fit`, see `FittedMetric`) and `compute`. Before the body of `update` or `fit` runs,
    the states are moved to the device of the prediction; no gradient is kept.
    """

    shown: ClassVar[Mapping[str, MetricInfo]] = {}
    """How tables, headline cards and curves show the keys of `compute`; a key left out is shown as a plain number."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Declare `shown`, make `update` and `fit` move the states first, and `compute` gather them."""
        super().__init_subclass__(**options)
        declare(cls.shown)
        for name, wrap in (("update", _on_the_device), ("fit", _on_the_device), ("compute", _of_all_processes)):
            if name in vars(cls):
                setattr(cls, name, wrap(vars(cls)[name]))

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        """Of the states."""
        self._initial: dict[str, tuple[int, ...] | None] = {}
        """State -> the shape of a counter, None for values."""
        self._gathered = False

    @abstractmethod
    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The metrics over everything counted; nan where nothing was. Copies from the device once or a few times."""

    def reset(self) -> None:
        """Forget everything counted."""
        for name, shape in self._initial.items():
            if shape is None:
                self.add_values(name)
            else:
                self.add_counter(name, *shape)

    def add_counter(self, name: str, *shape: int) -> None:
        """An int64 state of zeros, summed over processes."""
        self._initial[name] = shape
        setattr(self, name, torch.zeros(shape, dtype=torch.int64, device=self.device))

    def add_values(self, name: str) -> None:
        """A list of flat float64 tensors, concatenated over processes; read it with `values`."""
        self._initial[name] = None
        setattr(self, name, [])

    def states(self) -> Iterator[tuple[str, Tensor | list[Tensor]]]:
        """All states by name."""
        return ((name, getattr(self, name)) for name in self._initial)

    def values(self, name: str) -> Tensor:
        """Everything appended to a state of `add_values`: [n] float64."""
        state: list[Tensor] = getattr(self, name)
        return torch.cat(state) if state else torch.zeros(0, dtype=torch.float64, device=self.device)

    def follow(self, prediction: Prediction | Explanation) -> None:
        """Move the states to the device of the logits. This replaces the lists of `add_values`."""
        if self.device != (device := prediction.logits.device):
            for name, state in self.states():
                tensors = state if isinstance(state, list) else [state]
                moved = [tensor.to(device, non_blocking=True) for tensor in tensors]
                setattr(self, name, moved if isinstance(state, list) else moved[0])
            self.device = device


def states_on_host(metrics: Iterable[ExactMetric]) -> None:
    """Move the states of all metrics to the CPU together, so that `compute` does not wait for each of its values."""
    metrics = list(metrics)
    states = [(metric, *state) for metric in metrics for state in metric.states()]
    listed = [t for _, _, state in states for t in ([state] if isinstance(state, Tensor) else state)]
    moved = iter(on_host(listed))
    for metric, name, state in states:
        setattr(metric, name, next(moved) if isinstance(state, Tensor) else [next(moved) for _ in state])
    for metric in metrics:
        metric.device = torch.device("cpu")


class FittedMetric(ExactMetric):
    """An ExactMetric that learns something from the training split before it measures; `reset` forgets that too."""

    @abstractmethod
    def fit(self, batch: Batch, prediction: Prediction) -> None:
        """Take in one batch of the training split, in its evaluation transform. All of them come before `update`."""


def ratio(part: float, whole: float) -> float:
    """part / whole; nan where whole is 0."""
    return part / whole if whole else math.nan


def ratios(parts: Tensor, wholes: Sequence[int]) -> list[float]:
    """`ratio` of each counter of parts [N] int64 and its whole."""
    return [ratio(part, whole) for part, whole in zip(parts.tolist(), wholes, strict=True)]


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are not nan; nan of none. Correctly rounded, so that their order does not matter."""
    listed = [value for value in values if not math.isnan(value)]
    return ratio(math.fsum(listed), len(listed))


def smallest(values: Iterable[float]) -> float:
    """The smallest of the values that are not nan; nan of none."""
    return min((value for value in values if not math.isnan(value)), default=math.nan)


def check_logits(logits: Tensor, label: Tensor, num_classes: int) -> None:
    """Raise ValueError unless logits is [B, num_classes] and label [B]."""
    if logits.shape != (label.shape[0], num_classes):
        raise ValueError(f"logits have shape {tuple(logits.shape)}, expected {(label.shape[0], num_classes)}")


def is_correct(logits: Tensor, label: Tensor, top: int = 1) -> Tensor:
    """[B] bool: the label is among the `top` highest logits [B, C]. A row that contains a nan counts as wrong."""
    hit = (logits.topk(top, dim=1).indices == label[:, None]).any(dim=1) if top > 1 else logits.argmax(dim=1) == label
    return hit & ~logits.isnan().any(dim=1)


def count_by(index: Tensor, into: Tensor, flags: Tensor | None = None) -> None:
    """Add 1 to the counters into [N] int64 at index [B] int64, where flags [B] bool. In place, without a host sync."""
    into.index_add_(0, index, (torch.ones_like(index) if flags is None else flags).to(torch.int64))
