"""What the names and shapes of a checkpoint published with iFAM or PDiscoFormer tell of its model."""

from dataclasses import dataclass
from math import isqrt
from typing import Literal, get_args

import torch
from torch import Tensor

from common.errors import UserError
from models.weights.huggingface import State

Form = Literal["ifam", "ifam-hf", "pdiscoformer"]
"""Two stages with backbones in timm's or in Hugging Face's naming; one stage without a prefix, in timm's naming."""
FORMS: tuple[Form, ...] = get_args(Form)
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
"""(width, blocks) of the four DINOv2 models."""


@dataclass(frozen=True)
class Layout:
    """The sizes of a published model, as its first stage shows them."""

    form: Form
    num_parts: int
    """K, without the background."""
    num_classes: int
    modulation: Literal["layer_norm", "original"]
    width: int
    depth: int
    patch: tuple[int, int]
    registers: int
    num_patches: int
    """N, patches of an image."""
    layer_scale: bool

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels where the patches form a square; None otherwise."""
        side = isqrt(self.num_patches)
        return (side * self.patch[0], side * self.patch[1]) if side**2 == self.num_patches else None

    @property
    def backbone(self) -> str | None:
        """timm's name where the shapes leave one alone: DINOv2, whose numbers of heads follow from their widths."""
        size = _DINOV2.get((self.width, self.depth))
        if size is None or self.patch != (14, 14) or self.registers not in (0, 4) or not self.layer_scale:
            return None
        return f"vit_{size}_patch14_{'reg4_' if self.registers else ''}dinov2"

    def __str__(self) -> str:
        """For people."""
        return (
            f"{self.form}, {self.num_parts} parts ({self.modulation}), {self.num_classes} classes; ViT of width "
            f"{self.width}, {self.depth} blocks, {self.registers} registers, {self.num_patches} patches of "
            f"{self.patch[0]} x {self.patch[1]} pixels"
        )


def read_layout(state: State, source: str) -> Layout:
    """Tell the form and sizes of a published state dict. Raises UserError where it is of no form or lacks a tensor."""
    prefix = "stage_1." if any(name.startswith("stage_1.") for name in state) else ""
    if f"{prefix}{PROTOTYPES}" not in state:
        raise UserError(f"{source}: no {prefix}{PROTOTYPES} in it, so it is no checkpoint of iFAM or PDiscoFormer")
    stage = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    hugging_face = prefix and any(name.startswith("embeddings.") for name in stage)
    names = _HUGGING_FACE if hugging_face else _TIMM

    def shape(name: str, dimensions: int) -> torch.Size:
        tensor = stage.get(name)
        if tensor is None or tensor.ndim != dimensions or 0 in tensor.shape:
            what = "is missing" if tensor is None else f"has the shape {tuple(tensor.shape)}"
            raise UserError(f"{source}: {prefix}{name} {what}")
        return tensor.shape

    channels, width = shape(PROTOTYPES, 4)[:2]
    if shape(names["positions"], 3)[2] != width:
        raise UserError(f"{source}: {prefix}{names['positions']} is not as wide as {PROTOTYPES}")
    registers = shape(names["registers"], 3)[1] if names["registers"] in stage else 0
    height, breadth = shape(names["patches"], 4)[2:]
    return Layout(
        form="ifam-hf" if hugging_face else "ifam" if prefix else "pdiscoformer",
        num_parts=channels - 1,
        num_classes=shape(CLASSIFIER, 2)[0],
        modulation="original" if "modulation" in stage else "layer_norm",
        width=width,
        depth=_count(stage, names["blocks"]),
        patch=(height, breadth),
        registers=registers,
        num_patches=_patches(shape(names["positions"], 3)[1], registers, class_token=bool(hugging_face)),
        layer_scale=names["layer_scale"] in stage,
    )


def _count(stage: dict[str, Tensor], start: str) -> int:
    return len({name.removeprefix(start).partition(".")[0] for name in stage if name.startswith(start)})


def _patches(positions: int, registers: int, class_token: bool) -> int:
    """Positions less those of prefix tokens: in timm none, the class token's, or the registers' too; else the first."""
    candidates = (1,) if class_token else (0, 1, 1 + registers) if registers else (1, 0)
    squares = (positions - p for p in candidates if 0 < isqrt(max(0, positions - p)) ** 2 == positions - p)
    return next(squares, positions - int(class_token))
