"""The interface of all models. Training, evaluation and explanation use it and never test for a concrete class.

A new model is one file: a subclass of `ImageClassifier`, registered with `MODELS.register("name")`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeGuard, cast

import torch
from torch import Tensor, nn

from models.backbone import load_backbone_weights
from models.config import ModelConfig
from models.hub import SavedModel
from models.outputs import ModelOutput, StageOneOutput
from models.selection import Selection
from models.transformer import ViT

Stage = Literal[1, 2]
Readout = Literal["class_token", "patches", "all"]
"""The tokens that a classifier reads after the last block."""


@dataclass(frozen=True)
class NetworkView:
    """The part of a model that explanation methods work on."""

    network: nn.Module
    """The ViT or CNN whose attention, tokens or features are read."""
    logits: Callable[[Tensor], Tensor]
    """Normalised images [B, 3, H, W] -> logits [B, C], differentiable."""
    readout: Readout


class ImageClassifier(nn.Module, SavedModel, library_name="faithful-vit"):
    """Base class of all models.

    A subclass takes `(model_config, num_classes, image_size)`, starts with random weights, returns a `ModelOutput` from
    `forward`, and overrides whatever differs from a plain classifier.
    """

    objective: ClassVar[str] = "classification"
    """Training objective: a name in `OBJECTIVES` (engine/training/objectives.py)."""
    parameter_rules: ClassVar[str] = "classifier"
    """Parameter groups: a name in `PARAM_GROUP_RULES` (engine/training/optim.py)."""
    finds_parts: ClassVar[bool] = False
    """Whether it discovers parts: `select` returns part maps and a mask."""
    reads_selection: ClassVar[bool] = False
    """Whether `predict(images, selection)` classifies from any selection of patches."""
    needs_mask: bool = False
    """Whether `forward` takes pixel masks of the objects as `mask` [B, H, W] bool."""
    not_explainable: str = ""
    """Why explanation methods cannot be used; empty if they can."""

    model_config: ModelConfig
    backbone: nn.Module

    def load_pretrained_backbones(self) -> None:
        """Load `model_config.weights` into the backbones; by default into `network`, a ViT. Raises UserError."""
        config = self.model_config
        load_backbone_weights(cast(ViT, self.network), config.backbone, config.weights)

    def forward(self, *args: Any, **options: Any) -> ModelOutput:
        """Normalised images [B, 3, H, W] -> output; `mask=` if `needs_mask`. Other options depend on the model."""
        raise NotImplementedError

    def select(self, images: Tensor, **options: Any) -> StageOneOutput:
        """Part maps and mask of images [B, 3, H, W], if `finds_parts`."""
        raise NotImplementedError

    def selection(self, images: Tensor) -> Selection:
        """What the classifier sees of images [B, 3, H, W], if the model selects it (`selects_patches`)."""
        return select_parts(self, images).selection

    def predict(self, images: Tensor, selection: Selection) -> Tensor:
        """Logits [B, C] of images [B, 3, H, W] given any selection, if `reads_selection`."""
        raise NotImplementedError

    def network_view(self, stage: Stage = 2, selection: Selection | None = None) -> NetworkView:
        """The network to explain. `stage` and `selection` (the input of stage 2) only matter to two-stage models."""
        return NetworkView(self.network, lambda images: self(images).logits, self.readout)

    @property
    def network(self) -> nn.Module:
        """The backbone of the final classification."""
        return self.backbone

    @property
    def readout(self) -> Readout:
        """The tokens that the final classification reads."""
        return "patches"

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Submodules that `train.compile` compiles separately; if empty, the model is compiled as a whole."""
        return ()

    @property
    def input_size(self) -> tuple[int, int]:
        """Image size (height, width) in pixels that the model was built for."""
        height, width = cast(dict[str, Any], self._hub_mixin_config)["image_size"]
        return int(height), int(width)

    @property
    def num_outputs(self) -> int:
        """C, the number of logits."""
        return int(cast(dict[str, Any], self._hub_mixin_config)["num_classes"])

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels; for a CNN, the stride of its last feature map."""
        return int(cast(ViT, self.network).patch_embed.patch_size[0])

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Patch grid (h, w) of an input image."""
        return self.input_size[0] // self.patch_size, self.input_size[1] // self.patch_size


def finds_parts(model: nn.Module) -> TypeGuard[ImageClassifier]:
    """Whether the model has `select` and outputs part maps."""
    return isinstance(model, ImageClassifier) and model.finds_parts


def needs_mask(model: nn.Module) -> TypeGuard[ImageClassifier]:
    """Whether the model needs object masks as input."""
    return isinstance(model, ImageClassifier) and model.needs_mask


def gives_mask(model: nn.Module) -> bool:
    """Whether the model outputs a patch mask: its own, or the one it was given."""
    return finds_parts(model) or needs_mask(model) or selects_patches(model)


def selects_patches(model: nn.Module) -> TypeGuard[ImageClassifier]:
    """Whether the model selects patches of an image, by parts or by a fixed rule, and classifies from them alone."""
    return isinstance(model, ImageClassifier) and model.reads_selection and not model.needs_mask


def is_two_stage(model: nn.Module) -> TypeGuard[ImageClassifier]:
    """Whether the model selects patches by their parts and classifies from them alone."""
    return isinstance(model, ImageClassifier) and model.finds_parts and model.reads_selection


def select_parts(model: ImageClassifier, images: Tensor, **options: Any) -> StageOneOutput:
    """`model.select` with a fixed seed: `compat=reference` keeps the noise in evaluation."""
    return model.select(images, generator=torch.Generator(images.device).manual_seed(0), **options)
