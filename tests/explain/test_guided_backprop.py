"""Guided backpropagation against modules with a hand-written backward, and where it must equal the plain gradient."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import SwiGLUPacked
from timm.layers.activations import QuickGELU
from torch import Tensor, nn

from common.errors import UserError
from explain import explain
from explain.guided_backprop import GuidedBackprop
from tests.explain.classifiers import bare, classifier, images


class GuidedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(ctx.function(leaf).sum(), leaf)
        return torch.where((x > 0) & (gradient > 0), gradient * slope, 0), None


class GuidedModule(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return GuidedFunction.apply(x, self.function)


def gradient(model: nn.Module, x: Tensor, target: int) -> Tensor:
    leaf = x.clone().requires_grad_()
    (result,) = torch.autograd.grad(model(leaf)[:, target].sum(), leaf)
    return result


@pytest.mark.parametrize(
    ("settings", "function"),
    [
        ({}, F.gelu),
        ({"act_layer": nn.ReLU}, F.relu),
        ({"act_layer": "relu"}, F.relu),
        ({"act_layer": nn.SiLU}, F.silu),
        ({"act_layer": nn.Hardswish}, F.hardswish),
        ({"act_layer": nn.ReLU6}, F.relu6),
        ({"act_layer": nn.LeakyReLU}, F.leaky_relu),
        ({"act_layer": "gelu_tanh"}, lambda x: F.gelu(x, approximate="tanh")),
        ({"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}, F.silu),
    ],
)
def test_parity(settings: dict[str, Any], function: Any) -> None:
    vit, x = classifier(**settings), images()
    maps = explain(vit, x, "guided_backprop", torch.tensor([2, 2, 2]))
    plain = gradient(vit, x, 2).abs().sum(1)
    for block in vit.blocks:
        block.mlp.act = GuidedModule(function)
    torch.testing.assert_close(maps, gradient(vit, x, 2).abs().sum(1))
    assert not torch.allclose(maps, plain)


def mlp(sign: float, activation: nn.Module) -> nn.Module:
    """All paths positive, but for the last layer's sign."""
    layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), activation, nn.Linear(8, 5)).double()
    with torch.no_grad():
        for p in layers.parameters():
            p.abs_()
        layers[3].weight.mul_(sign)
    return layers


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(inplace=True)])
def test_positive_paths_are_the_plain_gradient(activation: nn.Module) -> None:
    x = images(size=(4, 4)).abs()
    for sign, fraction in ((1, 1), (-1, 0)):
        model = mlp(sign, activation)
        maps = GuidedBackprop().maps(bare(model), x, torch.tensor([0, 0, 0]))
        plain = gradient(model, x, 0).abs().sum(1)
        assert (plain > 0).all()
        torch.testing.assert_close(maps, fraction * plain)


def test_only_positive_inputs_pass() -> None:
    model = mlp(1, nn.GELU())
    x = -images(size=(4, 4)).abs()
    assert (gradient(model, x, 0) != 0).any()
    with torch.no_grad():
        model[1].bias.zero_()  # type: ignore[index, union-attr, operator]
    assert (GuidedBackprop().maps(bare(model), x, None) == 0).all()


@pytest.mark.parametrize("gate", [nn.Sigmoid(), nn.Hardsigmoid(), nn.Softmax(-1), nn.Tanh()])
def test_gates_keep_their_gradient(gate: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), gate, nn.Linear(8, 5)).double()
    x = images(size=(4, 4))
    maps = GuidedBackprop().maps(bare(model), x, torch.tensor([0, 0, 0]))
    torch.testing.assert_close(maps, gradient(model, x, 0).abs().sum(1))


def test_an_unknown_activation_is_named_before_any_work() -> None:
    vit = classifier(act_layer=QuickGELU)
    with pytest.raises(UserError, match=r"blocks\.0\.mlp\.act: .* no rule for QuickGELU"):
        explain(vit, images(), "guided_backprop")
