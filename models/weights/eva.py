"""Weights of timm's `Eva` under the names of their authors (DINOv3, EVA, EVA-02, Perception Encoder) or, of DINOv3,
Hugging Face's.
"""

import contextlib
import io
import re

import torch
from timm.models.eva import Eva, checkpoint_filter_fn

from common.errors import UserError
from models.weights.huggingface import State

_HF_DINOV3 = (
    (r"^embeddings\.register_tokens$", "storage_tokens"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^(model\.)?layer\.", "blocks."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.gate_proj\.", ".mlp.w1."),
    (r"\.mlp\.down_proj\.", ".mlp.w3."),
)
"""Hugging Face's names of DINOv3 -> those of its authors; `up_proj`, q, k and v are treated apart."""


def eva_to_timm(state: State, vit: Eva) -> State:
    """Rename weights to timm's names for `vit`, by timm's own rules; those of timm stay as they are.

    timm would drop biases and resample patch embeddings that do not fit. Here biases without a place raise UserError
    unless they are zero, and what cannot be renamed is returned as it is, for `load_into` to report.
    """
    if any(name.endswith("attention.q_proj.weight") for name in state):
        state = _huggingface_dinov3(state)
    if "storage_tokens" in state:  # DINOv3's registers
        state = _without_zero_biases(state, vit)
    shape = vit.patch_embed.proj.weight.shape[1:]
    if any(name.endswith("patch_embed.proj.weight") and t.shape[1:] != shape for name, t in state.items()):
        return state
    table = {name: tensor for name, tensor in state.items() if name == "pos_embed"}  # resampled by `fit_positions`
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            renamed = checkpoint_filter_fn({name: t for name, t in state.items() if name not in table}, vit)
    except (AttributeError, IndexError, RuntimeError, ValueError):  # tensors of unexpected shapes
        return state
    return renamed | table


def _without_zero_biases(state: State, vit: Eva) -> State:
    """DINOv3's state without the biases of q, k and v, if `vit` has none. DINOv3 masks that of k."""
    if getattr(vit.blocks[0].attn, "q_bias", None) is not None:
        return state
    biases = {name: tensor for name, tensor in state.items() if name.endswith("attn.qkv.bias") and tensor.ndim == 1}
    for name, tensor in biases.items():
        q, _, v = tensor.tensor_split(3)
        if q.any() or v.any():
            raise UserError(f"model.weights: {name} is not zero; use the backbone with biases, whose name has _qkvb")
    return {name: tensor for name, tensor in state.items() if name not in biases}


def _huggingface_dinov3(state: State) -> State:
    """Rename the weights of a `DINOv3ViTModel` to those of DINOv3's authors, with q, k and v stacked."""
    renamed: State = {}
    for name, tensor in state.items():
        for pattern, target in _HF_DINOV3:
            name = re.sub(pattern, target, name)
        renamed[name] = tensor
    gated = any(".mlp.w1." in name for name in renamed)
    names = {"up_proj": "w2" if gated else "fc1", "w3": "w3" if gated else "fc2"}
    renamed = {re.sub(r"(?<=\.mlp\.)(up_proj|w3)", lambda match: names[match[1]], n): t for n, t in renamed.items()}
    for start in [name.removesuffix("q_proj.weight") for name in renamed if name.endswith("attention.q_proj.weight")]:
        _stack_qkv(renamed, start)
    return renamed


def _stack_qkv(state: State, start: str) -> None:
    """Replace the projections of one block, `start`{q,k,v}_proj, by one. If they do not fit, their names stay."""
    found = [state.get(f"{start}{part}_proj.weight") for part in "qkv"]
    weights = [weight for weight in found if weight is not None and weight.ndim == 2]
    if len(weights) != 3 or len({weight.shape for weight in weights}) != 1:
        return
    biases = [
        state.pop(f"{start}{part}_proj.bias", weight.new_zeros(len(weight)))
        for part, weight in zip("qkv", weights, strict=True)
    ]
    if biases[1].any():
        raise UserError(f"model.weights: {start}k_proj.bias is not zero, and timm's DINOv3 has no bias of k")
    for part in "qkv":
        del state[f"{start}{part}_proj.weight"]
    block = start.replace(".attention.", ".attn.")
    state |= {f"{block}qkv.weight": torch.cat(weights), f"{block}qkv.bias": torch.cat(biases)}
