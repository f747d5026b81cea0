"""Agreement of two explanation methods, as a training loss and as a metric (ATCON)."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.processes import gather_blocks
from common.seeds import stable_seed
from common.transfer import on_device
from datasets.types import Batch
from engine.training.objectives import Objective, ObjectiveOutput
from explain import build_method, explain
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
"""Method name in the config -> registered method and the options that differ from its defaults."""


@dataclass(frozen=True)
class Consistency:
    """`consistency(model, images)`: loss per image, lower if both explanations of its predicted class agree better.

    With gradients enabled it is differentiable in all trainable weights; without, it gives the same values with much
    less memory. The model always runs in eval mode and full precision.
    """

    config: ConsistencyConfig

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> [B]. Raises UserError for a method that cannot explain the model."""
        return self._loss(*self._maps(model, predicted_classes(model, images)), images)

    def measured(self, model: nn.Module, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """(agreement, loss) of each image for the given class [B], [B] each. Each map is computed once.

        Agreement is the Pearson correlation of the two maps, in [-1, 1], at the lower of their resolutions.
        """
        first, second = (cached(maps_of, images) for maps_of in self._maps(model, classes))
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
            method, options = METHOD_OPTIONS.get(name, (name, {}))
            layer = {"module": self.config.layer} if name == "gradcam" else {}
            return partial(run, model, method=build_method(method, **options, **layer), targets=classes)

        return maps_of(self.config.first), maps_of(self.config.second)


def cached(maps_of: MapsOf, images: Tensor) -> MapsOf:
    """The same function with the maps of this `images` tensor precomputed."""
    maps = maps_of(images)
    return lambda others: maps if others is images else maps_of(others)


class ConsistencyObjective:
    """Another objective on labelled images plus consistency on unlabelled ones."""

    def __init__(self, objective: Objective, config: ConsistencyConfig, everywhere: bool) -> None:
        """`everywhere`: consistency on all images, labelled or not (data.semi.mode=supervised)."""
        self.objective, self.weight, self.everywhere = objective, config.weight, everywhere
        self.consistency = Consistency(config)

    def __call__(self, model: nn.Module, batch: Batch, stage_1_only: bool = False) -> ObjectiveOutput:
        """Loss of one batch; without consistency if `stage_1_only`, because it explains stage 2."""
        labelled = len(batch) - batch.unlabelled  # labelled images come first
        output = self.objective(model, batch.with_labels(), stage_1_only) if labelled else None
        images = batch.image if self.everywhere else batch.image[labelled:]
        if output is not None and (stage_1_only or not len(images)):
            return output
        value = self.consistency(model, images).mean()
        terms = {"consistency": value.detach()}
        if output is None:
            return ObjectiveOutput(self.weight * value, terms, None)
        # Accuracy is counted over whole batches, and this prediction covers the labelled images only.
        prediction = None if batch.unlabelled else output.prediction
        loss = output.loss + self.weight * value
        return replace(output, loss=loss, terms=output.terms | terms, prediction=prediction)


class Agreement:
    """Evaluation observer: agreement of two explanations of a model, averaged over images.

    `agreement`: mean correlation of the two maps, in [-1, 1] (`Consistency.measured`). `consistency`: mean training
    loss. Both come with `/low` and `/high`, a 95 % bootstrap interval over images. `report_fraction` selects images by
    hashes of their paths, so neither batch size nor the number of processes matters.
    """

    def __init__(self, model: nn.Module, config: ConsistencyConfig) -> None:
        self.model, self.consistency = model, Consistency(config)
        self.wanted = config.report or config.weight > 0
        """Whether the config requests these metrics."""
        self.columns: dict[str, list[float]] = {"agreement": [], "consistency": []}

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Explain the predicted classes of one batch."""
        limit = self.consistency.config.report_fraction * 2**32  # seeds are uniform in [0, 2^32)
        chosen = [i for i, path in enumerate(batch.paths) if stable_seed("agreement", path) < limit]
        values = torch.full((2, len(batch)), torch.nan, dtype=torch.float64)
        if chosen:
            rows = on_device(chosen, batch.image.device)
            classes = prediction.logits[rows].argmax(1)
            measured = self.consistency.measured(self.model, batch.image[rows], classes)
            values[:, chosen] = torch.stack(measured).double().cpu()
        for column, new in zip(self.columns.values(), values.tolist(), strict=True):
            column += new  # nan for images left out: `gather_blocks` needs one value per image

    def results(self) -> dict[str, float]:
        """The metrics named in the class docstring; empty if nothing was measured."""
        columns = {name: np.array(gather_blocks(values)) for name, values in self.columns.items()}
        measured = ~np.isnan(columns["agreement"])
        columns = {name: values[measured] for name, values in columns.items()}

        def means(weight: np.ndarray) -> dict[str, float]:
            return {name: weighted_mean(values, weight) for name, values in columns.items()}

        count = len(columns["agreement"])
        return means(np.ones(count)) | bootstrap(means, count) if count else {}
