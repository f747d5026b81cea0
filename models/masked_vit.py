"""Stage 2: a ViT that classifies from the selected patches alone."""

from typing import Literal, cast

from timm.layers import trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from models import masked_attention
from models.backbone import embed, embeds_patches_separately
from models.config import ModelConfig
from models.selection import Selection

Path = Literal["auto", "dense", "gathered", "packed"]


class MaskedViT(nn.Module):
    """A timm ViT with a new LayerNorm and a linear head without bias on its class token (iFAM, section 3.2)."""

    def __init__(
        self, backbone: VisionTransformer, num_classes: int, path: Path = "auto", new_norm: bool = True
    ) -> None:
        """`path`: how hidden patches are removed; "auto" takes the fastest way that applies.

        `new_norm=False` omits the new LayerNorm (iFAM's decoupled baseline).
        """
        super().__init__()
        self.backbone = backbone
        self.fc_norm = nn.LayerNorm(backbone.embed_dim, eps=1e-5) if new_norm else nn.Identity()
        self.head = nn.Linear(backbone.embed_dim, num_classes, bias=False)
        trunc_normal_(self.head.weight, std=0.02)
        self.path: Path = path

    def require_plain_blocks(self, why: str) -> None:
        """Raise UserError, starting with `why`, unless all blocks are timm's plain Block."""
        if not masked_attention.is_plain(self.backbone):
            kind = type(self.backbone.blocks[0]).__name__
            raise UserError(f"{why} needs a ViT with timm's plain blocks; this backbone has {kind}")

    def forward(self, images: Tensor, selection: Selection, soft: bool = False) -> Tensor:
        """Class logits [B, C] of images [B, 3, H, W] given `selection`.

        Without a gate, hidden patches are dropped or masked, with the same result. With a gate all tokens stay in the
        sequence: as the straight-through mask in training or, with `soft`, as the soft-mask ablation.
        """
        x_BSD = embed(self.backbone, selection.shown(images))
        if selection.gate is None:
            drop_hidden = getattr(masked_attention, self.chosen_path())
            token = drop_hidden(self.backbone, x_BSD, selection.mask.flatten(1))
        elif soft:
            token = masked_attention.soft(self.backbone, x_BSD, selection.gate.flatten(1))
        else:
            token = masked_attention.straight_through(self.backbone, x_BSD, selection.gate.flatten(1))
        # Both norms act on each token separately, so the class token alone is enough.
        return cast(Tensor, self.head(self.fc_norm(self.backbone.norm(token))))

    def chosen_path(self) -> Path:
        """The path for a hard mask. Dropout and stochastic depth act per image, so they cannot run on a packed row."""
        if self.path != "auto":
            return self.path
        random_depth = self.training and any(
            getattr(module, "drop_prob", 0) or (isinstance(module, nn.Dropout) and module.p)
            for module in self.backbone.modules()
        )
        return "packed" if masked_attention.is_plain(self.backbone) and not random_depth else "gathered"


def check_masked_vit(config: ModelConfig, vit: MaskedViT) -> None:
    """Raise UserError if the backbone would leak hidden patches or cannot run `config.stage_2_path`."""
    if not embeds_patches_separately(vit.backbone):
        raise UserError(f"model.backbone: the stem of {config.backbone!r} mixes patches; stage 2 would see hidden ones")
    if config.stage_2_path == "packed":
        vit.require_plain_blocks("model.stage_2_path=packed")
        if config.drop_path:
            raise UserError("model.stage_2_path=packed cannot apply model.drop_path per image; use auto or gathered")
