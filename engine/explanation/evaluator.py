"""Evaluate explanation methods on a split: the maps of all methods, with all map metrics, in one pass."""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from common.errors import UserError, printable
from common.processes import gather
from datasets.types import Batch, DatasetInfo
from engine.evaluation.predict import check_logits
from engine.explanation.map_store import MapReader, MapWriter, Target
from engine.run.memory import AutoBatchSize
from explain import METHODS, Explainer, run_method
from explain.explained_model import explained_model, selected
from explain.options import build_methods
from explain.wrappers import unwrapped
from metrics.class_mapping import best_outputs, class_logits
from metrics.maps.per_image import MapMetric
from metrics.types import Explanation
from models.interface import selects_patches
from models.selection import Selection

Observer = Callable[[Batch, Tensor, Mapping[str, Tensor]], None]
"""Gets each batch, its logits [B, C], and each method's maps of the predicted class."""


@dataclass
class MethodTiming:
    """Time spent in a method, without data loading and metrics."""

    seconds: float = 0.0
    maps: int = 0

    @property
    def seconds_per_map(self) -> float:
        """Mean over all maps, including those of the true class."""
        return self.seconds / self.maps


@dataclass
class ExplanationEvaluator:
    """Explains a model, which must be in eval mode, with several methods and evaluates their maps."""

    model: nn.Module
    methods: dict[str, Explainer]
    """By the name that the user gave."""
    metrics: dict[str, dict[str, MapMetric]]
    """Method -> metric name -> metric."""
    auto_batch: AutoBatchSize
    info: DatasetInfo
    stage: Literal[1, 2] = 2
    """For a two-stage model, the stage that is explained."""
    reader: MapReader | None = None
    writer: MapWriter | None = None
    precision: torch.dtype = torch.float32
    """Of the forward passes for predictions and metrics; maps are computed in the model's own."""
    timings: dict[str, MethodTiming] = field(default_factory=dict)
    """Method -> its timing; none for maps read from a file."""
    measured: Callable[[int], object] = int
    """Called after each method of a batch with the number of images."""
    _selection: Selection | None = field(default=None, init=False)
    """Of the current batch: what stage 2 sees, the same for all methods and targets."""
    _of_batch: dict[Hashable, Tensor] = field(default_factory=dict, init=False)
    """Of the current batch: what metrics compute without maps, such as predictions for the blurred images."""

    def run(
        self, batches: Iterable[Batch], device: torch.device, observers: Sequence[Observer] = (), start: int = 0
    ) -> None:
        """Update all metrics, and the writer if there is one. `start`: index of the first image in the split."""
        for batch in batches:
            batch = batch.to(device)
            outputs = self.outputs(batch.image)
            check_logits(outputs, batch.paths)
            logits = class_logits(outputs, self.info)
            predicted = logits.argmax(1)
            if self.reader:
                self.reader.check(start, batch.paths, predicted)
            if self.writer:
                self.writer.add_images(batch.paths, predicted)
            self._selection = None if self.reader else self._select(batch.image)
            self._of_batch = {}
            maps = {name: self._score(name, batch, outputs, predicted, start) for name in self.methods}
            for observe in observers:
                observe(batch, logits, maps)
            start += len(batch)

    @torch.inference_mode()
    def outputs(self, images: Tensor) -> Tensor:
        """Normalised images [M, 3, H, W] -> outputs [M, outputs] of the explained stage."""

        def logits(piece: slice) -> Tensor:
            with torch.autocast(images.device.type, self.precision, enabled=self.precision != torch.float32):
                outputs = explained_model(self.model, images[piece], self.stage).logits(images[piece])
            return outputs if self.precision == torch.float32 else outputs.float()

        return self.auto_batch(logits, len(images))

    def _select(self, images: Tensor) -> Selection | None:
        """The selection of images [B, 3, H, W], if there is a stage 1 and stage 2 is explained."""
        model = unwrapped(self.model)
        if self.stage == 1 or not selects_patches(model):
            return None
        pieces = self.auto_batch.pieces(lambda piece: selected(model, images[piece]), len(images))
        return pieces[0].joined(pieces[1:])

    def predict(self, images: Tensor) -> Tensor:
        """Normalised images [M, 3, H, W] -> logits [M, C] of the data set's classes."""
        return class_logits(self.outputs(images), self.info)

    def start_after(self, previous: Batch) -> None:
        """Pass the image before the first one to the metrics, if another process evaluates it."""
        for metrics in self.metrics.values():
            for metric in metrics.values():
                metric.start_after(previous)

    def gathered_timings(self) -> dict[str, MethodTiming]:
        """The timings of all processes added up; every process must call this."""
        totals: dict[str, MethodTiming] = {}
        for timings in gather(self.timings):
            for name, timing in timings.items():
                total = totals.setdefault(name, MethodTiming())
                total.seconds += timing.seconds
                total.maps += timing.maps
        return totals

    def _score(self, name: str, batch: Batch, outputs: Tensor, predicted: Tensor, start: int) -> Tensor:
        """Update the metrics with one method's maps of a batch; returns those of the predicted class."""
        metrics = self.metrics[name].values()
        # A file of maps must serve all metrics, so it always gets the maps of both classes.
        label_too = self.writer is not None or any(metric.target == "label" for metric in metrics)
        if self.reader:
            maps = self._read(name, batch, start)
        else:
            maps = self._explain(name, batch, outputs, predicted, label_too)
        logits = class_logits(outputs, self.info)
        for metric in metrics:
            metric.update(batch, Explanation(maps[metric.target], logits, self.predict, self._of_batch))
        self.measured(len(batch))
        return maps["predicted"]

    def _read(self, name: str, batch: Batch, start: int) -> dict[Target, Tensor]:
        reader, targets = cast(MapReader, self.reader), cast(tuple[Target, ...], ("predicted", "label"))
        return {target: reader.read(name, target, start, len(batch)).to(batch.image.device) for target in targets}

    def _explain(
        self, name: str, batch: Batch, outputs: Tensor, predicted: Tensor, label_too: bool
    ) -> dict[Target, Tensor]:
        """Maps of the predicted and, with `label_too`, of the true class; equal maps are computed once.

        If several outputs belong to a class, the highest one is explained.
        """
        targets = best_outputs(outputs, predicted, self.info)
        everywhere = torch.arange(len(batch), device=targets.device)
        maps: dict[Target, Tensor] = {"predicted": self._maps(name, batch.image, targets, everywhere)}
        if label_too:
            maps["label"] = maps["predicted"]
            # Only misclassified images have another map for the true class.
            wrong = (predicted != batch.label).nonzero().flatten()
            if self.methods[name].class_specific and len(wrong):
                targets = best_outputs(outputs[wrong], batch.label[wrong], self.info)
                others = self._maps(name, batch.image, targets, wrong)
                maps["label"] = maps["label"].index_copy(0, wrong, others)
        if self.writer:
            for target, of_target in maps.items():
                self.writer.add(name, target, of_target)
        return maps

    def _maps(self, name: str, images: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """Maps [R, h, w] of the images `rows` [R] of a batch [B, 3, H, W] for targets [R]."""

        def explain(piece: slice) -> Tensor:
            chosen, some = images[rows[piece]], rows[piece]
            selection = None if self._selection is None else self._selection.each(lambda t: t[some])
            explained = explained_model(self.model, chosen, self.stage, selection=selection)
            return run_method(self.methods[name], explained, chosen, targets[piece])

        timing, started = self.timings.setdefault(name, MethodTiming()), _now(images.device)
        maps = self.auto_batch(explain, len(rows))
        timing.seconds += _now(images.device) - started
        timing.maps += len(rows)
        return maps


def _now(device: torch.device) -> float:
    """Time in seconds after all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def chosen_methods(
    names: list[str], given: Mapping[str, Any], model: nn.Module, image: Tensor, stage: Literal[1, 2],
    log: Callable[[str], None],
) -> dict[str, Explainer]:  # fmt: skip
    """The methods `names` with the options `given`; ["all"] gives every method that can explain the model.

    `image` [1, 3, H, W]. Raises UserError for a method that cannot explain the model. With "all", such methods are left
    out and the reason is logged.
    """
    everything = names == ["all"]
    methods, able = build_methods(list(METHODS) if everything else names, given), {}
    explained = explained_model(model, image, stage)
    for name, method in methods.items():
        try:
            method.check(explained)
            able[name] = method
        except UserError as error:
            if not everything:
                raise
            log(printable(f"{name} is left out: {error}"))
    return able


def options_of(methods: Mapping[str, Explainer]) -> dict[str, dict[str, Any]]:
    """Method -> its options as plain values."""
    return {name: asdict(method) for name, method in methods.items()}  # type: ignore[call-overload]
