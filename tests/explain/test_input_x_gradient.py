"""Input x gradient, and what all methods on pixels share."""

from typing import Any

import pytest
import torch
from torch import nn

from explain import explain
from explain.input_x_gradient import InputXGradient
from tests.explain.classifiers import bare, classifier, images, two_stage

PIXEL_METHODS = ("input_x_gradient", "gradient", "guided_backprop", "integrated_gradients")


def test_parity() -> None:
    vit, x, targets = classifier(reg_tokens=2), images(), [1, 4, 0]
    expected = torch.zeros(3, 32, 32, dtype=torch.float64)
    for i, target in enumerate(targets):
        leaf = x[i : i + 1].clone().requires_grad_()
        vit(leaf)[0, target].backward()
        assert leaf.grad is not None
        for channel in range(3):
            expected[i] += x[i, channel] * leaf.grad[0, channel]
    torch.testing.assert_close(explain(vit, x, "input_x_gradient", torch.tensor(targets)), expected)


def test_the_plain_gradient_is_its_magnitude_over_channels() -> None:
    vit, x, targets = classifier(reg_tokens=2), images(), [1, 4, 0]
    leaf = x.clone().requires_grad_()
    vit(leaf)[range(3), targets].sum().backward()
    assert leaf.grad is not None
    expected = leaf.grad[:, 0].abs() + leaf.grad[:, 1].abs() + leaf.grad[:, 2].abs()
    torch.testing.assert_close(explain(vit, x, "gradient", torch.tensor(targets)), expected)


def test_a_linear_model_is_explained_whole() -> None:
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(48, 5).double()), images(size=(4, 4))
    maps = InputXGradient().maps(bare(model), x, torch.tensor([1, 2, 3]))
    expected = model(x)[range(3), [1, 2, 3]] - model[1].bias[1:4]
    torch.testing.assert_close(maps.sum((1, 2)), expected)


@pytest.mark.parametrize("method", PIXEL_METHODS)
def test_hidden_pixels_count_nothing_in_stage_2(method: str) -> None:
    model, x = two_stage(), images().float()
    hidden = ~model.select(x).selection.mask.repeat_interleave(8, 1).repeat_interleave(8, 2)
    maps = explain(model, x, method)
    assert 0 < hidden.double().mean() < 1
    assert (maps[hidden] == 0).all() and (maps[~hidden] != 0).any()
    assert (explain(model, x, method, stage=1)[hidden] != 0).any()


@pytest.mark.parametrize("method", PIXEL_METHODS)
@pytest.mark.parametrize("settings", [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 4}])
def test_batch_is_single_and_nothing_is_left(method: str, settings: dict[str, Any]) -> None:
    vit, x = classifier(img_size=(32, 48), **settings).requires_grad_(False), images(size=(32, 48))
    with torch.no_grad():
        batch = explain(vit, x, method)
        single = torch.cat([explain(vit, image[None], method) for image in x])
    assert batch.shape == (3, 32, 48)
    torch.testing.assert_close(batch, single)
    assert not x.requires_grad and x.grad is None and not batch.requires_grad


@pytest.mark.parametrize("method", PIXEL_METHODS)
def test_predicted_class_is_the_default(method: str) -> None:
    vit, x = classifier(), images()
    predicted = vit(x).argmax(1)
    assert torch.equal(explain(vit, x, method), explain(vit, x, method, predicted))
    assert not torch.allclose(explain(vit, x, method), explain(vit, x, method, (predicted + 1) % 5))


@pytest.mark.parametrize("method", PIXEL_METHODS)
def test_half_precision_gives_float32(method: str) -> None:
    vit, x, targets = classifier(), images(), torch.tensor([0, 1, 2])
    maps = explain(vit.bfloat16(), x.bfloat16(), method, targets)
    exact = explain(vit.double(), x, method, targets)
    assert maps.dtype == torch.float32
    assert torch.corrcoef(torch.stack([maps.flatten(), exact.flatten().float()]))[0, 1] > 0.9
