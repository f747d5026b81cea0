"""Backbones: invalid names, sources of weights, and tokens that depend on their own patch only."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from torch import nn

from common.errors import UserError
from models.backbone import create_backbone, grid_of, load_backbone_weights, patch_tokens
from models.transformer import describe
from tests.models.small import EVAS, FLAT, backbone, images


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("vit_bse_patch16_224", (32, 32), r"timm has no model 'vit_bse_patch16_224'; nearest: vit_base_patch16_224, "),
        ("vit_nano_patch_8", (32, 32), "nearest: vit_nano_patch8"),
        ("vit_base_patch14_dinov2.typo", (28, 28), r"model\.backbone: Invalid pretrained tag \(typo\)"),
        ("resnet18", (32, 32), "'resnet18' is not a timm VisionTransformer"),
        ("swin_tiny_patch4_window7_224", (32, 32), "'swin_tiny_patch4_window7_224' is not a timm VisionTransformer"),
        (
            "vit_nano_patch8",
            (32, 36),
            r"data\.image_size: \(32, 36\) is not a multiple of vit_nano_patch8's patch size",
        ),
        ("vit_t_dino", (33, 32), r"data\.image_size: \(33, 32\) is not a multiple"),
    ],
)
def test_invalid_backbones_are_one_line_errors(name: str, size: tuple[int, int], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        create_backbone(name, size)
    assert "\n" not in str(caught.value)


def test_size_and_drop_path_reach_timm() -> None:
    vit = create_backbone("vit_nano_patch8", (16, 40), drop_path=0.2)
    assert grid_of(vit) == (2, 5) and vit.num_classes == 0 and isinstance(vit.head, nn.Identity)
    assert [getattr(block.drop_path1, "drop_prob", 0) for block in vit.blocks] == pytest.approx([0, 0.1, 0.2])


def test_final_norm_is_applied_before_pooling() -> None:
    """With average pooling, timm applies the norm after pooling, which would leave patch tokens unnormalised."""
    assert isinstance(timm.create_model("vit_t_dino", global_pool="avg").norm, nn.Identity)
    vit = create_backbone("vit_t_dino", (32, 32))
    assert isinstance(vit.norm, nn.LayerNorm) and isinstance(vit.fc_norm, nn.Identity)


@pytest.mark.parametrize("name", (*FLAT, *EVAS, "eva_t_post", "vit_t_gap"))
@torch.no_grad()
def test_embed_and_blocks_are_timms_own_forward(name: str) -> None:
    vit, x = backbone(name, (16, 40)).eval(), images(2, (16, 40))
    described = describe(vit)
    tokens = described.embed(x)
    assert tokens.x.shape == (2, vit.num_prefix_tokens + 10, vit.embed_dim)
    full = tokens.x
    for index in range(len(described.blocks)):
        full = described.run_block(index, tokens, full)
    full = described.norm(full)
    assert torch.equal(full, vit.forward_features(x))
    assert torch.equal(patch_tokens(vit, x), full[:, vit.num_prefix_tokens :])


@pytest.mark.parametrize("name", ["vit_nano_patch8", "vit_pico_patch8", "vit_t_dino", "eva_t_dinov3"])
@torch.no_grad()
def test_patches_do_not_leak_before_attention(name: str) -> None:
    vit, x = backbone(name, (16, 40)), images(1, (16, 40))
    embed = describe(vit).embed
    tokens = embed(x).x[0, vit.num_prefix_tokens :]
    for row, column in ((0, 0), (1, 3)):
        changed = x.clone()
        changed[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
        moved = (embed(changed).x[0, vit.num_prefix_tokens :] != tokens).any(-1)
        assert moved.nonzero().tolist() == [[5 * row + column]], "row-major, and only that patch"
    assert describe(vit).embeds_patches_separately


@torch.no_grad()
def test_overlapping_stem_is_detected() -> None:
    vit, x = backbone("vit_t_leaky"), images(1)
    changed = x.clone()
    changed[..., :8, :8] += 1
    assert (describe(vit).embed(changed).x != describe(vit).embed(x).x).any(-1).sum() > 1
    assert not describe(vit).embeds_patches_separately


def test_initialisation_of_nano_vits() -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_nano_patch8", reg_tokens=4)
    assert abs(vit.blocks[0].attn.qkv.weight.std() - 0.7 / 96**0.5 * 0.88) < 0.01  # truncated at +-2
    assert 0.01 < vit.reg_token.std() < 0.03 and 0.01 < vit.pos_embed.std() < 0.03
    pico = create_backbone("vit_pico_patch8", (32, 32))
    assert pico.pos_embed is None and pico.embed_dim == 64 and len(pico.blocks) == 2


def test_weights_none_leaves_the_model_as_it_is() -> None:
    vit = backbone("vit_t_dino")
    before = vit.norm.weight.clone()
    load_backbone_weights(vit, "vit_t_dino", "none")
    assert torch.equal(vit.norm.weight, before)


@pytest.mark.parametrize("name", ["vit_nano_patch8", "vit_pico_patch8"])
def test_missing_hub_weights_are_an_error(name: str) -> None:
    vit = backbone("vit_t_dino")
    with pytest.raises(UserError, match=rf"model\.weights=hub: cannot get the weights of '{name}' .*no pretrained"):
        load_backbone_weights(vit, name, "hub")


def test_hub_weights_are_resampled_to_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    source, vit = backbone("vit_t_regs", (64, 64), seed=5), backbone("vit_t_regs", (32, 48))
    monkeypatch.setattr("models.backbone.timm.create_model", lambda name, pretrained, num_classes: source)
    load_backbone_weights(vit, "vit_t_regs", "hub")
    assert torch.equal(vit.cls_token, source.cls_token) and vit.pos_embed.shape == (1, 3 + 24, 32)
    assert torch.equal(vit.pos_embed[:, :3], source.pos_embed[:, :3])


def test_hub_without_network_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    name = "vit_tiny_patch16_224.augreg_in21k"
    with pytest.raises(UserError, match=rf"model\.weights=hub: cannot get the weights of '{name}' \(.+\)") as caught:
        load_backbone_weights(create_backbone(name, (32, 32)), name, "hub")
    message = str(caught.value)
    assert "\n" not in message and message.endswith("give a file or model.weights=none")
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
