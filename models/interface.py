"""What every model of this project offers. Training, evaluation and explanation ask this and never for a class.

A new model is one file: a subclass of `ImageClassifier`, registered by `MODELS.register("name")`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeGuard, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.config import ModelConfig
from models.hub import SavedModel
from models.outputs import ModelOutput, StageOneOutput
from models.selection import Selection

Stage = Literal[1, 2]
Readout = Literal["class_token", "patches", "all"]
"""Which tokens a classifier reads after the last block."""


@dataclass(frozen=True)
class NetworkView:
    """The network inside a model that explanation methods look into."""

    network: nn.Module
    """The ViT whose attention and tokens are read, or the CNN whose features are."""
    logits: Callable[[Tensor], Tensor]
    """Normalised images [B, 3, H, W] -> logits [B, C], differentiable."""
    readout: Readout


class ImageClassifier(nn.Module, SavedModel, library_name="faithful-vit"):
    """A model as the rest of the project sees it.

    A subclass is built as `(model_config, num_classes, image_size)` with random weights, returns a `ModelOutput` from
    `forward`, and overrides what differs from a plain classifier.
    """

    objective: ClassVar[str] = "classification"
    """How it is trained: a name in `OBJECTIVES` (engine/training/objectives.py)."""
    parameter_rules: ClassVar[str] = "classifier"
    """Its parameter groups: a name in `PARAM_GROUP_RULES` (engine/training/optim.py)."""
    finds_parts: ClassVar[bool] = False
    """It discovers parts: `select` gives part maps and a mask."""
    reads_selection: ClassVar[bool] = False
    """`predict(images, selection)` classifies from any selection of patches."""
    needs_mask: ClassVar[bool] = False
    """`forward` takes the pixel masks [B, H, W] of the objects as `mask`."""
    not_explainable: ClassVar[str] = ""
    """Why no method can explain it; empty: it can be explained."""

    model_config: ModelConfig
    backbone: nn.Module

    def load_pretrained_backbones(self) -> None:
        """Fill the backbones from `model_config.weights`. Raises UserError."""
        raise NotImplementedError

    def forward(self, *args: Any, **options: Any) -> ModelOutput:
        """Normalised images [B, 3, H, W] -> output; `mask=` where `needs_mask`. Other options are the model's own."""
        raise NotImplementedError

    def select(self, images: Tensor, **options: Any) -> StageOneOutput:
        """Part maps and mask of images [B, 3, H, W]; where `finds_parts`."""
        raise NotImplementedError

    def predict(self, images: Tensor, selection: Selection) -> Tensor:
        """Logits [B, C] of images [B, 3, H, W] seen through any selection, where `reads_selection`."""
        raise NotImplementedError

    def network_view(self, stage: Stage = 2, selection: Selection | None = None) -> NetworkView:
        """What is explained. `stage` and `selection` (what stage 2 is shown) matter to a two-stage model only."""
        return NetworkView(self.network, lambda images: self(images).logits, self.readout)

    @property
    def network(self) -> nn.Module:
        """The backbone of the final classification."""
        return self.backbone

    @property
    def readout(self) -> Readout:
        """Which tokens the final classification reads."""
        return "patches"

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """The parts of the model that `train.compile` compiles one by one; empty: the model as a whole."""
        return ()

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the images it was built for, pixels."""
        height, width = cast(dict[str, Any], self._hub_mixin_config)["image_size"]
        return int(height), int(width)

    @property
    def num_outputs(self) -> int:
        """C, the length of the logits."""
        return int(cast(dict[str, Any], self._hub_mixin_config)["num_classes"])

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels; of a CNN the stride of its last features."""
        return int(cast(VisionTransformer, self.network).patch_embed.patch_size[0])

    @property
    def patch_grid(self) -> tuple[int, int]:
        """(h, w): patches of an input image."""
        return self.input_size[0] // self.patch_size, self.input_size[1] // self.patch_size


def finds_parts(model: nn.Module) -> TypeGuard[ImageClassifier]:
    """Whether the model has `select` and part maps."""
    return isinstance(model, ImageClassifier) and model.finds_parts


def needs_mask(model: nn.Module) -> TypeGuard[ImageClassifier]:
    """Whether the model must be given the objects' masks."""
    return isinstance(model, ImageClassifier) and model.needs_mask


def gives_mask(model: nn.Module) -> bool:
    """Whether the model's outputs have a patch mask: its own, or the one it was given."""
    return finds_parts(model) or needs_mask(model)


def is_two_stage(model: nn.Module) -> TypeGuard[ImageClassifier]:
    """Whether the model classifies from a selection of patches that it makes itself."""
    return isinstance(model, ImageClassifier) and model.finds_parts and model.reads_selection


def select_parts(model: ImageClassifier, images: Tensor) -> StageOneOutput:
    """`model.select`, repeatable: the noise that `compat=reference` keeps in evaluation is drawn from seed 0."""
    return model.select(images, generator=torch.Generator(images.device).manual_seed(0))
