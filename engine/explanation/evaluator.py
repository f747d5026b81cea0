"""Evaluate explanation methods on a split: the maps of all methods, with all map metrics, in one pass."""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from common.errors import UserError, printable
from common.processes import gather
from common.transfer import on_device
from datasets.types import Batch, DatasetInfo
from engine.evaluation.predict import check_logits
from engine.explanation.map_store import MapReader, MapWriter, Target
from engine.run.memory import AutoBatchSize
from explain import METHODS, Explainer, run_method
from explain.explained_model import explained_model, selected
from explain.options import build_methods
from explain.wrappers import unwrapped
from metrics.base import states_on_host
from metrics.class_mapping import best_outputs, class_logits
from metrics.maps.per_image import MapMetric
from metrics.types import Explanation, Images
from models.interface import selects_patches
from models.selection import Selection

Mark = float | torch.cuda.Event
"""A moment, as `_mark` gives it."""
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


@dataclass(frozen=True)
class ToExplain:
    """Images of a batch with the outputs that are explained, the same for all methods."""

    rows: Tensor
    """[R] int64: the images, by their positions in the batch."""
    images: Tensor
    """[R, 3, H, W]"""
    outputs: Tensor
    """[R] int64"""
    selection: Selection | None
    """What stage 2 sees of them, if there is a stage 1 and stage 2 is explained."""


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
    _to_explain: dict[Target, ToExplain] = field(default_factory=dict, init=False)
    """Of the current batch: all images with their predicted class; and, if there are any, the misclassified ones with
    their label, which is another map for these alone."""
    _laps: list[tuple[MethodTiming, Mark, Mark]] = field(default_factory=list, init=False)
    """Calls of methods that are not in `timings` yet."""
    _of_batch: dict[Hashable, Tensor] = field(default_factory=dict, init=False)
    """Of the current batch: what metrics compute without maps, such as predictions for the blurred images."""

    def run(
        self, batches: Iterable[Batch], device: torch.device, observers: Sequence[Observer] = (), start: int = 0
    ) -> None:
        """Update all metrics, and the writer if there is one. `start`: index of the first image in the split."""
        for batch in batches:
            batch = batch.to(device)
            selection = None if self.reader else self._select(batch.image, torch.float32)
            # In another precision, stage 1 can choose other patches.
            outputs = self.outputs(batch.image, selection if self.precision == torch.float32 else None)
            check_logits(outputs, batch.paths)
            self._add_laps()  # those of the batch before: the device has finished them, as `check_logits` waited
            logits = class_logits(outputs, self.info)
            predicted = logits.argmax(1)
            classes: dict[Target, Tensor] = {"predicted": predicted, "label": batch.label}
            if self.reader:
                self.reader.check(start, batch.paths, classes)
            if self.writer:
                self.writer.add_images(batch.paths, classes)
            self._to_explain = {} if self.reader else self._to_be_explained(batch, outputs, predicted, selection)
            self._of_batch = {}
            maps = {name: self._score(name, batch, logits, start) for name in self.methods}
            for observe in observers:
                observe(batch, logits, maps)
            start += len(batch)
        self._add_laps()
        states_on_host(metric for metrics in self.metrics.values() for metric in metrics.values())

    @torch.inference_mode()
    def outputs(self, images: Images, selection: Selection | None = None) -> Tensor:
        """Normalised images [M, 3, H, W] -> outputs [M, outputs] of the explained stage.

        `selection`: of these images, if it is known. Otherwise all of them go through stage 1 before the first goes
        through stage 2, so that the host asks once how many patches they keep. Images made when they are read are
        made twice.
        """
        seen = selection or self._select(images, self.precision, only_patches=True)

        def logits(piece: slice) -> Tensor:
            some, part = images[piece], None if seen is None else seen.part(piece)
            with self._autocast(some.device, self.precision):
                outputs = explained_model(self.model, some, self.stage, selection=part).logits(some)
            return outputs if self.precision == torch.float32 else outputs.float()

        return self.auto_batch(logits, len(images))

    def _select(self, images: Images, precision: torch.dtype, only_patches: bool = False) -> Selection | None:
        """The selection of images [M, 3, H, W], if there is a stage 1 and stage 2 is explained; `only_patches`: without
        its maps of parts.
        """
        model = unwrapped(self.model)
        if self.stage == 1 or not selects_patches(model):
            return None

        def select(piece: slice) -> Selection:
            some = images[piece]
            with self._autocast(some.device, precision):
                found = selected(model, some)
            return replace(found, maps=None, logits=None, empty=None) if only_patches else found

        pieces = self.auto_batch.pieces(select, len(images))
        return pieces[0].joined(pieces[1:]).counted()

    @staticmethod
    def _autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
        return torch.autocast(device.type, precision, enabled=precision != torch.float32)

    def predict(self, images: Images) -> Tensor:
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

    def _score(self, name: str, batch: Batch, logits: Tensor, start: int) -> Tensor:
        """Update the metrics with one method's maps of a batch; returns those of the predicted class."""
        metrics = self.metrics[name].values()
        # A file of maps must serve all metrics, so it always gets the maps of both classes.
        label_too = self.writer is not None or any(metric.target == "label" for metric in metrics)
        maps = self._read(name, batch, start) if self.reader else self._explain(name, label_too)
        for metric in metrics:
            explanation = Explanation(maps[metric.target], logits, self.predict, self._of_batch, self.predict)
            metric.update(batch, explanation)
        self.measured(len(batch))
        return maps["predicted"]

    def _read(self, name: str, batch: Batch, start: int) -> dict[Target, Tensor]:
        reader, targets = cast(MapReader, self.reader), cast(tuple[Target, ...], ("predicted", "label"))
        return {target: reader.read(name, target, start, len(batch)).to(batch.image.device) for target in targets}

    def _to_be_explained(
        self, batch: Batch, outputs: Tensor, predicted: Tensor, selection: Selection | None
    ) -> dict[Target, ToExplain]:
        """See `_to_explain`. If several outputs belong to a class, the highest one is explained."""
        device = batch.image.device
        chosen = best_outputs(outputs, predicted, self.info)
        found: dict[Target, ToExplain] = {
            "predicted": ToExplain(torch.arange(len(batch), device=device), batch.image, chosen, selection)
        }
        wrong = [row for row, right in enumerate((predicted == batch.label).tolist()) if not right]
        if wrong:
            rows = on_device(wrong, device)
            chosen = best_outputs(outputs[rows], batch.label[rows], self.info)
            found["label"] = ToExplain(rows, batch.image[rows], chosen, selection and selection.part(wrong))
        return found

    def _explain(self, name: str, label_too: bool) -> dict[Target, Tensor]:
        """Maps of the predicted and, with `label_too`, of the true class; equal maps are computed once."""
        maps: dict[Target, Tensor] = {"predicted": self._maps(name, self._to_explain["predicted"])}
        if label_too:
            maps["label"] = maps["predicted"]
            if self.methods[name].class_specific and (wrong := self._to_explain.get("label")):
                maps["label"] = maps["label"].index_copy(0, wrong.rows, self._maps(name, wrong))
        if self.writer:
            for target, of_target in maps.items():
                self.writer.add(name, target, of_target)
        return maps

    def _maps(self, name: str, wanted: ToExplain) -> Tensor:
        """Maps [R, h, w]."""

        def explain(piece: slice) -> Tensor:
            images, selection = wanted.images[piece], wanted.selection and wanted.selection.part(piece)
            explained = explained_model(self.model, images, self.stage, selection=selection)
            return run_method(self.methods[name], explained, images, wanted.outputs[piece])

        timing, started = self.timings.setdefault(name, MethodTiming()), _mark(wanted.images.device)
        maps = self.auto_batch(explain, len(wanted.rows))
        self._laps.append((timing, started, _mark(wanted.images.device)))
        timing.maps += len(wanted.rows)
        return maps

    def _add_laps(self) -> None:
        for timing, started, ended in self._laps:
            timing.seconds += _seconds(started, ended)
        self._laps.clear()


def _mark(device: torch.device) -> Mark:
    """This moment; on a GPU the one when all work so far is done, for which the host does not wait."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(started: Mark, ended: Mark) -> float:
    if isinstance(started, float):
        return cast(float, ended) - started
    last = cast(torch.cuda.Event, ended)
    last.synchronize()
    return float(started.elapsed_time(last)) / 1000


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
