"""Attention that is not timm's fused one: read all the same, with the same maps, or refused in one line."""

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from common.errors import UserError
from explain import explain
from tests.explain.small import CASES, vit
from tests.explain.textbook import Layer, explicit_layers, fuse, product, read_out

TARGETS = torch.tensor([4, 0, 2])
METHODS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("raw_attention", "rollout", "attention_flow", "grad_rollout", "agcam", "lrp"), {}),
    "gradcam": {"compat": "chefer"},
}
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def query_key_value(attn: Any, x: Tensor) -> tuple[Tensor, ...]:
    """[B, H, N, E] each, of timm's attention without norms."""
    return attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # type: ignore[no-any-return]


def patch(block: Any, attend: Attend) -> None:
    """Replace the forward of the block's attention, as users do to get at the weights."""

    def forward(attn: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        out = attend(*query_key_value(attn, x), attn_mask).transpose(1, 2).flatten(2)
        return attn.proj_drop(attn.proj(out))

    block.attn.forward = types.MethodType(forward, block.attn)


def masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)


def by_method(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    weights = masked((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5, mask).softmax(dim=-1)
    weights = F.dropout(weights, 0.3, training=False)
    return weights @ v


def by_function(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = masked(torch.matmul(q * q.shape[-1] ** -0.5, k.mT), mask)
    return torch.matmul(F.softmax(scores, -1, dtype=torch.float64).to(v.dtype), v)


def by_aten(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.aten.scaled_dot_product_attention(q, k, v, mask)
    return out


def with_a_look(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Computes other weights too, which the model does not use."""
    (q @ k.mT).softmax(-1).mean(1)
    return F.scaled_dot_product_attention(q, k, v, mask)


class Explicit(Attention):
    """A user's subclass: never fused, whatever `fused_attn` says."""

    def forward(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        q, k, v = query_key_value(self, x)
        out = by_method(q, k, v, attn_mask).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out))


class OwnAttention(nn.Module):
    """A user's own module, without a switch for fused attention."""

    def __init__(self, timms: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads = timms.qkv, timms.proj, timms.num_heads

    def forward(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        q, k, v = query_key_value(self, x)
        out: Tensor = self.proj(by_method(q, k, v, attn_mask).transpose(1, 2).flatten(2))
        return out


def assert_same(found: Tensor, wanted: Tensor, tolerance: float = 1e-9) -> None:
    assert float(wanted.abs().max()) > 0
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))


@pytest.mark.parametrize("attend", [by_method, by_function, by_aten, with_a_look])
@pytest.mark.parametrize("method", METHODS)
def test_a_patched_block_does_not_vanish(method: str, attend: Attend) -> None:
    case = CASES["class_token"]
    model, x = case.model().double(), case.images().double()
    wanted = explain(model, x, method, TARGETS, **METHODS[method])
    patch(model.blocks[-1], attend)
    tolerance = 1e-7 if method == "lrp" else 1e-9  # its rules divide by sums that cancel
    assert_same(explain(model, x, method, TARGETS, **METHODS[method]), wanted, tolerance)
    for block in model.blocks:
        patch(block, attend)
    assert_same(explain(model, x, method, TARGETS, **METHODS[method]), wanted, tolerance)


def test_the_textbook_of_a_patched_model() -> None:
    case = CASES["class_token"]
    model, x = case.model().double(), case.images(1).double()
    patch(model.blocks[1], by_method)
    explained = case.explained(model, x)
    layers: list[Layer] = explicit_layers(explained, x, 3)
    assert len(layers) == 3
    rollout = read_out(product([fuse(layer.A, "mean") * 1.0 for layer in layers], "row"), explained)
    assert_same(explain(model, x, "rollout").flatten(), rollout)
    weighted = [fuse(layer.A * layer.G, "mean").clamp(min=0) for layer in layers]
    assert_same(
        explain(model, x, "grad_rollout", torch.tensor([3])).flatten(), read_out(product(weighted, "row"), explained)
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_users_attention(method: str) -> None:
    torch.manual_seed(0)
    model, x = vit().double().eval(), CASES["class_token"].images().double()
    wanted = explain(model, x, method, TARGETS, **METHODS[method])
    for block in model.blocks:
        block.attn.__class__ = Explicit
    assert_same(explain(model, x, method, TARGETS, **METHODS[method]), wanted)
    for block in model.blocks:
        block.attn = OwnAttention(block.attn)
    assert_same(explain(model, x, method, TARGETS, **METHODS[method]), wanted)


@pytest.mark.parametrize("method", ["rollout", "agcam", "grad_rollout"])
def test_explicit_attention_with_a_mask(method: str) -> None:
    case = CASES["stage_2"]
    model, x = case.model(), case.images()
    wanted = explain(model, x, method, TARGETS)
    for block in model.stage_2.backbone.blocks:
        patch(block, by_method)
    assert_same(explain(model, x, method, TARGETS), wanted, 1e-5)


def by_einsum(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    weights = torch.einsum("bhqd,bhkd->bhqk", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def scaled_weights(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return (q @ k.mT).softmax(-1).mul(0.9) @ v


def by_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return torch._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]


def without_softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return (q @ k.mT) @ v


def grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)


def causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def with_dropout(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)


def with_live_dropout(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.dropout((q @ k.mT).softmax(-1), 0.5) @ v


def with_changed_weights(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    weights = (q @ k.mT).softmax(-1)
    weights[..., 3] = 0
    return weights @ v


def with_changed_scores(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.mT
    weights = scores.softmax(-1)
    scores.zero_()
    return weights @ v


def with_changed_keys(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    k = k.clone()
    out = F.scaled_dot_product_attention(q, k, v)
    k.zero_()
    return out


def twice(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return by_aten(q, k, by_aten(q, k, v, None), None)


def of_half_the_tokens(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k[:, :, ::2], v[:, :, ::2])


def of_one_query(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return torch.cat([F.scaled_dot_product_attention(q[:, :, :1], k, v), v[:, :, 1:]], dim=2)


NOT_FOUND = (by_einsum, scaled_weights, with_live_dropout, by_kernel, without_softmax)
CHANGED = (with_changed_weights, with_changed_scores, with_changed_keys)
REFUSED: dict[Attend, str] = {
    **dict.fromkeys(NOT_FOUND, r"^blocks\.1: its attention is neither"),
    **dict.fromkeys(CHANGED, r"^blocks\.1: it changes .* in place"),
    **dict.fromkeys((grouped, causal, with_dropout), r"^blocks\.1: .* is not supported"),
    twice: r"^blocks\.1: it has 2 attentions in sequence",
    **dict.fromkeys((of_half_the_tokens, of_one_query), r"^blocks\.1: .* instead of one row for every token"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("attend", REFUSED)
def test_what_cannot_be_read_is_refused(attend: Attend, method: str) -> None:
    case = CASES["class_token"]
    model = case.model()
    patch(model.blocks[1], attend)
    layer = {"layer": 1} if method in ("raw_attention", "gradcam") else {}
    with pytest.raises(UserError, match=rf"{REFUSED[attend]}|lrp has no rule") as error:
        explain(model, case.images(), method, TARGETS, **METHODS[method], **layer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", METHODS)
def test_one_block_at_every_depth(method: str) -> None:
    """The same as a model whose blocks are copies of each other."""
    torch.manual_seed(0)
    model, x = vit().double().eval(), CASES["class_token"].images().double()
    for block in model.blocks[1:]:
        block.load_state_dict(model.blocks[0].state_dict())
    options = [
        {**METHODS[method], **layer}
        for layer in ([{"layer": 1}, {}] if method in ("raw_attention", "gradcam") else [{}])
    ]
    wanted = [explain(model, x, method, TARGETS, **each) for each in options]
    model.blocks = nn.Sequential(*[model.blocks[0]] * 3)
    for each, one in zip(options, wanted, strict=True):
        assert_same(explain(model, x, method, TARGETS, **each), one)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_gradcam_of_one_block_at_every_depth(layer: int) -> None:
    torch.manual_seed(0)
    model, x = vit().double().eval(), CASES["class_token"].images().double()
    for block in model.blocks[1:]:
        block.load_state_dict(model.blocks[0].state_dict())
    wanted = explain(model, x, "gradcam", TARGETS, layer=layer, relu=False)
    model.blocks = nn.Sequential(*[model.blocks[0]] * 3)
    assert_same(explain(model, x, "gradcam", TARGETS, layer=layer, relu=False), wanted)
    with pytest.raises(UserError, match="LayerNorm that runs 3 times"):
        explain(model, x, "gradcam", TARGETS, module="blocks.0.norm1")


def test_blocks_without_attention_are_refused() -> None:
    model = vit(block_fn=lambda **_: nn.Identity()).eval()
    with pytest.raises(UserError, match=r"^blocks\.0: its attention is neither"):
        explain(model, CASES["class_token"].images(), "rollout")


class InReverse(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for block in reversed(list(self)):
            x = block(x)
        return x


class WithoutTheLast(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x))


class NotAsModules(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = Block.forward(block, x)  # type: ignore[arg-type]
        return x


@pytest.mark.parametrize("kind", [InReverse, WithoutTheLast, NotAsModules])
def test_blocks_that_do_not_run_in_order(kind: Any) -> None:
    model = vit().eval()
    model.blocks = kind(*model.blocks)
    for method in ("rollout", "agcam"):
        with pytest.raises(UserError, match=r"^blocks\.\d: (the blocks do not run once each|it did not run)"):
            explain(model, CASES["class_token"].images(), method, TARGETS)
