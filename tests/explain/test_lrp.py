"""LRP: parity with relevance computed by hand, conservation, coverage of timm's ViTs, and refusals by name."""

import warnings
from copy import deepcopy
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Attention, GELUTanh, GluMlp, QuickGELU, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.vision_transformer import (
    Block,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from common.errors import UserError
from explain import explain
from explain.explained_model import explained_model
from explain.lrp import rules
from explain.lrp.autograd_mode import RelevanceMode
from explain.lrp.method import Lrp, Variant, logits_with_fixed_parts
from models.transformer import describe
from tests.explain import classifiers, textbook_lrp
from tests.explain.classifiers import images, two_stage
from tests.explain.textbook_lrp import lrp as by_hand
from tests.models.small import LeakyEmbed, shaken

VARIANTS = get_args(Variant)
LAYOUTS: dict[str, dict[str, Any]] = {
    "token": {},
    "dino": {"reg_tokens": 2, "init_values": 0.5, "no_embed_class": True, "img_size": (32, 40)},
    "gap": {"class_token": False, "global_pool": "avg", "fc_norm": True},
}


class Gated(Attention):
    def __init__(self, *args: Any, depth: int = 0, **settings: Any) -> None:
        super().__init__(*args, gated=True, **settings)


FAMILY: dict[str, dict[str, Any]] = {
    **LAYOUTS,
    "res_post": {"block_fn": ResPostBlock},
    "parallel_scaling": {"block_fn": ParallelScalingBlock},
    "parallel_things": {"block_fn": ParallelThingsBlock},
    "norms": {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True, "pre_norm": True},
    "gated": {"attn_layer": Gated},
    "swiglu": {"mlp_layer": SwiGLU, "act_layer": nn.SiLU},
    "swiglu_packed": {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU},
    "glu": {"mlp_layer": GluMlp, "act_layer": nn.Sigmoid},
    "rms": {"norm_layer": RmsNorm, "act_layer": GELUTanh},
    "quick": {"act_layer": QuickGELU, "init_values": 0.1},
    "map": {"class_token": False, "global_pool": "map"},
    "prr": {"global_pool": "prr"},
    "avgmax": {"global_pool": "avgmax"},
}


def size_of(settings: dict[str, Any]) -> tuple[int, int]:
    return settings.get("img_size", (32, 32))


def classifier(**settings: Any) -> VisionTransformer:
    """Weights whose relevance is well-conditioned: residuals and scores divide by what may be near 0."""
    vit = shaken(classifiers.classifier(**settings), seed=6)
    assert isinstance(vit, VisionTransformer)
    return vit


@pytest.mark.parametrize("rules", ["ours", "plain"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_relevance_by_hand(layout: str, variant: Variant, rules: str) -> None:
    vit, x = classifier(**LAYOUTS[layout]), images(2, size_of(LAYOUTS[layout]))
    targets = torch.tensor([3, 0])
    expected = torch.stack(
        [by_hand(vit, image[None], int(c), variant, rules) for image, c in zip(x, targets, strict=True)]
    )
    assert error(explain(vit, x, "lrp", targets, variant=variant, rules=rules), expected) < 1e-9
    single = explain(vit.float(), x.float(), "lrp", targets, variant=variant, rules=rules)
    assert single.dtype == torch.float32
    assert error(single, expected) < 2e-3


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compat_guards_where_tensors_are_used_twice(
    layout: str, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit, x = classifier(**LAYOUTS[layout]), images(1, size_of(LAYOUTS[layout]))
    monkeypatch.setattr(textbook_lrp, "EPSILON", 1e-4)  # large enough to change maps of this small model
    monkeypatch.setattr(rules.divide, "__defaults__", (1e-4,))
    monkeypatch.setattr(rules, "EPSILON", 1e-4)
    unguarded = by_hand(vit, x, None, variant, "ours")[None]
    monkeypatch.setattr(textbook_lrp, "merge", textbook_lrp.guarded_merge)
    guarded = by_hand(vit, x, None, variant, "ours")[None]
    assert error(explain(vit, x, "lrp", variant=variant), unguarded) < 1e-9
    assert error(explain(vit, x, "lrp", variant=variant, compat="chefer", start_layer=0), guarded) < 1e-9
    assert (error(guarded, unguarded) > 1e-6) is (variant != "last_layer_attn")


@pytest.mark.parametrize("variant", ["transformer_attribution", "full"])
def test_maps_of_a_float32_model_are_computed_in_float64(variant: Variant) -> None:
    vit, x = classifier().float(), images(2).float()
    found = explain(vit, x, "lrp", variant=variant)
    assert found.dtype == torch.float32 and vit.head.weight.dtype == torch.float32
    with pytest.warns(UserWarning, match="precision=float64"):
        single = explain(vit, x, "lrp", variant=variant, precision="model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a float64 model needs none
        expected = explain(vit.double(), x.double(), "lrp", variant=variant, precision="model")
    assert error(found, expected) < 1e-7 < error(single, expected)


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the map's largest value; the worst image's."""
    worst = (found.double() - expected).flatten(1).abs().amax(1) / expected.flatten(1).abs().amax(1)
    return float(worst.max())


def test_start_layer_and_the_published_one() -> None:
    vit, x = classifier(), images(1)
    assert error(explain(vit, x, "lrp", start_layer=2), by_hand(vit, x, None, VARIANTS[0], "ours", 2)[None]) < 1e-6
    published = explain(vit, x, "lrp", compat="chefer", variant="rollout")
    assert error(published, by_hand(vit, x, None, "rollout", "ours", 1)[None]) < 1e-6
    assert error(explain(vit, x, "lrp", compat="chefer", start_layer=0), explain(vit, x, "lrp")) < 1e-6


def test_published_residual_sums_couple_the_images_of_a_batch() -> None:
    vit, x = classifier(), images(2)
    alone = torch.cat([explain(vit, x[i : i + 1], "lrp", variant="rollout", compat="chefer") for i in range(2)])
    assert error(explain(vit, x, "lrp", variant="rollout", compat="chefer"), alone) > 1e-3
    assert error(explain(vit, x, "lrp", variant="rollout", start_layer=1), alone) < 1e-6


@pytest.mark.parametrize("kind", FAMILY)
def test_relevance_of_the_tokens_sums_to_its_start(kind: str) -> None:
    """The rules "ours" neither make nor lose relevance, in any block of timm's; twice the start is twice everything."""
    vit = classifier(**FAMILY[kind]).requires_grad_(False)
    tokens = describe(vit).embed(images(2, size_of(FAMILY[kind]))).x.detach().requires_grad_()
    with RelevanceMode(vit) as mode:
        logits = vit.forward_head(vit.norm(vit.blocks(tokens)))
    score = logits[:, 1].sum()
    (R,) = mode.relevance(score, [tokens], ["tokens"])
    torch.testing.assert_close(R.sum((1, 2)), torch.ones(2).double(), atol=2e-6, rtol=0)
    torch.testing.assert_close(mode.relevance(2 * score, [tokens], ["tokens"])[0], 2 * R)


@pytest.mark.parametrize("kind", FAMILY)
def test_the_pass_leaves_logits_and_gradients_true(kind: str) -> None:
    vit = classifier(**FAMILY[kind]).requires_grad_(False)
    tokens = describe(vit).embed(images(2, size_of(FAMILY[kind]))).x.detach().requires_grad_()

    def score() -> Tensor:
        return vit.forward_head(vit.norm(vit.blocks(tokens)))[:, 1].sum()

    with RelevanceMode(vit) as mode:
        ruled = score()
    mode.relevance(ruled, [tokens], ["tokens"])  # before the gradients, which need the same graph
    assert torch.equal(ruled, score())
    (expected,) = torch.autograd.grad(score(), tokens)
    torch.testing.assert_close(torch.autograd.grad(ruled, tokens)[0], expected)


@pytest.mark.parametrize("variant", ["transformer_attribution", "full"])
@pytest.mark.parametrize("kind", [kind for kind in FAMILY if kind != "avgmax"])
def test_a_batch_is_its_images_one_by_one(kind: str, variant: Variant) -> None:
    vit, x = classifier(**FAMILY[kind]), images(2, size_of(FAMILY[kind]))
    together = explain(vit, x, "lrp", variant=variant)
    alone = torch.cat([explain(vit, image[None], "lrp", variant=variant) for image in x])
    assert together.isfinite().all() and together.flatten(1).std(1).min() > 0
    assert error(together, alone) < 1e-8


@pytest.mark.parametrize("stage", [1, 2])
def test_both_stages(stage: Any) -> None:
    model, x = two_stage(), images(3).float()
    maps = explain(model, x, "lrp", stage=stage)
    alone = torch.cat([explain(model, image[None], "lrp", stage=stage) for image in x])
    assert maps.shape == (3, 4, 4)
    assert error(maps, alone.double()) < 1e-4


def test_stage_1_scores_with_given_maps_are_its_own() -> None:
    model, x = two_stage(), images(3).float()
    explained = explained_model(model, x, stage=1)
    torch.testing.assert_close(logits_with_fixed_parts(explained)(x), model.select(x).class_logits)


def test_stage_2_gives_nothing_to_what_it_does_not_see() -> None:
    """Hidden patches only have the relevance of the identity, and a class token's row has none of that."""
    model, x = two_stage(), images(3).float()
    maps, mask = explain(model, x, "lrp"), explained_model(model, x).selection.mask
    assert 0 < mask.float().mean() < 1
    assert (maps[~mask] == 0).all() and (maps[mask] > 0).any()


def test_full_maps_are_pixels() -> None:
    assert Lrp("full").resolution == "pixel" and Lrp().resolution == "patch"
    assert explain(classifier(), images(2), "lrp", variant="full").shape == (2, 32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "grad"}, "variant: 'grad'; known: transformer_attribution, rollout"),
        ({"rules": "zplus"}, "rules: 'zplus'; known: ours, plain"),
        ({"compat": "agcam"}, "compat: 'agcam'"),
        ({"start_layer": -1}, "--start-layer: -1"),
        ({"start_layer": 3}, "--start-layer"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        explain(classifier(), images(1), "lrp", **options)


def test_a_layer_without_a_rule_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    vit = classifier()
    vit.blocks[1].mlp.act = nn.Softplus()
    monkeypatch.setattr(Block, "forward", lambda *_: pytest.fail("ran"))
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.act \(Softplus\)"):
        explain(vit, images(1), "lrp")


class Cubed(nn.Sequential):
    """Not a leaf, so only what it calls gives it away."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 3


class Divided(Cubed):
    def forward(self, x: Tensor) -> Tensor:
        return x / (x + 9)


class Scaled(Cubed):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, x, alpha=2)


class Mixed(Cubed):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, x[0])


@pytest.mark.parametrize(("kind", "function"), [(Cubed, "pow"), (Divided, "div"), (Scaled, "add"), (Mixed, "linear")])
def test_a_function_without_a_rule_is_named_with_its_layer(kind: type[nn.Module], function: str) -> None:
    vit = classifier()
    vit.blocks[1].mlp.act = kind(nn.GELU())
    with pytest.raises(UserError, match=rf"blocks\.1\.mlp\.act \({kind.__name__}\).*{function}"):
        explain(vit, images(1), "lrp")


def test_what_full_cannot_reach_is_refused() -> None:
    vit = classifier(img_size=(32, 32), embed_layer=LeakyEmbed)
    with pytest.raises(UserError, match=r"patch_embed \(LeakyEmbed\)"):
        explain(vit, images(1), "lrp", variant="full")
    assert explain(vit, images(1), "lrp").shape == (1, 4, 4)


def test_half_precision_is_computed_in_double() -> None:
    vit, x = classifier().bfloat16(), images(1).bfloat16()
    assert torch.equal(explain(vit, x, "lrp"), explain(deepcopy(vit).float(), x.float(), "lrp"))
