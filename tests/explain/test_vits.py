"""timm's `Eva` and `Beit`, stage 2 without a class token, and ViTs without a classifier."""

from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import HybridEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer_relpos import ResPostRelPosBlock
from torch import Tensor, nn

from common.errors import UserError
from explain import METHODS, explain
from explain.explained_model import with_selection
from explain.loading import patch_size
from models.two_stage import with_mask
from tests.explain.small import CASES, beit, eva, naflex, rel_pos, vit
from tests.models.small import eva_t_dinov3, eva_t_pe, shaken

WITHOUT_CLASS = ("raw_attention", "rollout", "attention_flow")
x = CASES["class_token"].images(2).double()
TARGETS = torch.tensor([4, 1])


def test_rows_are_the_tokens_that_the_classifier_reads() -> None:
    wanted = {
        **dict.fromkeys(("dinov3", "eva", "rope_mixed", "eva_post", "beit_shared", "stage_2_dinov3"), slice(0, 1)),
        **{"dinov3_avg": slice(3, None), "eva02": slice(1, None), "rope_gap": slice(1, None), "beit": slice(1, None)},
        **{"rel_pos": slice(0, 1), "naflex": slice(3, None), "naflex_map": slice(0, None)},
        **{"pe": slice(0, None), "stage_1_dinov3": slice(5, None), "stage_2_mean": slice(0, None)},
    }
    found = {name: CASES[name].explained(CASES[name].model(), CASES[name].images(1)).rows() for name in wanted}
    assert found == wanted


