"""Convolutional baselines: any timm network that pools its features itself (ResNet, ConvNeXt, ...)."""

import re
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from common.errors import UserError
from models.backbone import check_timm_name, hub_state
from models.baseline import linear_head
from models.config import ModelConfig
from models.interface import ImageClassifier
from models.outputs import ClassifierOutput
from models.transformer import is_vit
from models.weights.checkpoints import load_into, read_state
from models.weights.foreign import backbone_part

TINY = 64
"""Pixels of a side. Fewer may not pass through the layers of a network made for 224."""


class Cnn(ImageClassifier):
    """A timm network with its own pooling and a new linear classifier with bias."""

    def __init__(self, model_config: ModelConfig, num_classes: int, image_size: tuple[int, int]) -> None:
        """Random weights; `load_pretrained_backbones` loads the backbone's.

        Raises UserError for an `image_size` that its layers shrink to nothing.
        """
        super().__init__()
        self.model_config = config = model_config
        self.backbone = _create(config.backbone, config.drop_path)
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d):
                module.padding_mode = config.padding
        self.head = linear_head(cast(int, self.backbone.head_hidden_size), num_classes)
        if config.padding == "reflect" or min(image_size) < TINY:
            self._check_size(image_size)

    def _check_size(self, image_size: tuple[int, int]) -> None:
        """Raise UserError for images from which the layers leave nothing, or too little to reflect."""
        training = self.backbone.training
        try:
            with torch.no_grad():
                self.backbone.eval()(torch.zeros(1, 3, *image_size))
        except RuntimeError as error:
            what = f"{image_size} is too small for {self.model_config.backbone}"
            raise UserError(f"data.image_size: {what} ({' '.join(str(error).split())[:120]})") from None
        finally:
            self.backbone.train(training)

    def load_pretrained_backbones(self) -> None:
        """Load `config.weights` into the backbone: hub, none or a file with timm's names. Raises UserError."""
        config = self.model_config
        if config.weights == "none":
            return
        if config.weights == "hub":
            load_into(self.backbone, hub_state(config.backbone), f"hub weights of {config.backbone}")
            return
        # The file may come with the classifier of other classes: its name is in timm's metadata.
        classifier = cast(dict[str, Any], self.backbone.pretrained_cfg).get("classifier") or "head"
        start = re.escape(next(iter(self.backbone.state_dict())))
        state = backbone_part(read_state(config.weights), config.weights, start)
        load_into(self.backbone, {k: t for k, t in state.items() if not k.startswith(f"{classifier}.")}, config.weights)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> ClassifierOutput:
        """Images [B, 3, H, W] -> ClassifierOutput. `generator` is unused: the model has no noise of its own."""
        return ClassifierOutput(cast(Tensor, self.head(self.backbone(images))))

    @property
    def patch_size(self) -> int:
        """Stride of the last feature map in pixels."""
        return int(cast(Any, self.backbone).feature_info[-1]["reduction"])


def _create(name: str, drop_path: float) -> nn.Module:
    check_timm_name(name)
    extra: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        model = timm.create_model(name, num_classes=0, **extra)
    except (RuntimeError, TypeError) as error:  # an unknown pretrained tag; a network without stochastic depth
        raise UserError(f"model.backbone: {error}") from None
    if is_vit(model) or not hasattr(model, "head_hidden_size"):
        raise UserError(f"model.backbone: {name!r} is a {type(model).__name__}; for a ViT use model.name=vit")
    return model
