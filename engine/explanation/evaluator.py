"""Explanation methods over a split: every method's maps to every map metric, in one pass over the images."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.processes import gather
from datasets.types import Batch, DatasetInfo
from engine.explanation.map_store import MapReader, MapWriter, Target
from engine.run.memory import AutoBatchSize
from explain import METHODS, Explainer, explained_model, run_method
from explain.options import build_methods
from metrics.class_mapping import best_outputs, class_logits
from metrics.maps.per_image import MapMetric
from metrics.types import Explanation

Observer = Callable[[Batch, Tensor, Mapping[str, Tensor]], None]
"""Sees each batch, its logits [B, C], and each method's maps of the predicted class."""


@dataclass
class MethodTiming:
    """How long a method took, data and metrics not counted."""

    seconds: float = 0.0
    maps: int = 0

    @property
    def seconds_per_map(self) -> float:
        """Mean over all maps, those of the label's class too."""
        return self.seconds / self.maps


@dataclass
class ExplanationEvaluator:
    """A model under explanation, in eval mode."""

    model: nn.Module
    methods: dict[str, Explainer]
    """By the name a user asked for."""
    metrics: dict[str, dict[str, MapMetric]]
    """Method to metric name to metric."""
    halving: AutoBatchSize
    info: DatasetInfo
    stage: Literal[1, 2] = 2
    """Of a two-stage model: whose answer is explained, and asked for by the metrics."""
    reader: MapReader | None = None
    writer: MapWriter | None = None
    clocks: dict[str, MethodTiming] = field(default_factory=dict)
    """Method to its clock; none for maps that were read."""

    def run(
        self, batches: Iterable[Batch], device: torch.device, observers: Sequence[Observer] = (), start: int = 0
    ) -> None:
        """Feed every metric, and the writer where there is one; `start`: the first image's number in the split."""
        for batch in batches:
            batch = batch.to(device)
            outputs = self.outputs(batch.image)
            logits = class_logits(outputs, self.info)
            predicted = logits.argmax(1)
            if self.reader:
                self.reader.check(start, batch.paths, predicted)
            if self.writer:
                self.writer.add_images(batch.paths, predicted)
            shown = {name: self._score(name, batch, outputs, predicted, start) for name in self.methods}
            for observe in observers:
                observe(batch, logits, shown)
            start += len(batch)

    @torch.no_grad()
    def outputs(self, images: Tensor) -> Tensor:
        """Normalised images [M, 3, H, W] -> outputs [M, outputs] of what is explained."""

        def logits(piece: slice) -> Tensor:
            return explained_model(self.model, images[piece], self.stage).logits(images[piece])

        return self.halving(logits, len(images))

    def predict(self, images: Tensor) -> Tensor:
        """The same in the data set's classes: logits [M, C]."""
        return class_logits(self.outputs(images), self.info)

    def start_after(self, previous: Batch) -> None:
        """Be told the image before the first one, where another process measures it."""
        for metrics in self.metrics.values():
            for metric in metrics.values():
                metric.start_after(previous)

    def gathered_timings(self) -> dict[str, MethodTiming]:
        """The clocks of all processes added up; every process must ask."""
        total: dict[str, MethodTiming] = {}
        for clocks in gather(self.clocks):
            for name, clock in clocks.items():
                so_far = total.setdefault(name, MethodTiming())
                so_far.seconds += clock.seconds
                so_far.maps += clock.maps
        return total

    def _score(self, name: str, batch: Batch, outputs: Tensor, predicted: Tensor, start: int) -> Tensor:
        """Count one method's maps of a batch; those of the predicted class."""
        metrics = self.metrics[name].values()
        # A file must serve any metric, so it always gets both.
        label_too = self.writer is not None or any(metric.target == "label" for metric in metrics)
        if self.reader:
            maps = self._read(name, batch, start)
        else:
            maps = self._explain(name, batch, outputs, predicted, label_too)
        logits = class_logits(outputs, self.info)
        for metric in metrics:
            metric.update(batch, Explanation(maps[metric.target], logits, self.predict))
        return maps["predicted"]

    def _read(self, name: str, batch: Batch, start: int) -> dict[Target, Tensor]:
        reader, targets = cast(MapReader, self.reader), cast(tuple[Target, ...], ("predicted", "label"))
        return {target: reader.read(name, target, start, len(batch)).to(batch.image.device) for target in targets}

    def _explain(
        self, name: str, batch: Batch, outputs: Tensor, predicted: Tensor, label_too: bool
    ) -> dict[Target, Tensor]:
        """Maps of the predicted and, where wanted, of the true class; what is the same is computed once.

        Of the outputs that count for a class, the highest is explained.
        """
        targets = best_outputs(outputs, predicted, self.info)
        found: dict[Target, Tensor] = {"predicted": self._maps(name, batch.image, targets)}
        if label_too:
            found["label"] = found["predicted"]
            wrong = (predicted != batch.label).nonzero().flatten()
            if self.methods[name].class_specific and len(wrong):
                targets = best_outputs(outputs[wrong], batch.label[wrong], self.info)
                others = self._maps(name, batch.image[wrong], targets)
                found["label"] = found["label"].index_copy(0, wrong, others)
        if self.writer:
            for target, maps in found.items():
                self.writer.add(name, target, maps)
        return found

    def _maps(self, name: str, images: Tensor, targets: Tensor) -> Tensor:
        def explain(piece: slice) -> Tensor:
            subject = explained_model(self.model, images[piece], self.stage)
            return run_method(self.methods[name], subject, images[piece], targets[piece])

        clock, started = self.clocks.setdefault(name, MethodTiming()), _now(images.device)
        maps = self.halving(explain, len(images))
        clock.seconds += _now(images.device) - started
        clock.maps += len(images)
        return maps


def _now(device: torch.device) -> float:
    """Seconds, when all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def chosen_methods(
    names: list[str], given: Mapping[str, Any], model: nn.Module, image: Tensor, stage: Literal[1, 2],
    say: Callable[[str], None],
) -> dict[str, Explainer]:  # fmt: skip
    """The methods named with the options `given`, checked on the model; "all": those that can explain it.

    image [1, 3, H, W]. Raises UserError, before any work, for a method that cannot explain the model; of "all", it is
    left out and `say` tells why.
    """
    everything = names == ["all"]
    methods, able = build_methods(list(METHODS) if everything else names, given), {}
    subject = explained_model(model, image, stage)
    for name, method in methods.items():
        try:
            method.check(subject)
            able[name] = method
        except UserError as error:
            if not everything:
                raise
            say(f"{name} is left out: {error}")
    return able


def options_of(methods: Mapping[str, Explainer]) -> dict[str, dict[str, Any]]:
    """Method to its options, as plain values."""
    return {name: asdict(method) for name, method in methods.items()}  # type: ignore[call-overload]