@pytest.mark.parametrize("name", ["rel_pos", "naflex"])
def test_maps_are_those_of_a_vision_transformer_without_its_own_positions(name: str) -> None:
    """NaFlexViT's positions are [1, h, w, D], resampled to the grid; relative ones with a bias of 0 have no effect."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"mlp_ratio": 2, "pos_embed_grid_size": (4, 4), "embed_proj_type": "conv"}
    other: Any = (
        naflex(**shape)
        if name == "naflex"
        else rel_pos(class_token=True, global_pool="token", rel_pos_type="bias", init_values=None, mlp_ratio=2)
    )
    shaken(other).double().eval()
    state = {
        key.replace("embeds.proj", "patch_embed.proj").replace("embeds.", ""): t
        for key, t in other.state_dict().items()
    }
    patches = state.get("pos_embed", torch.zeros(1, 4, 4, 32)).flatten(1, 2)
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 32), patches], dim=1)
    for key in [key for key in state if "rel_pos" in key]:
        state.pop(key).zero_()
    wanted = vit().double().eval()
    wanted.load_state_dict(state)
    for method in ("lrp", "gradcam", "guided_backprop", "attention_flow"):
        torch.testing.assert_close(
            explain(other, x, method, TARGETS), explain(wanted, x, method, TARGETS), rtol=1e-7, atol=0
        )


@pytest.mark.parametrize("name", ["eva", "beit"])
@pytest.mark.parametrize("method", ["lrp", "gradcam", "guided_backprop"])
def test_maps_are_those_of_a_vision_transformer_with_the_same_weights(name: str, method: str) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "global_pool": "token"}
    other = shaken(eva(Eva, **shape) if name == "eva" else beit(**shape)).double().eval()
    state = other.state_dict()
    for index in range(3):
        q, v = (state.pop(f"blocks.{index}.attn.{bias}_bias") for bias in "qv")
        state[f"blocks.{index}.attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    wanted = vit(mlp_ratio=4).double().eval()
    wanted.load_state_dict(state)
    for variant in ({}, {"variant": "full"}) if method == "lrp" else ({},):
        options: dict[str, Any] = {"compat": ""} if method == "gradcam" else variant
        maps = explain(other, x, method, TARGETS, **options)
        torch.testing.assert_close(maps, explain(wanted, x, method, TARGETS, **options), rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["eva_post", "rel_pos_post"])
def test_gradcam_of_norms_after_the_attention_reads_the_input_of_a_block(name: str) -> None:
    post = rel_pos(class_token=True, global_pool="token", block_fn=ResPostRelPosBlock)
    model = (CASES[name].model() if name in CASES else shaken(post).eval()).double()
    kept: list[Tensor] = []
    with model.blocks[-1].register_forward_pre_hook(lambda _, args: kept.append(args[0])):
        score = model(x[:1])[0, 4]
    a, (gradient,) = kept[0][0, 1:], torch.autograd.grad(score, kept)
    wanted = (a * gradient[0, 1:].mean(0)).sum(1).relu().detach()
    torch.testing.assert_close(explain(model, x[:1], "gradcam", 4).flatten(), wanted)


def test_the_attention_of_evas_pooling_reads_all_tokens() -> None:
    model: Any = CASES["pe"].model().double()
    tokens: list[Tensor] = []
    with model.attn_pool.register_forward_pre_hook(lambda _, args: tokens.append(args[0])):
        found = explain(model, x[:1], "raw_attention", pooling=True)
    pool = model.attn_pool
    heads = (1, -1, pool.num_heads, pool.head_dim)
    q = pool.q(pool.latent).view(heads).transpose(1, 2)
    k = pool.kv(tokens[0]).chunk(2, dim=-1)[0].reshape(heads).transpose(1, 2)
    weights = (q @ k.mT * pool.scale).softmax(-1).mean(1)[:, 0]
    assert weights.shape == (1, 17)
    torch.testing.assert_close(found.flatten(), weights[0, 1:].detach())


@pytest.mark.parametrize("name", ["stage_2_mean", "stage_2_rope_mean"])
def test_hidden_patches_of_a_mean_have_no_part_in_it(name: str) -> None:
    case = CASES[name]
    model, images = case.model(), case.images()
    hidden = ~model.select(images).selection.mask
    assert hidden.any() and not hidden.all()
    for method in METHODS:
        if METHODS[method]().resolution == "patch" and not (method == "lrp" and "rope" in name):
            maps = explain(model, images, method)
            assert float(maps[hidden].abs().max()) == 0, method
            assert float(maps[~hidden].abs().max()) > 0, method


def test_a_mean_over_no_patch_has_a_map_of_zeros() -> None:
    case = CASES["stage_2_mean"]
    model, images = case.model(), case.images()
    explained = case.explained(model, images)
    assert explained.selection is not None
    nothing = with_selection(explained, with_mask(explained.selection, torch.zeros_like(explained.selection.mask)))
    rows = nothing.readout_row(torch.ones(3, 16, 16))
    assert not rows.any() and not nothing.mean_over_rows(torch.ones(3, 2, 16, 16)).any()


WITH_HEAD: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "class token": (vit, {}, {}),
    "no pooling": (vit, {}, {"global_pool": ""}),
    "registers": (vit, {"reg_tokens": 4, "class_token": False, "global_pool": "avg"}, {}),
    "dinov3": (lambda **s: eva(eva_t_dinov3, **s), {"global_pool": "token"}, {"global_pool": "avg"}),
    "pooling": (lambda **s: eva(eva_t_pe, **s), {}, {}),
    "beit": (beit, {"global_pool": "token", "use_rel_pos_bias": True}, {}),
    "naflex": (naflex, {"reg_tokens": 2}, {}),
}


@pytest.mark.parametrize("name", WITH_HEAD)
def test_methods_without_class_on_a_vit_without_classifier(name: str) -> None:
    """The maps of the same ViT with a classifier on the class token or, without one, on the patches."""
    make, settings, headless = WITH_HEAD[name]
    torch.manual_seed(0)
    wanted = shaken(make(**settings)).double().eval()
    model = make(**settings | {"num_classes": 0} | headless).double().eval()
    model.load_state_dict({key: t for key, t in wanted.state_dict().items() if not key.startswith("head.")})
    for method in WITHOUT_CLASS:
        torch.testing.assert_close(explain(model, x, method), explain(wanted, x, method))
    for method in set(METHODS) - {*WITHOUT_CLASS, "inherent"}:
        with pytest.raises(UserError, match="no classifier.*, or choose attention_flow, raw_attention or rollout$"):
            explain(model, x, method)
    with pytest.raises(UserError, match="needs a two-stage model"):
        explain(model, x, "inherent")


def test_a_vit_on_the_features_of_a_cnn() -> None:
    """A patch is a position of the features, stride 8, so 4 x 6 of them are 32 x 48 pixels."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.GELU())
    model = shaken(vit(img_size=(32, 48), embed_layer=partial(HybridEmbed, stem), patch_size=1)).eval()
    images = torch.randn(1, 3, 32, 48)
    assert patch_size(model, (64, 64)) == 8
    assert explain(model, images, "rollout").shape == (1, 4, 6)
    with pytest.raises(UserError, match="this model takes 32 x 48"):
        explain(model, images[:, :, :4, :6], "rollout")
