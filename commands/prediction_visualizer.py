"""Contact sheets of a model's predictions: example images, the worst failures, the effect of removed parts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from datasets import Sample, Split, collate
from engine.evaluation.predict import evaluation_mode, predict
from engine.evaluation.records import ImageRecord
from metrics.class_mapping import to_dataset_classes
from models.part_discovery import Intervention
from report.examples import Example, example_sheet, failure_sheet, removal_sheet
from report.overlays import denormalise

Triple = tuple[float, float, float]


class PredictionVisualizer:
    """Shows a model's predictions for some images of one split."""

    def __init__(self, split: Split, mean: Triple, std: Triple) -> None:
        """`mean`, `std`: per-channel normalisation of the images, to undo it."""
        self.split, self.mean, self.std = split, mean, std

    def sheet(self, model: nn.Module, path: Path, per_group: int = 3, **options: Any) -> Path:
        """Contact sheet of the first images of every group, or of every class if there are no groups.

        `options` are passed to the model.
        """
        return example_sheet(self.examples(model, self._spread(per_group), **options), path)

    def failures(
        self, model: nn.Module, records: Sequence[ImageRecord], path: Path, limit: int = 12, **options: Any
    ) -> Path | None:
        """Contact sheet of the most confident wrong predictions; None if there are none."""
        wrong = [(record.wrong_confidence, i) for i, record in enumerate(records) if record.predicted != record.label]
        worst = [i for _, i in sorted(wrong, reverse=True)[:limit]]
        return failure_sheet(self.examples(model, worst, **options), path) if worst else None

    def removals(self, model: nn.Module, settings: Mapping[str, Intervention], path: Path) -> Path:
        """Contact sheet of the patches that each setting hides, compared with the first one; images as in `sheet`."""
        chosen = self._spread(per_group=2)
        examples = {row: self.examples(model, chosen, intervention=value) for row, value in settings.items()}
        return removal_sheet(examples, path)

    def examples(self, model: nn.Module, indices: Iterable[int], **options: Any) -> list[Example]:
        """The model's predictions for some images of the split, all in one batch."""
        samples = [self.split[i] for i in indices]
        device = next(model.parameters()).device
        with evaluation_mode(model, device, seed=0):
            prediction = to_dataset_classes(predict(model, collate(samples).to(device), **options), self.split.info)
        probability = prediction.logits.softmax(1).cpu()
        names, groups = self.split.info.class_names, self.split.info.group_names
        return [
            Example(
                image=denormalise(sample.image, self.mean, self.std),
                label=names[_true_class(sample, int(probability[i].argmax()))],
                predicted=names[int(probability[i].argmax())],
                confidence=float(probability[i].max()),
                group=groups[sample.group] if groups and sample.group is not None else names[sample.label],
                maps=None if prediction.maps is None else prediction.maps[i].cpu(),
                mask=None if prediction.visible is None else prediction.visible[i].cpu(),
                truth=sample.mask,
            )
            for i, sample in enumerate(samples)
        ]

    def _spread(self, per_group: int) -> list[int]:
        """Indices of the first `per_group` images of each group or class, at most 12."""
        seen: dict[int, list[int]] = {}
        groups = self.split.raw.groups or self.split.labels
        for index, group in enumerate(groups):
            seen.setdefault(int(group), []).append(index)
        return [i for group in sorted(seen) for i in seen[group][:per_group]][:12]


def _true_class(sample: Sample, predicted: int) -> int:
    """The label; for multi-label data the predicted class if it is present."""
    return predicted if sample.present is not None and sample.present[predicted] else sample.label
