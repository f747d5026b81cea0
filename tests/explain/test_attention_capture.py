"""Matrices rebuilt from fused attention equal those of explicit attention and autograd."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from explain import explain
from explain.attention_capture import Attention, AttentionCapture, exact_product, record
from explain.explained_model import ExplainedModel, explainable
from tests.explain.small import CASES, TIMM
from tests.explain.textbook import Layer, explicit_layers

TARGETS = torch.tensor([3, 0, 3])


def captured(explained: ExplainedModel, x: Tensor, stop_gradient: bool = False) -> AttentionCapture:
    with explainable(explained):
        with record(explained.blocks, stop_gradient=stop_gradient) as capture:
            logits = explained.logits(x)
        capture.compute_gradients(explained.target_score(logits, TARGETS[: len(x)]))
    return capture


def in_heads(layer: list[Attention], what: str, rows: slice = slice(None)) -> Tensor:
    return torch.cat([getattr(attention, what)(rows) for attention in layer], dim=1)


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


@pytest.mark.parametrize("name", TIMM)
def test_everything_equals_explicit_attention(name: str) -> None:
    case = CASES[name]
    model, x = case.model().double(), case.images().double()
    explained = case.explained(model, x)
    layers = captured(explained, x).by_block()
    assert len(layers) == len(explained.vit.blocks)
    for image in range(len(x)):
        for layer, wanted in zip(layers, explicit_layers(explained, x[[image]], int(TARGETS[image])), strict=True):
            assert_same(layer, wanted, image)


def assert_same(layer: list[Attention], wanted: Layer, image: int) -> None:
    close(in_heads(layer, "scores")[image], wanted.S, 1e-10)
    close(in_heads(layer, "weights")[image], wanted.A, 1e-10)
    close(in_heads(layer, "weights_gradient")[image], wanted.G, 1e-9)
    close(in_heads(layer, "scores_gradient")[image], wanted.E, 1e-9)


@pytest.mark.parametrize("name", ["plain_aim", "stage_1", "stage_2"])
def test_our_models_in_float32(name: str) -> None:
    case = CASES[name]
    model, x = case.model(), case.images()
    layers = captured(case.explained(model, x), x).by_block()
    for layer, wanted in zip(layers, explicit_layers(case.explained(model, x[[1]]), x[[1]], 0), strict=True):
        close(in_heads(layer, "weights")[1], wanted.A, 1e-5)
        close(in_heads(layer, "weights_gradient")[1], wanted.G, 1e-4)


def test_rows_are_rows_of_the_whole() -> None:
    case = CASES["stage_2"]
    x = case.images()
    attention = captured(case.explained(case.model(), x), x).attentions[1]
    for what in ("scores", "weights", "weights_gradient", "scores_gradient"):
        whole = getattr(attention, what)()
        torch.testing.assert_close(getattr(attention, what)(slice(2, 5)), whole[:, :, 2:5])


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_of_its_own_for_every_row(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 2, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 4).tril().bool() if dtype == torch.bool else torch.arange(16.0).view(1, 1, 4, 4).sin()
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.7)
    attention = Attention(0, q, k, v, 0.7, mask, out)
    torch.testing.assert_close(attention.weights() @ v, out)
    torch.testing.assert_close(attention.weights(slice(1, 3)), attention.weights()[:, :, 1:3])


@pytest.mark.parametrize("name", ["class_token", "parallel_things", "res_post", "map"])
def test_cut_lets_no_gradient_through_an_attention(name: str) -> None:
    case = CASES[name]
    model, x = case.model().double(), case.images().double()
    explained = case.explained(model, x)
    uncut = captured(explained, x).attentions[0].weights_gradient()
    layers = captured(explained, x, stop_gradient=True).by_block()
    assert not torch.allclose(in_heads(layers[0], "weights_gradient")[:, :2], uncut)
    for layer, wanted in zip(layers, explicit_layers(explained, x[[0]], 3, detach_inputs=True), strict=True):
        close(in_heads(layer, "weights_gradient")[0], wanted.G, 1e-9)


def test_attention_of_a_pooling_is_not_recorded() -> None:
    for name in ("map", "plain_aim"):
        case = CASES[name]
        x = case.images()
        assert len(captured(case.explained(case.model(), x), x).attentions) == 3


def test_some_blocks_alone() -> None:
    case = CASES["class_token"]
    x = case.images()
    explained = case.explained(case.model(), x)
    with torch.no_grad(), record(explained.blocks, [1]) as capture:
        explained.logits(x)
    (attention,) = capture.attentions
    torch.testing.assert_close(attention.weights(), captured(explained, x).attentions[1].weights())


def test_the_rebuilding_is_exact_under_autocast() -> None:
    a, b = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(exact_product(a, b), (a.double() @ b.double().T).float())
        assert exact_product(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def test_causal_attention_is_refused() -> None:
    """Its mask is not among the captured tensors, so the rebuilt matrix would be wrong."""
    case = CASES["class_token"]
    model: Any = case.model()
    forward = model.blocks[1].attn.forward
    model.blocks[1].attn.forward = lambda x, **_: forward(x, is_causal=True)
    with pytest.raises(UserError, match="causal"):
        explain(model, case.images(), "rollout")


def test_gradients_come_first() -> None:
    q = torch.zeros(1, 1, 2, 2)
    with pytest.raises(RuntimeError, match="gradients"):
        Attention(0, q, q, q, 1.0, None, q).weights_gradient()


def test_no_hook_stays_when_the_model_raises() -> None:
    case = CASES["class_token"]
    explained = case.explained(case.model(), case.images())
    with pytest.raises(RuntimeError, match="shape"), record(explained.blocks):
        explained.vit.blocks(torch.zeros(1, 2, 3))
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in explained.vit.blocks)
