"""PDiscoFormer: stage 1 alone, whose class logits are the mean over its parts' scores."""

from typing import Any, cast

from torch import Tensor, nn

from models.backbone import load_backbone_weights
from models.config import ModelConfig
from models.interface import ImageClassifier, NetworkView, Stage
from models.outputs import StageOneOutput
from models.selection import Selection
from models.two_stage import StageOne, stage_1_view


class PDiscoFormer(ImageClassifier, paper_url="https://arxiv.org/abs/2407.04538"):
    """A ViT that classifies by the parts it discovers (Aniraj et al. 2024). It reads the whole image: none is hidden.

    `StageOneOutput.selection.mask` tells which patches its parts claim.
    """

    objective = "parts"
    parameter_rules = "two_stage"
    finds_parts = True

    def __init__(self, model_config: ModelConfig, num_classes: int, image_size: tuple[int, int]) -> None:
        """Random weights; `load_pretrained_backbones` fills the backbone from `model_config.weights`."""
        super().__init__()
        self.model_config = model_config
        self.stage_1 = StageOne(model_config, num_classes, image_size)

    def load_pretrained_backbones(self) -> None:
        """Fill the backbone from `config.stage_1_weights`, or `config.weights`. Raises UserError."""
        config = self.model_config
        name, weights = config.stage_1_backbone or config.backbone, config.stage_1_weights or config.weights
        load_backbone_weights(self.stage_1.backbone, name, weights)

    def select(self, images: Tensor, **options: Any) -> StageOneOutput:
        """Images [B, 3, H, W] -> StageOneOutput; options as `StageOne.forward`."""
        return cast(StageOneOutput, self.stage_1(images, **options))

    forward = select

    def network_view(self, stage: Stage = 1, selection: Selection | None = None) -> NetworkView:
        """The one stage."""
        return stage_1_view(self, self.stage_1)

    @property
    def network(self) -> nn.Module:
        """Stage 1's backbone."""
        return self.stage_1.backbone

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Stage 1."""
        return (self.stage_1,)
