"""Agreement of two explanations as a loss and as a figure (ATCON): methods, classes and matching put together."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.processes import gather_blocks
from common.seeds import stable_seed
from datasets.types import Batch
from engine.training.objectives import Objective, ObjectiveOutput
from explain import Explainer, build_method, explain
from explain.differentiable import differentiable_maps, predicted_classes
from losses.config import ConsistencyConfig
from losses.consistency import consistency, pearson, standardise
from losses.matching import MapsOf, matched, same_size
from metrics.maps.per_image import bootstrap, weighted_mean
from metrics.types import Prediction

METHOD_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gradcam": ("gradcam", {"relu": False}),
    "integrated_gradients": ("integrated_gradients", {"steps": 6, "absolute": True}),
    "foreground": ("inherent", {"what": "foreground"}),
}
"""Names of the config whose method has another name or other options than its own."""


@dataclass(frozen=True)
class Consistency:
    """`consistency(model, images)`: a number per image, lower where both explanations of its top class agree more.

    Differentiable in every trainable weight where gradients are on; without them the same numbers, at a fraction of the
    memory. The model works in eval mode, in full precision, whatever its mode and autocast are.
    """

    config: ConsistencyConfig

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """images [B, 3, H, W], normalised -> [B]. Raises UserError for a method that cannot explain the model."""
        return self._loss(*self._maps(model, predicted_classes(model, images)), images)

    def measured(self, model: nn.Module, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """(agreement, loss) of each image for its class, [B] each; maps that both need are computed once.

        Agreement is Pearson's correlation of the two maps themselves, at the coarser one's resolution: in [-1, 1].
        """
        first, second = (computed_once(maps_of, images) for maps_of in self._maps(model, classes))
        pair = same_size(first(images), second(images), smaller=True)
        return pearson(*(standardise(maps) for maps in pair)), self._loss(first, second, images)

    def _loss(self, first: MapsOf, second: MapsOf, images: Tensor) -> Tensor:
        config = self.config
        with torch.autocast(images.device.type, enabled=False):
            pair = matched(first, second, images, config.resolution_match, config.mask_intensity)
            return consistency(*pair, config.similarity)

    def _maps(self, model: nn.Module, classes: Tensor) -> tuple[MapsOf, MapsOf]:
        run = differentiable_maps if torch.is_grad_enabled() else explain

        def maps_of(name: str) -> MapsOf:
            return partial(run, model, method=self._method(name), targets=classes)

        return maps_of(self.config.first), maps_of(self.config.second)

    def _method(self, name: str) -> Explainer:
        method, options = METHOD_OPTIONS.get(name, (name, {}))
        return build_method(method, **options, **({"module": self.config.layer} if name == "gradcam" else {}))


def computed_once(maps_of: MapsOf, images: Tensor) -> MapsOf:
    """The same function, with the maps of this very tensor of images at hand."""
    maps = maps_of(images)
    return lambda others: maps if others is images else maps_of(others)


class ConsistencyObjective:
    """Another objective on the images with labels, and consistency on those without."""

    def __init__(self, objective: Objective, config: ConsistencyConfig, everywhere: bool) -> None:
        """`everywhere`: consistency on every image, with label or without (data.semi.mode=supervised)."""
        self.objective, self.weight, self.everywhere = objective, config.weight, everywhere
        self.consistency = Consistency(config)

    def __call__(self, model: nn.Module, batch: Batch, stage_1_only: bool = False) -> ObjectiveOutput:
        """Loss of one batch; epochs of stage 1 alone, whose stage 2 has nothing to explain, go without consistency."""
        labelled = len(batch) - batch.unlabelled
        outcome = self.objective(model, batch.with_labels(), stage_1_only) if labelled else None
        images = batch.image if self.everywhere else batch.image[labelled:]
        if outcome is not None and (stage_1_only or not len(images)):
            return outcome
        value = self.consistency(model, images).mean()
        terms = {"consistency": value.detach()}
        if outcome is None:
            return ObjectiveOutput(self.weight * value, terms, None)
        prediction = None if batch.unlabelled else outcome.prediction
        return replace(
            outcome, loss=outcome.loss + self.weight * value, terms=outcome.terms | terms, prediction=prediction
        )


class Agreement:
    """An observer of an evaluation: how far the two explanations of a model agree, over all images.

    `agreement`: mean correlation of the two maps, in [-1, 1] (`Consistency.measured`); `consistency`: mean loss, as it
    is trained on. Both with `/low` and `/high`, their 95 % bootstrap interval over images. `report_fraction` chooses
    images by their paths alone, so by neither batches nor the number of processes.
    """

    def __init__(self, model: nn.Module, config: ConsistencyConfig) -> None:
        self.model, self.consistency = model, Consistency(config)
        self.wanted = config.report or config.weight > 0
        """Whether the config asks for these metrics."""
        self.columns: dict[str, list[float]] = {"agreement": [], "consistency": []}

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Explain what the model answered for one batch."""
        below = self.consistency.config.report_fraction * 2**32
        chosen = [i for i, path in enumerate(batch.paths) if stable_seed("agreement", path) < below]
        values = torch.full((2, len(batch)), torch.nan, dtype=torch.float64)
        if chosen:
            classes = prediction.logits[chosen].argmax(1)
            measured = self.consistency.measured(self.model, batch.image[chosen], classes)
            values[:, chosen] = torch.stack(measured).double().cpu()
        for column, of_images in zip(self.columns.values(), values.tolist(), strict=True):
            column += of_images  # a nan for every image left out: processes are put together image by image

    def results(self) -> dict[str, float]:
        """The metrics named in the class docstring; none where nothing was measured."""
        columns = {name: np.array(gather_blocks(values)) for name, values in self.columns.items()}
        there = ~np.isnan(columns["agreement"])
        columns = {name: values[there] for name, values in columns.items()}

        def means(weight: np.ndarray) -> dict[str, float]:
            return {name: weighted_mean(values, weight) for name, values in columns.items()}

        count = len(columns["agreement"])
        return means(np.ones(count)) | bootstrap(means, count) if count else {}
