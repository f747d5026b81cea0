"""Read weights of others: timm's naming, and Hugging Face's DINOv2 / RAD-DINO naming turned into timm's."""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UserError

State = dict[str, Tensor]

_HF_RENAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.mlp\.weights_out\.", r"blocks.\1.mlp.fc2."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^layernorm\.", "norm."),
)
_HF_QKV = re.compile(r"^encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$")
_HEADS = re.compile(r"^(head|fc_norm|classifier|head_dist)\.")


def read_state(path: str | Path) -> State:
    """Read a state dict from a .safetensors or torch file without running code from it.

    Accepts a bare state dict or one under "model_state", "state_dict", "model" or "teacher". Raises UserError.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"model.weights: no such file {path}; give hub, none or a weights file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(f"{path}: not a readable weights file ({_first_line(error)})") from None
    except Exception as error:  # the safe unpickler's refusals have no common public base class
        raise UserError(f"{path}: refused by the safe loader ({_first_line(error)}); save it as safetensors") from None
    for key in ("model_state", "state_dict", "model", "teacher"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path}: holds no state dict (a mapping from names to tensors)")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def huggingface_dinov2_to_timm(state: State) -> State:
    """Rename a `Dinov2Model` (DINOv2, RAD-DINO; with registers or gated MLP too) to timm's VisionTransformer.

    Query, key and value are stacked to timm's qkv; the mask token, which only pre-training uses, is dropped.
    """
    state = {name.removeprefix("dinov2.").removeprefix("dinov2_with_registers."): t for name, t in state.items()}
    renamed: State = {}
    for name, tensor in state.items():
        match = _HF_QKV.match(name)
        if name == "embeddings.mask_token" or (match and match[2] != "query"):
            continue
        if match:
            parts = [state[name.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
            renamed[f"blocks.{match[1]}.attn.qkv.{match[3]}"] = torch.cat(parts)
            continue
        new = name
        for pattern, target in _HF_RENAMES:
            new, count = re.subn(pattern, target, new)
            if count:
                break
        renamed[new] = tensor
    return renamed


def fit_backbone_state(state: State, vit: VisionTransformer) -> State:
    """Make a backbone's state dict fit `vit`: names to timm's, heads dropped, positions resampled to its grid."""
    if any(name.startswith(("embeddings.", "dinov2")) for name in state):
        state = huggingface_dinov2_to_timm(state)
    state = {name: t for name, t in state.items() if not _HEADS.match(name) and name != "mask_token"}
    if "register_tokens" in state:
        state["reg_token"] = state.pop("register_tokens")
    if "pos_embed" in state and vit.pos_embed is not None:
        state["pos_embed"] = _fit_positions(state["pos_embed"], vit)
    return state


def _fit_positions(table: Tensor, vit: VisionTransformer) -> Tensor:
    """Drop or keep the prefix positions as `vit` has them, and resample the (square) grid bicubically to vit's grid."""
    side = int(table.shape[1] ** 0.5)
    stored_prefix = table.shape[1] - side**2
    wanted_prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    if stored_prefix and not wanted_prefix:
        raise UserError(
            f"model.weights: the position table has {stored_prefix} prefix positions, the backbone has none"
        )
    if wanted_prefix and stored_prefix != wanted_prefix:
        raise UserError(f"model.weights: position table of {table.shape[1]} entries does not fit the backbone's prefix")
    grid = tuple(vit.patch_embed.grid_size)
    if grid == (side, side):
        return table
    return resample_abs_pos_embed(table, list(grid), [side, side], num_prefix_tokens=stored_prefix)


def load_into(module: nn.Module, state: State, source: str) -> None:
    """Load `state` into `module`, all of it or nothing. Raises UserError naming missing, unexpected or misshapen keys."""
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshapen = sorted(
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    )
    problems = [
        f"{kind}: {', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", misshapen))
        if names
    ]
    if problems:
        raise UserError(f"{source} does not fit the model; {'; '.join(problems)}")
    module.load_state_dict(state)
