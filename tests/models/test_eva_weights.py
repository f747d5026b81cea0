"""Weights of timm's `Eva` in every naming: the same outputs as before, or an error that names them."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import UserError
from models.backbone import create_backbone, load_backbone_weights
from models.weights.checkpoints import fit_backbone_state, load_into
from tests.models.small import EVAS, backbone, images, shaken

SIZE = (32, 48)
QKV = re.compile(r"(.*attn\.)q_bias$")


def reloaded(state: dict[str, Tensor], name: str, folder: Path, size: tuple[int, int] = SIZE) -> torch.nn.Module:
    """A new backbone with the weights of a file that holds `state`."""
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "w.safetensors")
    vit = create_backbone(name, size)
    load_backbone_weights(vit, name, str(folder / "w.safetensors"))
    return vit.eval()


def dinov3_names(state: dict[str, Tensor], bias: float = 0.0) -> dict[str, Tensor]:
    """timm's names to those of DINOv3's authors, with all that their files hold besides."""
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := QKV.match(name):
            v = state[f"{match[1]}v_bias"]
            named[f"{match[1]}qkv.bias"] = torch.cat([tensor, torch.full_like(v, torch.nan), v])
        elif not name.endswith("v_bias"):
            name = re.sub(r"gamma_(\d)$", r"ls\1.gamma", name).replace("reg_token", "storage_tokens")
            named[name] = tensor
    if not any("qkv.bias" in name for name in named):  # the small models: all zero
        named |= {f"blocks.{i}.attn.qkv.bias": torch.full((96,), bias) for i in range(3)}
    named |= {f"blocks.{i}.attn.qkv.bias_mask": torch.ones(96) for i in range(3)}
    return named | {"mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4)}


@pytest.mark.parametrize("name", [*EVAS, "eva_t_post"])
@torch.no_grad()
def test_timms_own_names_are_loaded_unchanged(name: str, tmp_path: Path) -> None:
    """Also of a model with the classifier and the pooling that timm gives it."""
    vit, x = backbone(name, SIZE).eval(), images(2, SIZE)
    again = reloaded(vit.state_dict(), name, tmp_path)
    assert torch.equal(again.forward_features(x), vit.forward_features(x))
    timms = shaken(timm.create_model(name, num_classes=7, img_size=SIZE)).eval()
    tokens = timms.forward_features(x)
    loaded = reloaded(timms.state_dict(), name, tmp_path).forward_features(x)
    torch.testing.assert_close(loaded, timms.fc_norm(tokens))


@pytest.mark.parametrize("name", ["eva_t_dinov3", "eva_t_dinov3_qkvb"])
@torch.no_grad()
def test_names_of_dinov3s_authors(name: str, tmp_path: Path) -> None:
    vit, x = backbone(name, SIZE).eval(), images(2, SIZE)
    again = reloaded(dinov3_names(vit.state_dict()), name, tmp_path)
    assert torch.equal(again.forward_features(x), vit.forward_features(x))


@pytest.mark.parametrize("gated", [False, True], ids=["mlp", "gated"])
@torch.no_grad()
def test_hugging_face_dinov3_gives_the_same_numbers(gated: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    settings: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
    settings |= dict(patch_size=8, image_size=32, num_register_tokens=4)
    settings |= dict(use_gated_mlp=True, hidden_act="silu") if gated else {}
    model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**settings)).eval()
    shaken(model, gain=1.0)
    model.save_pretrained(tmp_path)
    x = images(2, SIZE)
    expected = model(x).last_hidden_state
    extra = dict(swiglu_mlp=True, swiglu_align_to=8) if gated else {}
    vit = timm.create_model("eva_t_dinov3_qkvb", num_classes=0, img_size=SIZE, use_fc_norm=False, **extra).eval()
    state = load_file(tmp_path / "model.safetensors")
    for names in (state, {name.removeprefix("model."): tensor for name, tensor in state.items()}):
        load_into(vit, fit_backbone_state(names, vit), "file")
        torch.testing.assert_close(vit.forward_features(x), expected, atol=1e-3, rtol=1e-3)
    small = create_backbone("eva_t_dinov3", SIZE)
    if not gated:
        with pytest.raises(UserError, match=r"blocks\.0\.attn\.qkv\.bias is not zero; .* whose name has _qkvb"):
            fit_backbone_state(state, small)


def test_biases_without_a_place_are_not_dropped(tmp_path: Path) -> None:
    state = dinov3_names(backbone("eva_t_dinov3", SIZE).state_dict(), bias=0.1)
    with pytest.raises(UserError, match=r"model\.weights: blocks\.0\.attn\.qkv\.bias is not zero; use the "):
        reloaded(state, "eva_t_dinov3", tmp_path)


@torch.no_grad()
def test_names_of_eva02s_authors(tmp_path: Path) -> None:
    vit, x = backbone("eva_t_eva02", SIZE).eval(), images(2, SIZE)
    renames = (("mlp.fc1_g", "mlp.w1"), ("mlp.fc1_x", "mlp.w2"), ("mlp.fc2", "mlp.w3"), ("mlp.norm", "mlp.ffn_ln"))
    renames += (("attn.norm", "attn.inner_attn_ln"), ("q_proj.bias", "q_bias"), ("v_proj.bias", "v_bias"))
    state = vit.state_dict()
    for new, old in renames:
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    again = reloaded(state | {"rope.freqs_cos": torch.ones(4)}, "eva_t_eva02", tmp_path)
    assert torch.equal(again.forward_features(x), vit.forward_features(x))


@pytest.mark.parametrize("name", ["eva_t_eva02", "eva_t_dinov3", "eva_t_mixed"])
def test_another_image_size_changes_learned_positions_only(name: str, tmp_path: Path) -> None:
    square = backbone(name, (32, 32)).state_dict()
    state = reloaded(square, name, tmp_path, (24, 48)).state_dict()
    changed = [key for key, tensor in state.items() if not torch.equal(tensor, square[key])]
    assert changed == (["pos_embed"] if name == "eva_t_eva02" else [])
    if changed:
        assert state["pos_embed"].shape == (1, 19, 32)
        assert torch.equal(state["pos_embed"][:, 0], square["pos_embed"][:, 0])


def test_misfits_are_named(tmp_path: Path) -> None:
    state = backbone("eva_t_dinov3", SIZE).state_dict()
    larger = state | {"patch_embed.proj.weight": torch.zeros(32, 3, 16, 16)}
    with pytest.raises(UserError, match=r"patch_embed\.proj\.weight \(32, 3, 16, 16\) instead of \(32, 3, 8, 8\)"):
        reloaded(larger, "eva_t_dinov3", tmp_path)
    without = {key: tensor for key, tensor in state.items() if key != "norm.bias"}
    with pytest.raises(UserError, match=r"missing: norm\.bias; unexpected: other"):
        reloaded(without | {"other": torch.ones(2)}, "eva_t_dinov3", tmp_path)
    strange = dinov3_names(state) | {"blocks.0.attn.qkv.bias": torch.tensor(1.0), "pos_embed": torch.tensor(1.0)}
    with pytest.raises(UserError, match=r"does not fit the model; .*unexpected"):
        reloaded(strange, "eva_t_dinov3", tmp_path)
