"""Metrics of a model itself, and of methods compared by a two-stage model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor

from common.processes import gather_blocks
from datasets import Split
from datasets.types import Batch
from engine.explanation.map_metrics import OF_STAGE_2, OF_THE_MODEL, MapMetricOptions, MetricSelection
from engine.explanation.masked_classifier import MaskedClassifier
from engine.explanation.through_resize import ThroughResize
from metrics.base import is_correct
from metrics.class_mapping import class_logits
from metrics.maps.as_masks import MaskComparison
from metrics.maps.background_swap import BackgroundSwap
from metrics.maps.certificate import Certificate, masked_explanation
from metrics.maps.per_image import bootstrap, weighted_mean
from metrics.types import Prediction
from models.selection import Selection, selection_of

OWN_MASK, TRUE_MASK = "(its own mask)", "(true mask)"
PROTOCOLS: dict[str, dict[str, object]] = {
    OF_STAGE_2: {
        "maps_of": "predicted class",
        "mask": "the largest patches (pixels, with mask_resolution=pixel) of a map, as many as the model keeps",
        "true_mask": "the patches that the object covers at least half, or its pixels",
        "nan_maps": "counted, show nothing",
    },
    OF_THE_MODEL: {
        "background": "the previous image's, its object painted over in the mean colour around it",
        "first_image": "its own background, upside down",
        "images": "those with an object",
    },
}
"""Protocols of the metrics that do not belong to a single method."""


@dataclass
class ModelChecks:
    """Observer of `ExplanationEvaluator.run` for the metrics that do not belong to a single method."""

    split: Split
    wanted: MetricSelection
    options: MapMetricOptions
    predict: Callable[[Tensor], Tensor]
    """The classifier under explanation: images [B, 3, H, W] -> logits [B, C]."""
    own: MaskedClassifier | None
    """The model under explanation, if it is a two-stage one."""
    masked_classifier: MaskedClassifier | None
    """The two-stage model that classifies with maps as masks."""
    through_resize: ThroughResize | None = None
    """`--through-resize`."""
    right: list[Tensor] = field(default_factory=list)
    """Of each batch [B] bool: which images are classified correctly."""

    def __post_init__(self) -> None:
        info, masked = self.split.info, self.masked_classifier
        certify = self.own is not None and "certificate" in self.wanted.maps
        self.certificate = Certificate(info, self.options.patch, 1.0) if certify else None
        self.swap = BackgroundSwap(lambda images: self._answer(images, self.predict(images)))
        self.comparison = None
        if masked is not None and self.wanted.as_masks:
            self.comparison = MaskComparison(
                info,
                lambda images, visible: class_logits(
                    masked.predict(images, selection_of(visible, masked.model.patch_grid)), info
                ),
            )

    def _answer(self, images: Tensor, logits: Tensor, selection: Selection | None = None) -> Prediction:
        if self.own is None:
            return Prediction(logits)
        selection = selection or self.own.select(images)
        return Prediction(logits, mask=selection.mask, pixels=selection.pixels)

    def start_after(self, previous: Batch) -> None:
        """Pass the image before the first one, if another process evaluates it."""
        if self.wanted.background_swap:
            self.swap.start_after(previous)
        if self.certificate:
            self.certificate.start_after(previous)

    def __call__(self, batch: Batch, logits: Tensor, maps: Mapping[str, Tensor]) -> None:
        """Update all metrics with one batch."""
        self.right.append(is_correct(logits, batch.label))
        compared = self.comparison and self.masked_classifier is self.own
        needed = self.certificate or self.through_resize or self.wanted.background_swap or compared
        fixed = self.own.select(batch.image) if self.own and needed else None
        if self.wanted.background_swap:
            self.swap.update(batch, self._answer(batch.image, logits, fixed))
        if self.through_resize and fixed:
            self.through_resize.update(batch, fixed)
        if self.certificate and (own := self.own) and fixed:
            self.certificate.update(
                batch,
                masked_explanation(
                    batch.image,
                    fixed.visible,
                    lambda images, _: class_logits(own.predict(images, fixed), self.split.info),
                ),
            )
        if self.comparison and self.masked_classifier:
            learned = fixed if compared else self.masked_classifier.select(batch.image)
            self.comparison.update(batch, cast(Selection, learned).visible, maps)

    def model_results(self) -> dict[str, float]:
        """Metrics of the model, independent of the methods. Every process must call this, and `rows` too."""
        own = torch.cat(self.right).tolist() if self.right else []
        right = np.array(gather_blocks(own), float)

        def results(weight: np.ndarray) -> dict[str, float]:
            return {"accuracy": weighted_mean(right, weight)}

        accuracy = results(np.ones(len(right))) | bootstrap(results, len(right)) | {"count/images": float(len(right))}
        return accuracy | (self.swap.compute() if self.wanted.background_swap else {})

    def protocols(self) -> dict[str, dict[str, object]]:
        """Protocols of the metrics computed here."""
        computed = {OF_STAGE_2: self.comparison is not None, OF_THE_MODEL: self.wanted.background_swap}
        protocols = {name: PROTOCOLS[name] for name in PROTOCOLS if computed[name]}
        if self.certificate:
            fixed = {"kept": "the model's own mask, held fixed"}
            protocols[f"certificate {OWN_MASK}"] = self.certificate.protocol() | fixed
        if self.through_resize:
            protocols["through_resize"] = self.through_resize.protocol()
        return protocols

    def rows(self) -> dict[str, dict[str, float]]:
        """Row of the table -> metrics. Rows are methods, the model's own mask, and the true mask."""
        rows: dict[str, dict[str, float]] = {}
        if self.comparison:
            names = {"learned": OWN_MASK, "truth": TRUE_MASK}
            for source, results in self.comparison.compute().items():
                rows[names.get(source, source)] = {f"as_mask/{key}": value for key, value in results.items()}
        if self.certificate:
            rows[OWN_MASK] = rows.get(OWN_MASK, {}) | self.certificate.compute()
        if self.through_resize:
            rows[OWN_MASK] = rows.get(OWN_MASK, {}) | self.through_resize.compute()
        return rows
