"""Outputs of an evaluation of explanation methods: the table's records, the metrics of every image, example maps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from common.processes import gather, gather_blocks, processes
from datasets import Split
from datasets.types import Batch
from engine.explanation.evaluator import ExplanationEvaluator
from report.explanations import ExplainedImage
from report.files import write_atomic
from report.overlays import denormalise

Triple = tuple[float, float, float]


@dataclass
class ExampleCollector:
    """Collects a few images with all their maps for the contact sheet; an observer of `ExplanationEvaluator.run`."""

    split: Split
    mean: Triple
    """The normalisation to undo, per channel."""
    std: Triple
    limit: int = 12
    collected: list[tuple[int, ExplainedImage]] = field(default_factory=list)
    """Group (or class) and image."""

    def __post_init__(self) -> None:
        groups = self.split.raw.groups or self.split.labels
        self.per_group = max(1, self.limit // max(1, len(set(groups))))

    def __call__(self, batch: Batch, logits: Tensor, maps: Mapping[str, Tensor]) -> None:
        """Collect the first images of every group, or of every class if there are no groups."""
        groups = (batch.label if batch.group is None else batch.group).tolist()
        for i, group in enumerate(groups):
            if self._has_room(group, self.collected):
                self.collected.append((group, self._example(batch, logits, maps, i)))

    def images(self) -> list[ExplainedImage]:
        """The first images over all processes; every process must call."""
        chosen: list[tuple[int, ExplainedImage]] = []
        for group, image in gather_blocks(self.collected):
            if self._has_room(group, chosen):
                chosen.append((group, image))
        return [image for _, image in chosen]

    def _has_room(self, group: int, collected: list[tuple[int, ExplainedImage]]) -> bool:
        return len(collected) < self.limit and sum(other == group for other, _ in collected) < self.per_group

    def _example(self, batch: Batch, logits: Tensor, maps: Mapping[str, Tensor], i: int) -> ExplainedImage:
        info, predicted, label = self.split.info, int(logits[i].argmax()), int(batch.label[i])
        names, scores = info.class_names, logits[i].float()
        probability = float((scores.sigmoid() if info.multi_label else scores.softmax(0))[predicted])
        return ExplainedImage(
            pixels=denormalise(batch.image[i], self.mean, self.std),
            caption=f"{names[predicted]} {probability:.0%}" + ("" if predicted == label else f"\nis {names[label]}"),
            correct=predicted == label,
            maps={name: heat[i].cpu() for name, heat in maps.items()},
            truth=None if batch.mask is None else batch.mask[i].cpu(),
        )


def method_records(evaluator: ExplanationEvaluator, others: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """One record per row of the table: "row" and metrics. `others`: row to metrics that the evaluator does not have.

    Every process must call; all get the same records.
    """
    timings = evaluator.gathered_timings()
    rows: dict[str, dict[str, float]] = {}
    for name, metrics in evaluator.metrics.items():
        rows[name] = {key: value for metric in metrics.values() for key, value in metric.compute().items()}
        if name in timings:  # not for maps that were read from a file
            rows[name]["seconds_per_map"] = timings[name].seconds_per_map
    for name, results in others.items():
        rows[name] = {**rows.get(name, {}), **results}
    return [{"row": name, **results} for name, results in rows.items()]


def write_per_image(out: Path, evaluator: ExplanationEvaluator) -> None:
    """Write per_image/METHOD.csv: one line per image, all columns of all metrics (curves, scores, counts).

    Every process must call; the main process writes.
    """
    for method, metrics in evaluator.metrics.items():
        columns: dict[str, np.ndarray] = {}
        paths: list[str] = []
        for name, metric in metrics.items():
            paths = metric.paths
            columns |= {key if key.startswith(name) else f"{name}/{key}": v for key, v in metric.per_image().items()}
        if columns:
            frame = pd.concat(gather(pd.DataFrame(columns, index=paths)))
            if processes().is_main:
                text = frame.to_csv(index_label="path", float_format="%.8g")
                write_atomic(out / "per_image" / f"{method}.csv", text)
