"""Outputs of an evaluation of explanation methods: the table's records, the metrics of every image, example maps."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from common.processes import gather, gather_blocks, processes
from common.transfer import on_device, on_host
from datasets import Split
from datasets.types import Batch
from engine.explanation.evaluator import ExplanationEvaluator
from explain import METHODS
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
        if len(self.collected) == self.limit:
            return
        chosen: list[tuple[int, int]] = []  # group and position in the batch
        for i, group in enumerate((batch.label if batch.group is None else batch.group).tolist()):
            if self._has_room(group, [*self.collected, *chosen]):
                chosen.append((group, i))
        if chosen:
            examples = self._examples(batch, logits, maps, [i for _, i in chosen])
            self.collected += zip([group for group, _ in chosen], examples, strict=True)

    def images(self) -> list[ExplainedImage]:
        """The first images over all processes; every process must call."""
        chosen: list[tuple[int, ExplainedImage]] = []
        for group, image in gather_blocks(self.collected):
            if self._has_room(group, chosen):
                chosen.append((group, image))
        return [image for _, image in chosen]

    def _has_room(self, group: int, collected: Sequence[tuple[int, object]]) -> bool:
        return len(collected) < self.limit and sum(other == group for other, _ in collected) < self.per_group

    def _examples(
        self, batch: Batch, logits: Tensor, maps: Mapping[str, Tensor], rows: list[int]
    ) -> Iterator[ExplainedImage]:
        """The images `rows` of the batch."""
        index = on_device(rows, logits.device)
        tensors = [logits.float(), batch.label, batch.image, *maps.values()]
        tensors += [] if batch.mask is None else [batch.mask]
        scores, labels, images, *others = on_host(tensor[index] for tensor in tensors)
        heats, masks = dict(zip(maps, others, strict=False)), others[len(maps) :]
        probabilities = scores.sigmoid() if self.split.info.multi_label else scores.softmax(1)
        names = self.split.info.class_names
        for i, label in enumerate(labels.tolist()):
            predicted = int(scores[i].argmax())
            correct = predicted == label
            yield ExplainedImage(
                pixels=denormalise(images[i], self.mean, self.std),
                caption=f"{names[predicted]} {probabilities[i, predicted]:.0%}"
                + ("" if correct else f"\nis {names[label]}"),
                correct=correct,
                maps={name: heat[i] for name, heat in heats.items()},
                truth=masks[0][i] if masks else None,
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


def metric_table(records: Sequence[Mapping[str, Any]], width: int | None = None) -> str:
    """The metrics as text, without counts and intervals: one line per metric, one column per row of the table of
    methods; "-": not measured. Columns that do not fit into `width` characters go below.
    """
    frame = pd.DataFrame(records).set_index("row").T.rename_axis(columns=None)
    extra = [key for key in frame.index if "count" in key.split("/") or key.endswith(("/low", "/high"))]
    return str(frame.drop(extra).to_string(float_format="{:.4g}".format, na_rep="-", line_width=width))


def remove_other_methods(out: Path, methods: Iterable[str]) -> None:
    """Delete the tables per image that an earlier evaluation of other methods left in the same folder."""
    for name in set(METHODS) - set(methods):
        (out / "per_image" / f"{name}.csv").unlink(missing_ok=True)
