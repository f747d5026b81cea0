"""What is kept of an evaluation of explanation methods: the table's records, the metrics of every image, a few maps."""

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
from engine.explanation.map_metrics import MapMetricOptions
from report.explanations import ExplainedImage
from report.files import write_atomic
from report.overlays import denormalise


@dataclass
class ExampleCollector:
    """Keeps a few images with all their maps for the sheet; an observer of `ExplanationEvaluator.run`."""

    split: Split
    protocol: MapMetricOptions
    limit: int = 12
    kept: list[tuple[int, ExplainedImage]] = field(default_factory=list)
    """With the group or class of each."""

    def __post_init__(self) -> None:
        groups = self.split.raw.groups or self.split.labels
        self.per_group = max(1, self.limit // max(1, len(set(groups))))

    def __call__(self, batch: Batch, logits: Tensor, maps: Mapping[str, Tensor]) -> None:
        """Keep the first images of every group or class."""
        groups = (batch.label if batch.group is None else batch.group).tolist()
        for i, group in enumerate(groups):
            if self._has_room(group, self.kept):
                self.kept.append((group, self._shown(batch, logits, maps, i)))

    def images(self) -> list[ExplainedImage]:
        """The first of all processes; every process must ask."""
        chosen: list[tuple[int, ExplainedImage]] = []
        for group, image in gather_blocks(self.kept):
            if self._has_room(group, chosen):
                chosen.append((group, image))
        return [image for _, image in chosen]

    def _has_room(self, group: int, kept: list[tuple[int, ExplainedImage]]) -> bool:
        return len(kept) < self.limit and sum(other == group for other, _ in kept) < self.per_group

    def _shown(self, batch: Batch, logits: Tensor, maps: Mapping[str, Tensor], i: int) -> ExplainedImage:
        names, predicted, label = self.split.info.class_names, int(logits[i].argmax()), int(batch.label[i])
        return ExplainedImage(
            pixels=denormalise(batch.image[i], self.protocol.mean, self.protocol.std),
            caption=names[predicted] + ("" if predicted == label else f"\nis {names[label]}"),
            correct=predicted == label,
            maps={name: heat[i].cpu() for name, heat in maps.items()},
            truth=None if batch.mask is None else batch.mask[i].cpu(),
        )


def method_records(bench: ExplanationEvaluator, others: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """One record per row of the table: "row" and metrics. `others`: metrics by row that are not the bench's own.

    Every process must ask, and gets the same.
    """
    clocks = bench.gathered_timings()
    rows: dict[str, dict[str, float]] = {}
    for name, metrics in bench.metrics.items():
        rows[name] = {figure: value for metric in metrics.values() for figure, value in metric.compute().items()}
        if name in clocks:
            rows[name]["seconds_per_map"] = clocks[name].seconds_per_map
    for name, results in others.items():
        rows[name] = {**rows.get(name, {}), **results}
    return [{"row": name, **results} for name, results in rows.items()]


def write_per_image(out: Path, bench: ExplanationEvaluator) -> None:
    """One CSV per method: a line per image, every column of every metric (curves, scores, counts).

    Every process must call; the first one writes the lines of all.
    """
    for method, metrics in bench.metrics.items():
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
