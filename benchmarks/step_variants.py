"""What is measured: one training step, one inference batch and one stage-2 pass, in the published form and in ours.

Every form works on the same weights, the same batch, the same noise and the same given mask; only the work differs.
Shape legend: B images, N patches (h x w grid).
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import LayerScale
from torch import Tensor, nn

from datasets.types import Batch
from engine.run.config import OptimConfig
from engine.training.objectives import TwoStageObjective
from engine.training.optim import build_optimizer, two_stage_rules
from losses.config import LossConfig
from losses.equivariance import draw_view, unwarp_maps, warp_images
from models.backbone import grid_of
from models.config import ModelConfig
from models.masked_attention import key_mask
from models.masked_vit import MaskedViT, Path
from models.outputs import StageOneOutput
from models.selection import Selection
from models.two_stage import TwoStageModel, with_mask

NUM_CLASSES = 200  # CUB
SEED = 0


class GivenMaskModel(TwoStageModel):
    """Stage 1 runs for real, then its mask is replaced by `given`: its cost is kept, the share of patches is chosen."""

    given: Tensor
    """[B, h, w] bool."""

    def select(self, images: Tensor, **options: Any) -> StageOneOutput:
        """As TwoStageModel.select, with the given mask."""
        stage_1 = super().select(images, **options)
        return replace(stage_1, selection=with_mask(stage_1.selection, self.given))


class PublishedStageTwo(MaskedViT):
    """Stage 2 as published: in training every token goes through every block, hidden keys masked (timm's own forward).

    In evaluation the published code prunes, too, by a padded gather: `gathered`.
    """

    def forward(self, images: Tensor, selection: Selection, soft: bool = False) -> Tensor:
        """As MaskedViT.forward, for hard masks."""
        if not self.training:
            return super().forward(images, selection)
        keys = key_mask(selection.mask.flatten(1), self.backbone.num_prefix_tokens)[:, None, None, :]
        tokens = self.backbone.forward_features(images, attn_mask=keys)
        return cast(Tensor, self.head(self.fc_norm(tokens[:, 0])))


class PublishedObjective(TwoStageObjective):
    """As published: the equivariance view runs the whole model, and what stage 2 says of it is thrown away."""

    def _second_view(self, model: TwoStageModel, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        view = draw_view(
            len(images), (images.shape[-2], images.shape[-1]), self.config.equivariance, device=images.device
        )
        return unwarp_maps(model(warp_images(images, view)).part_maps, view)


@dataclass(frozen=True)
class Variant:
    """One form of the work."""

    stage_2: type[MaskedViT]
    path: Path
    objective: type[TwoStageObjective]
    stage_2_passes: int
    """Stage-2 forward passes of a training step."""


VARIANTS = {
    "published": Variant(PublishedStageTwo, "gathered", PublishedObjective, 2),
    "dense": Variant(MaskedViT, "dense", TwoStageObjective, 1),
    "packed": Variant(MaskedViT, "packed", TwoStageObjective, 1),
    "gathered": Variant(MaskedViT, "gathered", TwoStageObjective, 1),
}


def random_mask(batch: int, grid: tuple[int, int], keep: float, spread: float = 0.0) -> Tensor:
    """[B, h, w] bool: random patches, exactly round(share * N) of them (at least 1) in each image.

    The shares run evenly from keep * (1 - spread) to keep * (1 + spread) over the batch, cut at 1.
    """
    patches = grid[0] * grid[1]
    shares = keep * (1 + spread * torch.linspace(-1, 1, batch)) if batch > 1 else torch.tensor([keep])
    counts = (shares * patches).round().clamp(1, patches)
    rank = torch.rand(batch, patches, generator=torch.Generator().manual_seed(SEED)).argsort(1).argsort(1)
    return (rank < counts[:, None]).unflatten(1, grid)


def random_batch(size: int, image_size: int, device: torch.device) -> Batch:
    """Noise for images, random labels."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(size, 3, image_size, image_size, generator=generator)
    labels = torch.randint(NUM_CLASSES, (size,), generator=generator)
    return Batch(images, labels, tuple(f"noise {i}" for i in range(size))).to(device)


class Bench:
    """One model and its optimiser, run in any variant. The rate is 0: the work is done, the weights stay the same."""

    def __init__(self, backbone: str, image_size: int, device: torch.device, compiled: bool = False) -> None:
        """Random weights. The stage-1 backbone is frozen as in the recommended runs: blocks fixed, its tokens learn."""
        torch.manual_seed(SEED)
        config = ModelConfig(backbone=backbone, weights="none")
        self.device = device
        self.model = GivenMaskModel(config, NUM_CLASSES, (image_size, image_size)).to(device)
        self.grid = grid_of(self.model.stage_1.backbone)
        _open_layer_scale(self.model)
        rates = OptimConfig(lr=0.0)
        self.clip = rates.clip
        self.optimizer = build_optimizer(self.model, two_stage_rules(rates), rates, rates.weight_decay)
        self.stage_2s = {name: _sibling(variant, self.model.stage_2) for name, variant in VARIANTS.items()}
        self.objectives = {
            name: variant.objective(LossConfig(), NUM_CLASSES, [1] * NUM_CLASSES) for name, variant in VARIANTS.items()
        }
        self.precision = torch.float32
        if compiled:
            self.model.stage_1.compile()
            for stage_2 in self.stage_2s.values():
                stage_2.compile()

    def prepare(self, variant: str, mask: Tensor, training: bool) -> None:
        """Put on a variant's stage 2, the mask and the seed of all noise."""
        self.model.stage_2 = self.stage_2s[variant]
        self.model.given = mask.to(self.device)
        self.model.train(training)
        torch.manual_seed(SEED)

    def loss(self, variant: str, mask: Tensor, batch: Batch) -> Tensor:
        """Forward and backward of one step: the loss; gradients stay on the parameters."""
        self.prepare(variant, mask, training=True)
        with self._autocast():
            outcome = self.objectives[variant](self.model, batch)
        outcome.loss.backward()
        return outcome.loss.detach()

    def train_step(self, variant: str, mask: Tensor, batch: Batch) -> None:
        """One whole training step, from the images to the optimiser, with the trainer's clipping and guard."""
        assert self.loss(variant, mask, batch).isfinite().item()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def inference(self, variant: str, mask: Tensor, batch: Batch) -> None:
        """One batch through both stages."""
        self.prepare(variant, mask, training=False)
        with torch.no_grad(), self._autocast():
            self.model(batch.image)

    def stage_2_step(self, variant: str, mask: Tensor, batch: Batch) -> None:
        """Stage 2 alone, forward and backward."""
        self.prepare(variant, mask, training=True)
        with self._autocast():
            logits = self.model.predict(batch.image, Selection(self.model.given))
        F.cross_entropy(logits.float(), batch.label).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def resident_bytes(self) -> int:
        """Bytes of weights and optimiser state, there before a step and after it."""
        state = [t for entry in self.optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)]
        tensors = [*self.model.parameters(), *self.model.buffers(), *state]
        return sum(t.nbytes for t in tensors)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32)


def _sibling(variant: Variant, stage_2: MaskedViT) -> MaskedViT:
    """A stage 2 of the variant's kind on the very weights of `stage_2`."""
    other = variant.stage_2(stage_2.backbone, NUM_CLASSES, variant.path)
    other.fc_norm, other.head = stage_2.fc_norm, stage_2.head
    return other


def _open_layer_scale(model: nn.Module) -> None:
    """LayerScale at 1: at DINOv2's initial 1e-5 the blocks of an untrained model would hardly count in the check."""
    for module in model.modules():
        if isinstance(module, LayerScale):
            nn.init.ones_(module.gamma)
