"""Read the sizes of a model published with iFAM or PDiscoFormer from the names and shapes of its weights."""

from dataclasses import dataclass
from math import isqrt
from typing import Literal, get_args

import torch
from torch import Tensor

from common.errors import UserError
from models.weights.huggingface import State

Format = Literal["ifam", "ifam-hf", "pdiscoformer"]
"""Two stages with timm's or Hugging Face's names of backbones, or one stage with timm's names and no prefix."""
FORMATS: tuple[Format, ...] = get_args(Format)
PROTOTYPES = "fc_landmarks.weight"
CLASSIFIER = "fc_class_landmarks.weight"
PATCHES, POSITIONS = "patch_embed.proj.weight", "pos_embed"

_TIMM = {
    "patches": PATCHES, "positions": POSITIONS, "registers": "reg_token", "blocks": "blocks.",
    "layer_scale": "blocks.0.ls1.gamma",
}  # fmt: skip
_HUGGING_FACE = {
    "patches": "embeddings.patch_embeddings.projection.weight", "positions": "embeddings.position_embeddings",
    "registers": "embeddings.register_tokens", "blocks": "encoder.layer.",
    "layer_scale": "encoder.layer.0.layer_scale1.lambda1",
}  # fmt: skip
_DINOV2 = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1536, 40): "giant"}
"""(width, blocks) -> DINOv2 model."""


@dataclass(frozen=True)
class Layout:
    """The sizes of a published model, read from its first stage."""

    format: Format
    num_parts: int
    """K, without background."""
    num_classes: int
    modulation: Literal["layer_norm", "original"]
    width: int
    depth: int
    patch: tuple[int, int]
    registers: int
    num_patches: int
    """N, patches per image."""
    layer_scale: bool

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels if the patch grid is square; None otherwise."""
        side = isqrt(self.num_patches)
        return (side * self.patch[0], side * self.patch[1]) if side**2 == self.num_patches else None

    @property
    def backbone(self) -> str | None:
        """timm's name if the shapes determine it: for DINOv2, the number of heads follows from the width."""
        size = _DINOV2.get((self.width, self.depth))
        if size is None or self.patch != (14, 14) or self.registers not in (0, 4) or not self.layer_scale:
            return None
        return f"vit_{size}_patch14_{'reg4_' if self.registers else ''}dinov2"

    def __str__(self) -> str:
        """A one-line summary for messages."""
        return (
            f"{self.format}, {self.num_parts} parts ({self.modulation}), {self.num_classes} classes; ViT of width "
            f"{self.width}, {self.depth} blocks, {self.registers} registers, {self.num_patches} patches of "
            f"{self.patch[0]} x {self.patch[1]} pixels"
        )


def read_layout(state: State, source: str) -> Layout:
    """Read format and sizes from a published state dict. Raises UserError for an unknown format or a missing tensor."""
    prefix = "stage_1." if any(name.startswith("stage_1.") for name in state) else ""
    if f"{prefix}{PROTOTYPES}" not in state:
        raise UserError(f"{source}: no {prefix}{PROTOTYPES} in it, so it is not a checkpoint of iFAM or PDiscoFormer")
    stage = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    hugging_face = prefix and any(name.startswith("embeddings.") for name in stage)
    names = _HUGGING_FACE if hugging_face else _TIMM

    def shape(name: str, dimensions: int) -> torch.Size:
        tensor = stage.get(name)
        if tensor is None or tensor.ndim != dimensions or 0 in tensor.shape:
            what = "is missing" if tensor is None else f"has the shape {tuple(tensor.shape)}"
            raise UserError(f"{source}: {prefix}{name} {what}")
        return tensor.shape

    channels, width = shape(PROTOTYPES, 4)[:2]  # a 1 x 1 convolution: [K+1, D, 1, 1]
    if shape(names["positions"], 3)[2] != width:
        raise UserError(f"{source}: {prefix}{names['positions']} is not as wide as {PROTOTYPES}")
    registers = shape(names["registers"], 3)[1] if names["registers"] in stage else 0
    patch_height, patch_width = shape(names["patches"], 4)[2:]
    return Layout(
        format="ifam-hf" if hugging_face else "ifam" if prefix else "pdiscoformer",
        num_parts=channels - 1,
        num_classes=shape(CLASSIFIER, 2)[0],
        modulation="original" if "modulation" in stage else "layer_norm",
        width=width,
        depth=_count(stage, names["blocks"]),
        patch=(patch_height, patch_width),
        registers=registers,
        num_patches=_patches(shape(names["positions"], 3)[1], registers, class_token=bool(hugging_face)),
        layer_scale=names["layer_scale"] in stage,
    )


def _count(stage: dict[str, Tensor], start: str) -> int:
    return len({name.removeprefix(start).partition(".")[0] for name in stage if name.startswith(start)})


def _patches(positions: int, registers: int, class_token: bool) -> int:
    """Number of patches: position embeddings without those of prefix tokens.

    In timm, none, only the class token, or also the registers have one; the first case with a square grid is taken.
    """
    candidates = (1,) if class_token else (0, 1, 1 + registers) if registers else (1, 0)
    squares = (positions - p for p in candidates if 0 < isqrt(max(0, positions - p)) ** 2 == positions - p)
    return next(squares, positions - int(class_token))
