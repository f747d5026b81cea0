"""Convolutional baselines: any timm network that pools its features itself (ResNet, ConvNeXt, ...)."""

from typing import Any, cast

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from models.backbone import hub_state, known_to_timm
from models.baseline import linear_head
from models.config import ModelConfig
from models.interface import ImageClassifier
from models.outputs import ClassifierOutput
from models.weights.checkpoints import load_into, read_state


class Cnn(ImageClassifier):
    """timm's network with its own pooling, and a new linear classifier with bias."""

    def __init__(self, model_config: ModelConfig, num_classes: int, image_size: tuple[int, int]) -> None:
        """Random weights; `load_pretrained_backbones` fills the backbone. `image_size` may be any."""
        super().__init__()
        self.model_config = config = model_config
        self.backbone = _create(config.backbone, config.drop_path)
        for part in self.backbone.modules():
            if isinstance(part, nn.Conv2d):
                part.padding_mode = config.padding
        self.head = linear_head(cast(int, self.backbone.head_hidden_size), num_classes)

    def load_pretrained_backbones(self) -> None:
        """Fill the backbone from `config.weights`: hub, none or a file of timm's names. Raises UserError."""
        config = self.model_config
        if config.weights == "none":
            return
        if config.weights == "hub":
            load_into(self.backbone, hub_state(config.backbone), f"hub weights of {config.backbone}")
            return
        classifier = cast(dict[str, Any], self.backbone.pretrained_cfg).get("classifier") or "head"
        state = read_state(config.weights)
        load_into(self.backbone, {k: t for k, t in state.items() if not k.startswith(f"{classifier}.")}, config.weights)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> ClassifierOutput:
        """Images [B, 3, H, W] -> ClassifierOutput. `generator` is unused: the network draws nothing of its own."""
        return ClassifierOutput(cast(Tensor, self.head(self.backbone(images))))

    @property
    def patch_size(self) -> int:
        """The stride of the last features, pixels."""
        return int(cast(Any, self.backbone).feature_info[-1]["reduction"])


def _create(name: str, drop_path: float) -> nn.Module:
    known_to_timm(name)
    extra: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        model = timm.create_model(name, num_classes=0, **extra)
    except (RuntimeError, TypeError) as error:  # no such tag behind the dot; no stochastic depth
        raise UserError(f"model.backbone: {error}") from None
    if isinstance(model, VisionTransformer) or not hasattr(model, "head_hidden_size"):
        raise UserError(f"model.backbone: {name!r} is a {type(model).__name__}; for a ViT use model.name=vit")
    return model
