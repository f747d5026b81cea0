"""The ViTs whose attention methods can read, timm's and Hugging Face's, and which of their tokens a classifier reads.

One class each, with its subclasses: `VisionTransformer` (ViT, DeiT, DINOv2, SigLIP, ...), `Eva` (DINOv3, EVA-02,
Perception Encoder, ViTs with rotary positions), `Beit` and `VisionTransformerRelPos` (relative position biases),
`NaFlexVit`, and `Cait`. CaiT's patches attend to each other in `blocks`, where heads are mixed before and after the
softmax ("talking heads"); its class token attends to itself and the patches in `blocks_token_only`, which come last.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import timm.layers
from timm.models import beit, cait, eva, vision_transformer, vision_transformer_relpos
from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from common.errors import UserError
from explain.huggingface import HuggingFaceViT
from models.interface import Readout

ReadableViT: TypeAlias = VisionTransformer | Eva | Beit | VisionTransformerRelPos | NaFlexVit | Cait | HuggingFaceViT
KINDS = (
    VisionTransformer,
    VisionTransformerDistilled,
    Eva,
    Beit,
    VisionTransformerRelPos,
    NaFlexVit,
    Cait,
    HuggingFaceViT,
)
ATTENTIONS = (
    *(timm.layers.Attention, timm.layers.AttentionRope, eva.EvaAttention, beit.Attention),
    *(vision_transformer.ParallelScalingBlock, vision_transformer_relpos.RelPosAttention, cait.ClassAttn),
)
"""timm's modules with one softmax over scores of all tokens."""


def blocks(vit: ReadableViT) -> list[nn.Module]:
    """The blocks with attention, in the order in which they run."""
    return [*cast(Sequence[nn.Module], vit.blocks), *cast(Any, getattr(vit, "blocks_token_only", None) or ())]


def first_class_block(vit: ReadableViT) -> int:
    """The index of the first block whose attention reads the class token: 0, but for CaiT."""
    return len(vit.blocks) if isinstance(vit, Cait) else 0


def embedding(vit: ReadableViT) -> Any:
    """The module that makes tokens of patches."""
    return vit.embeds if isinstance(vit, NaFlexVit) else vit.patch_embed


def readout(vit: ReadableViT, has_classes: bool) -> Readout:
    """The tokens that the classifier reads. Without a classifier: the class token, if there is one and no pooling head.

    An attention pooling reads the mean over its tokens, as far as attention methods can tell.
    """
    pooled = attention_pooling(vit) is not None
    if vit.global_pool == "token" or (not has_classes and has_class_token(vit) and not pooled):
        return "class_token"
    # Eva's attention pooling always reads the prefix tokens too.
    reads_all = pooled if isinstance(vit, Eva) else getattr(vit, "pool_include_prefix", False)
    return "all" if reads_all else "patches"


def patch_side(vit: ReadableViT) -> tuple[int, int]:
    """(height, width) of a patch, pixels; of a ViT on the features of a CNN, their stride times the patch size."""
    embed = embedding(vit)
    stride = embed.feat_ratio(as_scalar=False) if hasattr(embed, "feat_ratio") else embed.patch_size
    return cast(tuple[int, int], tuple(stride))


def has_class_token(vit: ReadableViT) -> bool:
    """Whether the first token is a class token."""
    return (vit.embeds if isinstance(vit, NaFlexVit) else cast(Any, vit)).cls_token is not None


def has_classifier(vit: ReadableViT) -> bool:
    """Whether the ViT's output has classes: False for num_classes=0, and for global_pool=""."""
    return bool(vit.global_pool) and not isinstance(vit.head, nn.Identity)


def attention_pooling(vit: ReadableViT) -> nn.Module | None:
    """timm's pooling by attention (global_pool="map"), if there is one."""
    return cast("nn.Module | None", getattr(vit, "attn_pool", None))


def patch_grid(vit: ReadableViT, images: Tensor) -> tuple[int, int]:
    """(h, w): the patch grid of these images [B, 3, H, W]."""
    if takes_any_size(vit):
        height, width = images.shape[-2:]
        return cast(tuple[int, int], embedding(vit).dynamic_feat_size((height, width)))
    return cast(tuple[int, int], embedding(vit).grid_size)


def takes_any_size(vit: ReadableViT) -> bool:
    """Whether images may have another size than the one that the ViT was built for."""
    return isinstance(vit, NaFlexVit) or bool(getattr(vit, "dynamic_img_size", False))


def require_known_pooling(vit: ReadableViT, has_classes: bool) -> None:
    """Raise UserError unless the tokens that timm's ViT classifies from are known and the same in every channel."""
    if has_classes and vit.global_pool in ("max", "avgmax"):
        why = "the maximum over tokens reads other tokens in every channel, so no row of attention is the classifier's"
        raise UserError(f"global_pool={vit.global_pool}: {why}; choose a method without attention")
    if isinstance(vit, Cait) and vit.global_pool == "avg":
        why = "the mean over patches does not read the class token, nor the attention of its blocks"
        raise UserError(f"global_pool=avg of a Cait: {why}; choose a method without attention")
    for name in ("forward_head", "pool", "_pool"):
        method = getattr(vit, name, None)  # not every kind has all
        method = getattr(method, "_torchdynamo_orig_callable", method)  # of torch.compile
        known: list[Any] = [getattr(kind, name, None) for kind in KINDS if isinstance(vit, kind)]
        if getattr(method, "__func__", method) not in known:
            why = f"which tokens its own {name} reads is not known"
            raise UserError(f"cannot explain this {type(vit).__name__}: {why}; choose a method without attention")
