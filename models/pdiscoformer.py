"""PDiscoFormer: stage 1 alone; its class logits are the mean over the class scores of its parts."""

from typing import Any, cast

from torch import Tensor, nn

from models.backbone import load_backbone_weights
from models.config import ModelConfig
from models.interface import ImageClassifier, NetworkView, Stage
from models.outputs import StageOneOutput
from models.selection import Selection
from models.two_stage import StageOne, stage_1_view


class PDiscoFormer(ImageClassifier, paper_url="https://arxiv.org/abs/2407.04538"):
    """A ViT that classifies by the parts it discovers (Aniraj et al. 2024). It sees the whole image.

    `StageOneOutput.selection.mask` contains the patches assigned to a part.
    """

    objective = "parts"
    parameter_rules = "two_stage"
    finds_parts = True

    def __init__(self, model_config: ModelConfig, num_classes: int, image_size: tuple[int, int]) -> None:
        """Random weights; `load_pretrained_backbones` loads `model_config.weights` into the backbone."""
        super().__init__()
        self.model_config = model_config
        self.stage_1 = StageOne(model_config, num_classes, image_size)

    def load_pretrained_backbones(self) -> None:
        """Load `config.stage_1_weights`, or else `config.weights`, into the backbone. Raises UserError."""
        config = self.model_config
        name, weights = config.stage_1_backbone or config.backbone, config.stage_1_weights or config.weights
        load_backbone_weights(self.stage_1.backbone, name, weights, "stage_1")

    def select(self, images: Tensor, **options: Any) -> StageOneOutput:
        """Images [B, 3, H, W] -> StageOneOutput; same options as `StageOne.forward`."""
        return cast(StageOneOutput, self.stage_1(images, **options))

    forward = select

    def network_view(self, stage: Stage = 1, selection: Selection | None = None) -> NetworkView:
        """The only stage, as a classifier by parts."""
        return stage_1_view(self, self.stage_1)

    @property
    def network(self) -> nn.Module:
        """Stage 1's backbone."""
        return self.stage_1.backbone

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Stage 1."""
        return (self.stage_1,)
