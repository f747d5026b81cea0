"""Integrated gradients: the definition, step by step, and its axioms."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from explain import explain, integrated_gradients
from explain.explained_model import ExplainedModel
from explain.input_x_gradient import InputXGradient
from explain.integrated_gradients import IntegratedGradients, completeness_gap
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


class Waves(nn.Module):
    """y = sum of cos(rate x): fast waves need many points. A constant second output makes the difference of classes."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        y = (self.rate * x).cos().flatten(1).sum(1, keepdim=True)
        return torch.cat([y, torch.zeros_like(y)], 1)


def test_auto_takes_as_many_steps_as_each_image_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.stack([image * scale for image, scale in zip(images(3, (4, 4)), (0.1, 1.0, 3.0), strict=True)])
    explained, targets = bare(Waves(40.0)), torch.zeros(3, dtype=torch.long)
    asked: list[tuple[int, int]] = []
    plain = integrated_gradients.mean_gradient

    def watched(explained: ExplainedModel, images: Tensor, targets: Tensor, steps: int) -> Tensor:
        asked.append((len(images), steps))
        return plain(explained, images, targets, steps)

    monkeypatch.setattr(integrated_gradients, "mean_gradient", watched)
    maps = IntegratedGradients("auto", max_gap=1e-6).maps(explained, x, targets)
    assert asked == [(3, 32), (2, 64), (1, 128)]
    torch.testing.assert_close(maps, ((40 * x).cos() - 1).sum(1), rtol=1e-5, atol=1e-5)
    assert completeness_gap(explained, x, targets, maps).max() <= 1e-6


def test_auto_gives_up_with_a_warning() -> None:
    x, targets = 100 * images(1, (4, 4)), torch.zeros(1, dtype=torch.long)
    with pytest.warns(UserWarning, match="with 1024 steps: some maps do not sum to"):
        IntegratedGradients("auto").maps(bare(Waves(40.0)), x, targets)


def test_a_gap_is_measured_and_warned_of() -> None:
    x, targets = images(2, (4, 4)), torch.zeros(2, dtype=torch.long)
    explained = bare(Waves(40.0))
    with pytest.warns(UserWarning, match="with 8 steps: some maps do not sum .* within 5%.*; use steps=auto"):
        maps = IntegratedGradients(8).maps(explained, x, targets)
    difference = ((40 * x).cos() - 1).flatten(1).sum(1)
    expected = ((maps.flatten(1).sum(1) - difference) / difference).abs()
    torch.testing.assert_close(completeness_gap(explained, x, targets, maps), expected)
    assert expected.max() > 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        IntegratedGradients(8, max_gap=float(expected.max()) + 1e-9).maps(explained, x, targets)
        IntegratedGradients(8, absolute=True).maps(explained, x, targets)
        assert completeness_gap(explained, 0 * x, targets, 0 * maps).tolist() == [0, 0]


@pytest.mark.parametrize("soft", [False, True])
def test_auto_explains_some_images_of_a_two_stage_batch_with_their_own_masks(soft: bool) -> None:
    model, x = two_stage(mask_kind="soft" if soft else "hard").double(), 3 * images()
    together = explain(model, x, "integrated_gradients", steps="auto", max_gap=1e-9)
    alone = [explain(model, image[None], "integrated_gradients", steps="auto", max_gap=1e-9) for image in x]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("steps", [0, 2.5, "many", True])
def test_a_number_of_steps_that_is_none(steps: Any) -> None:
    with pytest.raises(UserError, match=f"--steps: {steps!r}"):
        explain(classifier(), images(), "integrated_gradients", steps=steps)


def test_a_largest_gap_that_is_none() -> None:
    with pytest.raises(UserError, match="--max-gap: 0"):
        explain(classifier(), images(), "integrated_gradients", max_gap=0)
