"""Integrated gradients: the definition, step by step, and its axioms."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from explain import explain, integrated_gradients
from explain.input_x_gradient import InputXGradient
from explain.integrated_gradients import IntegratedGradients
from tests.explain.classifiers import bare, classifier, images, two_stage


def gradient(model: nn.Module, image: Tensor, target: int) -> Tensor:
    leaf = image[None].clone().requires_grad_()
    (result,) = torch.autograd.grad(model(leaf)[0, target], leaf)
    return result[0]


def textbook(model: nn.Module, image: Tensor, target: int, steps: int) -> Tensor:
    """[3, H, W] by the midpoint rule."""
    total = torch.zeros_like(image)
    for step in range(steps):
        total += gradient(model, (step + 0.5) / steps * image, target) / steps
    return image * total


def test_it_is_the_integral() -> None:
    vit, x = classifier(), 0.3 * images(2)
    expected = torch.stack([textbook(vit, image, 1, 500) for image in x])
    targets = torch.tensor([1, 1])
    close = {"rtol": 0, "atol": 1e-4 * float(expected.abs().max())}
    torch.testing.assert_close(explain(vit, x, "integrated_gradients", targets, steps=64), expected.sum(1), **close)
    torch.testing.assert_close(
        explain(vit, x, "integrated_gradients", targets, steps=64, absolute=True), expected.abs().sum(1), **close
    )


def test_gauss_legendre_step_by_step() -> None:
    """captum's default rule: sum_s w_s dy/dx(a_s x) times x."""
    vit, x = classifier(), images(2)
    nodes, weights = np.polynomial.legendre.leggauss(6)
    for i in range(2):
        total = sum(0.5 * w * gradient(vit, 0.5 * (1 + a) * x[i], 3) for a, w in zip(nodes, weights, strict=True))
        maps = explain(vit, x, "integrated_gradients", torch.tensor([3, 3]), steps=6)
        torch.testing.assert_close(maps[i], (x[i] * total).sum(0))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_completeness(stage: Any) -> None:
    """The pixels add up to y(x) - y(mean colour), the selection of stage 2 held fixed."""
    x, targets = 0.3 * images().float(), torch.tensor([0, 1, 2])
    model: Any = two_stage() if stage else classifier().float()
    maps = explain(model, x, "integrated_gradients", targets, stage=stage or 2, steps=96)
    score = {
        0: lambda at: model(at),
        1: lambda at: model.select(at).class_logits,
        2: lambda at: model.predict(at, model.select(x).selection),
    }[stage]
    difference = (score(x) - score(torch.zeros_like(x)))[range(3), targets]
    torch.testing.assert_close(maps.sum((1, 2)), difference.detach(), rtol=1e-4, atol=1e-5)


class Polynomial(nn.Module):
    """y = sum of x^power: its integral is x^power exactly."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return (x**self.power).flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_exact_for_polynomials(steps: int) -> None:
    x, power = images(2, (4, 4)), 2 * steps
    maps = IntegratedGradients(steps).maps(bare(Polynomial(power)), x, None)
    torch.testing.assert_close(maps, (x**power).sum(1))
    too_high = IntegratedGradients(steps).maps(bare(Polynomial(power + 1)), x, None)
    assert not torch.allclose(too_high, (x ** (power + 1)).sum(1))


def test_a_linear_model_gives_input_x_gradient() -> None:
    explained, x = bare(nn.Sequential(nn.Flatten(), nn.Linear(48, 5).double())), images(size=(4, 4))
    torch.testing.assert_close(
        IntegratedGradients().maps(explained, x, None), InputXGradient().maps(explained, x, None)
    )


@pytest.mark.parametrize("model", [classifier().float(), two_stage(), two_stage(mask_kind="soft")])
@pytest.mark.parametrize("images_at_once", [1, 7, 1000])
def test_steps_taken_together_change_nothing(
    model: nn.Module, images_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = images().float()
    expected = explain(model, x, "integrated_gradients", steps=5)
    monkeypatch.setattr(integrated_gradients, "IMAGES_AT_ONCE", images_at_once)
    torch.testing.assert_close(explain(model, x, "integrated_gradients", steps=5), expected)


def test_too_few_steps() -> None:
    with pytest.raises(UserError, match="--steps: 0"):
        explain(classifier(), images(), "integrated_gradients", steps=0)
