"""Convert Hugging Face's names of DINOv2 weights to timm's and back; also RAD-DINO, registers and gated MLPs."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError

State = dict[str, Tensor]

_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_IN_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_GATED = {"mlp.weights_in": "mlp.fc1", "mlp.weights_out": "mlp.fc2"}
_HF_QKV = re.compile(r"^encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$")
_QKV = ("query", "key", "value")


def huggingface_dinov2_to_timm(state: State) -> State:
    """Rename the weights of a `Dinov2Model` to timm's VisionTransformer; unknown names stay as they are.

    Query, key and value are stacked into timm's qkv. The mask token is dropped: only pre-training uses it.
    """
    state = {name.removeprefix("dinov2.").removeprefix("dinov2_with_registers."): t for name, t in state.items()}
    renamed: State = {}
    for name, tensor in state.items():
        if name == "embeddings.mask_token":
            continue
        if match := _HF_QKV.match(name):
            # All three end up in the same tensor. If one is missing, its names stay and `load_into` reports them.
            parts = [name.replace(f".{match[2]}.", f".{part}.") for part in _QKV]
            if tensor.ndim and all(part in state and state[part].shape == tensor.shape for part in parts):
                renamed[f"blocks.{match[1]}.attn.qkv.{match[3]}"] = torch.cat([state[part] for part in parts])
                continue
        renamed[_to_timm(name)] = tensor
    return renamed


def _to_timm(name: str) -> str:
    if match := re.match(r"encoder\.layer\.(\d+)\.(.+)$", name):
        return f"blocks.{match[1]}.{_renamed(match[2], _IN_BLOCK | _GATED) or match[2]}"
    return _renamed(name, _OUTSIDE) or name


def timm_to_huggingface_dinov2(state: State, num_patches: int) -> State:
    """Rename a timm ViT's weights to those of a `Dinov2Model`, or with registers a `Dinov2WithRegistersModel`.

    If timm has no position for the class token, it is written as zeros. So is the mask token, which timm does not have
    and only pre-training uses. Raises UserError naming weights that a Dinov2Model has no place for.
    """
    renamed: State = {}
    for name, tensor in state.items():
        if match := re.match(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)$", name):
            for part, third in zip(_QKV, tensor.chunk(3), strict=True):
                renamed[f"encoder.layer.{match[1]}.attention.attention.{part}.{match[2]}"] = third.clone()
        elif name == "pos_embed" and tensor.shape[1] == num_patches:
            renamed["embeddings.position_embeddings"] = F.pad(tensor, (0, 0, 1, 0))
        else:
            renamed[_to_huggingface(name, state)] = tensor
    table = renamed.get("embeddings.position_embeddings")
    if table is None or table.shape[1] != num_patches + 1:
        raise UserError("Hugging Face's DINOv2 needs position embeddings of the class token and of every patch only")
    return renamed | {"embeddings.mask_token": torch.zeros_like(table[:, 0])}


def _to_huggingface(name: str, state: State) -> str:
    outside = {new: old for old, new in _OUTSIDE.items()}
    if match := re.match(r"blocks\.(\d+)\.(.+)$", name):
        inside, outputs = state.get(f"blocks.{match[1]}.mlp.fc1.weight"), state.get(f"blocks.{match[1]}.mlp.fc2.weight")
        # SwiGLU's first layer has two outputs per hidden unit.
        gated = inside is not None and outputs is not None and inside.shape[0] == 2 * outputs.shape[1]
        block = {new: old for old, new in (_IN_BLOCK | (_GATED if gated else {})).items()}
        new = _renamed(match[2], block)
        new = new and f"encoder.layer.{match[1]}.{new}"
    else:
        new = _renamed(name, outside)
    if new is None:
        raise UserError(f"Hugging Face's DINOv2 has no place for the weight {name}: export with timm's names instead")
    return new


def _renamed(name: str, table: dict[str, str]) -> str | None:
    """`name` with its leading module or parameter replaced as in `table`; None if it is not in the table."""
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return None
