"""Agreement of two explanations as a loss and as a figure (ATCON): methods, classes and matching put together."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.types import Batch
from engine.objectives import Objective, Outcome
from explain import Explainer, build_method, explain
from explain.differentiable import differentiable_maps, predicted_classes
from losses.config import ConsistencyConfig
from losses.consistency import consistency, pearson, standardise
from losses.matching import MapsOf, matched, same_size
from metrics.per_image import bootstrap, weighted_mean
from metrics.types import Prediction

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
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
        config = self.config
        with torch.autocast(images.device.type, enabled=False):
            pair = matched(*self._maps(model, images), images, config.resolution_match, config.mask_intensity)
            return consistency(*pair, config.similarity)

    def agreement(self, model: nn.Module, images: Tensor) -> Tensor:
        """Pearson's correlation of the two maps themselves, at the coarser one's resolution: [B] in [-1, 1]."""
        first, second = (maps_of(images) for maps_of in self._maps(model, images))
        return pearson(*(standardise(maps) for maps in same_size(first, second, smaller=True)))

    def _maps(self, model: nn.Module, images: Tensor) -> tuple[MapsOf, MapsOf]:
        classes = predicted_classes(model, images)
        run = differentiable_maps if torch.is_grad_enabled() else explain

        def maps_of(name: str) -> MapsOf:
            return partial(run, model, method=self._method(name), targets=classes)

        return maps_of(self.config.first), maps_of(self.config.second)

    def _method(self, name: str) -> Explainer:
        method, options = METHODS.get(name, (name, {}))
        return build_method(method, **options, **({"module": self.config.layer} if name == "gradcam" else {}))


class ConsistentObjective:
    """Another objective on the images with labels, and consistency on those without."""

    def __init__(self, objective: Objective, config: ConsistencyConfig, everywhere: bool) -> None:
        """`everywhere`: consistency on every image, with label or without (data.semi.mode=supervised)."""
        self.objective, self.weight, self.everywhere = objective, config.weight, everywhere
        self.consistency = Consistency(config)

    def __call__(self, model: nn.Module, batch: Batch, stage_1_only: bool = False) -> Outcome:
        """Loss of one batch; epochs of stage 1 alone, whose stage 2 has nothing to explain, go without consistency."""
        labelled = len(batch) - batch.unlabelled
        outcome = self.objective(model, batch.with_labels(), stage_1_only) if labelled else None
        images = batch.image if self.everywhere else batch.image[labelled:]
        if outcome is not None and (stage_1_only or not len(images)):
            return outcome
        value = self.consistency(model, images).mean()
        terms = {"consistency": value.detach()}
        if outcome is None:
            return Outcome(self.weight * value, terms, None)
        prediction = None if batch.unlabelled else outcome.prediction
        return replace(
            outcome, loss=outcome.loss + self.weight * value, terms=outcome.terms | terms, prediction=prediction
        )


class Agreement:
    """An observer of an evaluation: how far the two explanations of a model agree, over all images.

    `agreement`: mean of `Consistency.agreement`, in [-1, 1]; `consistency`: mean loss, as it is trained on. Both with
    `/low` and `/high`, their 95 % bootstrap interval over images.
    """

    def __init__(self, model: nn.Module, config: ConsistencyConfig) -> None:
        self.model, self.consistency = model, Consistency(config)
        self.wanted = config.report or config.weight > 0
        """Whether the config asks for these figures."""
        self.columns: dict[str, list[float]] = {"agreement": [], "consistency": []}

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Explain one batch."""
        self.columns["agreement"] += self.consistency.agreement(self.model, batch.image).double().tolist()
        self.columns["consistency"] += self.consistency(self.model, batch.image).double().tolist()

    def figures(self) -> dict[str, float]:
        """The figures named in the class docstring; none where nothing was seen."""
        columns = {name: np.array(values) for name, values in self.columns.items() if values}

        def means(weight: np.ndarray) -> dict[str, float]:
            return {name: weighted_mean(values, weight) for name, values in columns.items()}

        count = len(self.columns["agreement"])
        return means(np.ones(count)) | bootstrap(means, count) if count else {}
