"""Models that several threads explain, that are compiled, or that lack derivatives."""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from explain import explain
from tests.explain.small import CASES, vit
from tests.explain.textbook import fuse, product, read_out

TARGETS = torch.tensor([4, 0, 2])
METHODS = ("rollout", "grad_rollout", "agcam", "gradcam", "guided_backprop", "lrp")


def assert_same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9 * float(wanted.abs().max()))


def test_threads_that_explain_one_model() -> None:
    case = CASES["class_token"]
    model, x = case.model().double(), case.images().double()
    model.blocks[1].train()
    model.blocks[0].attn.qkv.requires_grad_(False)
    state = [(p.requires_grad, p.dtype) for p in model.parameters()], [part.training for part in model.modules()]
    wanted = {method: explain(model, x, method, TARGETS) for method in METHODS}
    jobs = METHODS * 4
    with ThreadPoolExecutor(4) as pool:
        for method, maps in zip(jobs, pool.map(lambda method: explain(model, x, method, TARGETS), jobs), strict=True):
            assert_same(maps, wanted[method])
    assert state == ([(p.requires_grad, p.dtype) for p in model.parameters()], [m.training for m in model.modules()])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("how", ["blocks", "in_place", "features", "whole", "block_inside", "called_before"])
def test_compiled_models_are_explained_as_their_eager_module(how: str) -> None:
    case = CASES["class_token"]
    model, x = case.model().double(), case.images().double()
    wanted = {method: explain(model, x, method, TARGETS) for method in METHODS}
    compiled: Any = model
    match how:
        case "blocks":
            for block in model.blocks:
                block.compile(backend="eager")
        case "in_place":
            model.compile(backend="eager")
        case "features":
            model.forward_features = torch.compile(model.forward_features, backend="eager")
        case "whole":
            compiled = torch.compile(model, backend="eager")
        case "block_inside":
            model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
        case "called_before":
            model.compile(backend="eager")
            model(x)
    for method in METHODS:
        assert_same(explain(compiled, x, method, TARGETS), wanted[method])


def test_the_mode_of_every_part_is_restored() -> None:
    model, x = CASES["class_token"].model(), CASES["class_token"].images()
    for part in (model.blocks[1], model.norm):
        part.train()
    modes = [part.training for part in model.modules()]
    seen: list[bool] = []
    model.blocks[1].mlp.register_forward_hook(lambda part, *_: seen.append(part.training))
    explain(model, x, "rollout")
    assert seen == [False]
    assert modes == [part.training for part in model.modules()]


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization is deprecated
        return torch.ao.quantization.quantize_dynamic(vit().eval(), {nn.Linear})


def test_quantized_models() -> None:
    case = CASES["class_token"]
    model, x = quantized(), case.images(1)
    explained = case.explained(model, x)
    with torch.no_grad():
        A = _weights(model, x)
    wanted = read_out(product([fuse(each, "mean") for each in A], "row"), explained)
    torch.testing.assert_close(explain(model, x, "rollout").flatten(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(explain(model, x, "raw_attention").flatten(), A[-1].mean(0)[0, 1:], rtol=1e-4, atol=1e-5)
    for method in (*METHODS[1:], "gradient", "integrated_gradients", "input_x_gradient"):
        with pytest.raises(UserError, match=r"\(Linear\w*\): (its output has no derivative|lrp has no rule)") as error:
            explain(model, x, method, torch.tensor([1]))
        assert "\n" not in str(error.value)


def _weights(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The attention weights of each block, computed explicitly."""
    explicit: Any = copy.deepcopy(model)
    weights: list[Tensor] = []
    for block in explicit.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, __, out: weights.append(out[0]))
    explicit(x)
    return weights


def test_a_gradient_lost_outside_of_modules_is_refused() -> None:
    model: Any = CASES["class_token"].model()
    forward = model.forward
    model.forward = lambda x: forward(x).detach()
    for method in ("agcam", "grad_rollout", "gradcam", "gradient"):
        with pytest.raises(UserError, match="no derivative"):
            explain(model, CASES["class_token"].images(), method, TARGETS)


@pytest.mark.parametrize("method", ["agcam", "grad_rollout", "lrp", "gradient"])
@pytest.mark.parametrize("without", ["graph_of_block_0", "input_of_block_1"])
def test_blocks_that_no_gradient_reaches_are_refused(without: str, method: str) -> None:
    model: Any = CASES["class_token"].model()
    if without == "graph_of_block_0":
        model.blocks[0].forward = torch.no_grad()(model.blocks[0].forward)
    else:
        forward = model.blocks[1].forward
        model.blocks[1].forward = lambda x, **options: forward(x.detach(), **options)
    with pytest.raises(
        UserError, match=r"reaches the attention of blocks\.0|^blocks\.[01] \(Block\): .* no derivative"
    ):
        explain(model, CASES["class_token"].images(), method, TARGETS)


def test_threads_that_explain_one_model_in_half_precision() -> None:
    """Its weights are replaced by float32 copies for the time of an explanation."""
    case = CASES["class_token"]
    model, x = case.model().bfloat16(), case.images()
    expected = explain(model, x, "gradcam", targets=0)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: explain(model, x, "gradcam", targets=0), range(8)))
    assert all(torch.equal(maps, expected) for maps in found)
    assert all(weight.dtype == torch.bfloat16 for weight in model.parameters())
