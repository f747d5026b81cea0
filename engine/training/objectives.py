"""Training objectives: `(model, batch) -> loss, terms, prediction`. The trainer knows no loss terms."""

from dataclasses import dataclass, fields
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from common.registry import Registry
from datasets.types import Batch
from engine.evaluation.predict import given_mask, prediction_of
from losses import parts
from losses.classification import ClassificationLoss, Mixup
from losses.config import LossConfig
from losses.equivariance import draw_view, num_views, unwarp_maps, warp_images
from metrics.types import Prediction
from models.interface import ImageClassifier
from models.outputs import StageOneOutput, TwoStageOutput


@dataclass(frozen=True)
class ObjectiveOutput:
    """The loss of one batch."""

    loss: Tensor
    """Scalar, the weighted sum of the terms."""
    terms: dict[str, Tensor]
    """The value of each term, unweighted and detached."""
    prediction: Prediction | None
    """The prediction for the batch; None if it cannot be compared with the labels (mixed images)."""


class Objective(Protocol):
    """A way to train a model."""

    def __call__(self, model: Any, batch: Batch, stage_1_only: bool = False) -> ObjectiveOutput: ...


class ClassifierObjective:
    """Classification loss only: models with one stage, with or without given masks."""

    def __init__(self, config: LossConfig, num_classes: int, class_counts: list[int]) -> None:
        """`class_counts`: training images per class."""
        self.classify = ClassificationLoss(config.classification, num_classes, class_counts)
        self.mixup = Mixup(config.classification, num_classes)

    def __call__(self, model: nn.Module, batch: Batch, stage_1_only: bool = False) -> ObjectiveOutput:
        """Loss of one batch. `stage_1_only` has no effect on a model with one stage."""
        images, targets = self.mixup(batch.image, batch.targets)
        output = model(images, **given_mask(model, batch))
        with torch.autocast(images.device.type, enabled=False):
            loss = self.classify(output.logits.float(), targets)
        return ObjectiveOutput(
            loss, {"classification": loss.detach()}, None if self.mixup.active else prediction_of(output)
        )


class TwoStageObjective:
    """Classification losses of both stages and the part losses of stage 1 (iFAM, section 3.3)."""

    def __init__(self, config: LossConfig, num_classes: int, class_counts: list[int]) -> None:
        """`class_counts`: training images per class."""
        self.config = config
        self.classify = ClassificationLoss(config.classification, num_classes, class_counts)
        self.mixup = Mixup(config.classification, num_classes)

    def __call__(self, model: ImageClassifier, batch: Batch, stage_1_only: bool = False) -> ObjectiveOutput:
        """Loss of one batch. `stage_1_only` skips stage 2 and its loss."""
        images, targets = self.mixup(batch.image, batch.targets)
        stage_1 = model.select(images, one_time=True) if self.mixup.active else model.select(images)
        stage_2 = None if stage_1_only else self._stage_2(model, images, stage_1)
        maps_back, valid = self._second_view(model, images)
        with torch.autocast(images.device.type, enabled=False):
            terms = self._terms(stage_1, stage_2, targets)
            if maps_back is not None:
                maps = stage_1.part_maps[: len(maps_back)]  # a view may be drawn of the first images only
                terms["equivariance"] = parts.equivariance(maps, maps_back.float(), valid)
            # Terms of weight 0 are not in `terms`: they are never computed.
            weights = {field.name: getattr(self.config.weights, field.name) for field in fields(self.config.weights)}
            loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        output = stage_1 if stage_2 is None else TwoStageOutput(stage_2, stage_1)
        prediction = None if stage_1_only or self.mixup.active else prediction_of(output)
        return ObjectiveOutput(loss, {name: value.detach() for name, value in terms.items()}, prediction)

    def _stage_2(self, model: Any, images: Tensor, stage_1: StageOneOutput) -> Tensor | None:
        return cast(Tensor, model.predict(images, stage_1.selection))

    def _second_view(self, model: Any, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Part maps of a warped view, warped back, and where they are valid. Only stage 1 runs on the view."""
        if not self.config.weights.equivariance:
            return None, None
        config = self.config.equivariance
        images = images[: num_views(len(images), config)]
        view = draw_view(len(images), (images.shape[-2], images.shape[-1]), config, device=images.device)
        warped = model.select(warp_images(images, view), one_time=True)
        return unwarp_maps(warped.part_maps, view)

    def _terms(self, stage_1: StageOneOutput, stage_2: Tensor | None, targets: Tensor) -> dict[str, Tensor]:
        config, weights = self.config, self.config.weights
        maps, logits = stage_1.part_maps, stage_1.selection.logits
        assert logits is not None
        # Lambdas, so that only terms with a weight are computed.
        candidates = {
            "stage_2": lambda: None if stage_2 is None else self.classify(stage_2.float(), targets),
            "stage_1": lambda: self.classify(stage_1.class_logits.float(), targets),
            "presence": lambda: parts.presence(maps, config.presence, config.presence_beta),
            "enforced_presence": lambda: parts.enforced_presence(maps, config.enforced_presence),
            "total_variation": lambda: parts.total_variation(maps),
            "entropy": lambda: parts.pixel_entropy(maps),
            "orthogonality": lambda: parts.orthogonality(stage_1.part_features, config.orthogonality),
            "concentration": lambda: parts.concentration(maps),
            "border": lambda: parts.border(logits, config.border_weight),
        }
        values = {name: term() for name, term in candidates.items() if getattr(weights, name)}
        return {name: value for name, value in values.items() if value is not None}


class PartsObjective(TwoStageObjective):
    """Stage 1 alone (PDiscoFormer): all terms except that of stage 2, whatever its weight."""

    def _stage_2(self, model: Any, images: Tensor, stage_1: StageOneOutput) -> None:
        return None


OBJECTIVES: Registry[type[TwoStageObjective] | type[ClassifierObjective]] = Registry("objective of a model")
OBJECTIVES.register("classification")(ClassifierObjective)
OBJECTIVES.register("two_stage")(TwoStageObjective)
OBJECTIVES.register("parts")(PartsObjective)


def reads_annotations(objective: type) -> bool:
    """Whether the objective may read masks, key points or boxes of a batch: any but ours, subclasses included."""
    return objective not in (ClassifierObjective, TwoStageObjective, PartsObjective)
