"""Stage 2: a ViT that classifies from the selected patches alone."""

from typing import Literal, cast

from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from common.errors import UserError
from models import masked_attention
from models.config import ModelConfig
from models.selection import Selection
from models.transformer import ViT, describe

Path = Literal["auto", "dense", "gathered", "packed"]


class MaskedViT(nn.Module):
    """A timm ViT with a new LayerNorm and a linear head without bias on its class token (iFAM, section 3.2).

    On a ViT without a class token, they read the mean of the visible patch tokens.
    """

    def __init__(self, backbone: ViT, num_classes: int, path: Path = "auto", new_norm: bool = True) -> None:
        """`path`: how hidden patches are removed; "auto" takes the fastest way that applies.

        `new_norm=False` omits the new LayerNorm (iFAM's decoupled baseline).
        """
        super().__init__()
        self.backbone = backbone
        self.fc_norm = nn.LayerNorm(backbone.embed_dim, eps=1e-5) if new_norm else nn.Identity()
        self.head = nn.Linear(backbone.embed_dim, num_classes, bias=False)
        trunc_normal_(self.head.weight, std=0.02)
        self.path: Path = path

    @property
    def readout(self) -> Literal["class_token", "patches"]:
        """The tokens that the classifier reads: the class token or, if there is none, the visible patches."""
        return "class_token" if describe(self.backbone).has_class_token else "patches"

    def require_plain_blocks(self, why: str) -> None:
        """Raise UserError, starting with `why`, unless the attention of all blocks can be replaced."""
        if not describe(self.backbone).is_plain:
            kind = type(self.backbone.blocks[0]).__name__
            raise UserError(f"{why} needs a ViT with timm's plain blocks; this backbone has {kind}")

    def forward(self, images: Tensor, selection: Selection, soft: bool = False) -> Tensor:
        """Class logits [B, C] of images [B, 3, H, W] given `selection`.

        Without a gate, hidden patches are dropped or masked, with the same result. With a gate all tokens stay in the
        sequence: as the straight-through mask in training or, with `soft`, as the soft-mask ablation. Raises ValueError
        for a mask on another grid than that of the patches.
        """
        described, shape = describe(self.backbone), tuple(selection.mask.shape)
        if shape[1:] != described.grid:  # the number of patches could fit by chance
            raise ValueError(f"Selection.mask has the shape {shape}; the patch grid is {described.grid}")
        tokens = described.embed(selection.shown(images))
        if selection.gate is None:
            drop_hidden = getattr(masked_attention, self.chosen_path())
            features = drop_hidden(self.backbone, tokens, selection.mask.flatten(1), selection.counts)
        elif soft:
            features = masked_attention.soft(self.backbone, tokens, selection.gate.flatten(1))
        else:
            features = masked_attention.straight_through(self.backbone, tokens, selection.gate.flatten(1))
        return cast(Tensor, self.head(self.fc_norm(features)))

    def chosen_path(self) -> Path:
        """The path for a hard mask. Dropout and stochastic depth act per image, so they cannot run on a packed row."""
        if self.path != "auto":
            return self.path
        random_depth = self.training and any(
            getattr(module, "drop_prob", 0) or (isinstance(module, nn.Dropout) and module.p)
            for module in self.backbone.modules()
        )
        return "packed" if describe(self.backbone).is_plain and not random_depth else "gathered"


def check_masked_vit(config: ModelConfig, vit: MaskedViT) -> None:
    """Raise UserError if the backbone would leak hidden patches or cannot run `config.stage_2_path`."""
    described, name = describe(vit.backbone), config.backbone
    if not described.embeds_patches_separately:
        raise UserError(f"model.backbone: the stem of {name!r} mixes patches; stage 2 would see hidden ones")
    for module in vit.backbone.blocks.modules():
        if isinstance(module, _ConvNd | _BatchNorm):  # attention alone can be masked
            kind = type(module).__name__
            raise UserError(
                f"model.backbone: a {kind} in the blocks of {name!r} mixes patches; stage 2 would see hidden ones"
            )
    if config.stage_2_path == "packed":
        vit.require_plain_blocks("model.stage_2_path=packed")
        if config.drop_path:
            raise UserError("model.stage_2_path=packed cannot apply model.drop_path per image; use auto or gathered")
