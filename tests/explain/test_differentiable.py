"""Differentiable maps have the values of `explain`, and derivatives that match finite differences of `explain`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from explain import METHODS, Explainer, build_method, explain
from explain.differentiable import differentiable_maps, predicted_classes
from explain.guided_backprop import GuidedBackprop
from models.cnn import Cnn
from models.config import ModelConfig
from tests.explain.classifiers import bare
from tests.explain.small import CASES, Case
from tests.models.small import shaken

ON_VITS = tuple(name for name in METHODS if METHODS[name].keeps_graph and name != "inherent")
ON_CNNS = ("gradcam", "gradient", "guided_backprop", "input_x_gradient", "integrated_gradients")
OPTIONS: dict[str, dict[str, Any]] = {"gradcam": {"relu": False}, "integrated_gradients": {"steps": 3}}
TARGETS = torch.tensor([4, 0])


def method(name: str) -> Explainer:
    return build_method(name, **OPTIONS.get(name, {}))


def cnn(backbone: str = "test_resnet") -> Cnn:
    """With BatchNorm statistics as after some training."""
    torch.manual_seed(0)
    model = Cnn(ModelConfig(name="cnn", backbone=backbone, weights="none"), 5, (64, 64))
    for name, t in model.named_buffers():
        if t.is_floating_point():
            t.copy_(0.5 + torch.rand(t.shape) if "var" in name else 0.1 * torch.randn(t.shape))
    with torch.no_grad():
        model.head.weight.normal_()
    return model.eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "class_token": CASES["class_token"].model,
    "dino": CASES["dino"].model,
    "gap": CASES["gap"].model,
    "cnn": cnn,
}
CASES_HERE = [(model, name) for model in MODELS for name in (ON_CNNS if model == "cnn" else ON_VITS)]
every_case = pytest.mark.parametrize(("model", "name"), CASES_HERE)


def images_for(model: str, batch: int = 2) -> Tensor:
    case = Case(cnn, (64, 64)) if model == "cnn" else CASES[model]
    return case.images(batch).double()


def drawn(like: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)


def step_of(model: str) -> float:
    """So small that, of a ReLU network's many kinks, none is stepped over."""
    return 1e-8 if model == "cnn" else 1e-6


@every_case
def test_the_numbers_are_those_of_explain(model: str, name: str) -> None:
    module, x = MODELS[model]().double(), images_for(model)
    maps = differentiable_maps(module, x, method(name), TARGETS)
    assert maps.requires_grad and float(maps.detach().abs().max()) > 0
    expected = explain(module, x, method(name), TARGETS)
    torch.testing.assert_close(maps.detach(), expected, rtol=1e-9, atol=1e-12)
    alone = torch.cat([differentiable_maps(module, x[[i]], method(name), TARGETS[[i]]) for i in range(2)])
    torch.testing.assert_close(maps, alone, rtol=1e-9, atol=1e-12)


@every_case
def test_derivatives_by_weights_are_finite_differences(model: str, name: str) -> None:
    """Along one random direction in the space of all weights, against `explain`, which has no graph to get wrong."""
    module, x = MODELS[model]().double(), images_for(model)
    maps = differentiable_maps(module, x, method(name), TARGETS)
    weights = drawn(maps)
    parameters = list(module.parameters())
    gradients = torch.autograd.grad((maps * weights).sum(), parameters, materialize_grads=True)
    direction = [drawn(p, seed) * p.detach().abs().mean() for seed, p in enumerate(parameters)]
    slope = sum(float((gradient * step).sum()) for gradient, step in zip(gradients, direction, strict=True))

    def at(distance: float) -> float:
        with torch.no_grad():
            for p, step in zip(parameters, direction, strict=True):
                p.add_(step, alpha=distance)
        return float((explain(module, x, method(name), TARGETS) * weights).sum())

    step = step_of(model)
    there, back = at(step), at(-2 * step)
    assert slope == pytest.approx((there - back) / (2 * step), rel=1e-4)
    assert slope != 0


@every_case
def test_derivatives_by_pixels_are_finite_differences(model: str, name: str) -> None:
    module, x = MODELS[model]().double().requires_grad_(False), images_for(model)
    direction, seen = drawn(x, 1), x.clone().requires_grad_()
    maps = differentiable_maps(module, seen, method(name), TARGETS)
    weights = drawn(maps)
    (gradient,) = torch.autograd.grad((maps * weights).sum(), seen)

    def at(distance: float) -> Tensor:
        return (explain(module, x + distance * direction, method(name), TARGETS) * weights).sum()

    step = step_of(model)
    expected = float(at(step) - at(-step)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["gradcam", "guided_backprop"])
def test_gradcheck(name: str) -> None:
    module, x = MODELS["class_token"]().double(), images_for("class_token", 1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda images: differentiable_maps(module, images, method(name), TARGETS[:1]), (x,), fast_mode=True
    )


def test_nearly_every_weight_of_a_vit_learns_from_gradcam() -> None:
    """All but the head's bias, which has no gradient, and biases that a mean over keys or classes cancels."""
    module, x = MODELS["class_token"](), images_for("class_token").float()
    differentiable_maps(module, x, method("gradcam"), TARGETS).square().sum().backward()
    without = [name for name, p in module.named_parameters() if p.grad is None]
    assert set(without) <= {"head.bias", "norm.bias"}


def test_dropout_and_batch_statistics_have_no_effect() -> None:
    module, x = cnn().train(), images_for("cnn").float()
    module.backbone.drop_rate = 0.5  # type: ignore[assignment]
    before = {name: t.clone() for name, t in module.state_dict().items()}
    first, second = (differentiable_maps(module, x, method("gradcam")) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    assert all(part.training for part in module.modules()) and all(p.requires_grad for p in module.parameters())


def test_fused_attention_is_off_for_the_map_alone() -> None:
    module, x = MODELS["class_token"](), images_for("class_token").float()
    with torch.no_grad():  # as in evaluation
        maps = differentiable_maps(module, x, method("gradcam"))
    maps.square().sum().backward()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.parametrize("name", ["gradcam", "guided_backprop"])
def test_full_precision_under_autocast(name: str) -> None:
    module, x = MODELS["class_token"](), images_for("class_token").float()
    expected = differentiable_maps(module, x, method(name))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = differentiable_maps(module, x, method(name))
    assert maps.dtype == torch.float32 and torch.equal(maps, expected)


def test_a_frozen_start_leaves_the_rest_trainable() -> None:
    module, x = MODELS["class_token"](), images_for("class_token").float()
    module.requires_grad_(False)
    head: Any = module.get_submodule("head")
    head.requires_grad_(True)
    maps = differentiable_maps(module, x, method("gradcam"), TARGETS)
    maps.square().sum().backward()
    assert float(head.weight.grad.abs().max()) > 0


def test_guided_backprop_does_not_affect_later_derivatives() -> None:
    """The derivative of the map goes back through the forward pass: through plain activations."""
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.GELU(), nn.Linear(4, 2)).double(), torch.randn(1, 12)
    images = x.double().view(1, 3, 2, 2)
    explained = replace(bare(model), graph=True)
    maps = GuidedBackprop().maps(explained, images, torch.tensor([0]))
    weight: Any = model[1].weight
    (gradient,) = torch.autograd.grad(maps.sum(), weight)

    def at(distance: float) -> Tensor:
        with torch.no_grad():
            weight[0, 0] += distance
        result = GuidedBackprop().maps(bare(model), images, torch.tensor([0])).sum()
        with torch.no_grad():
            weight[0, 0] -= distance
        return result

    assert float(gradient[0, 0]) == pytest.approx(float(at(1e-6) - at(-1e-6)) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("what", ["foreground", "selected"])
def test_the_own_map_of_a_two_stage_model_reaches_stage_1(what: str) -> None:
    case = CASES["stage_2"]
    module, x = case.model(), case.images()
    maps = differentiable_maps(module, x, build_method("inherent", what=what))
    torch.testing.assert_close(maps, explain(module, x, "inherent", what=what))
    maps.square().sum().backward()
    reached = {name.split(".")[0] for name, p in module.named_parameters() if p.grad is not None}
    assert reached == {"stage_1"}
    module.zero_grad()
    differentiable_maps(module, x, method("gradcam")).square().sum().backward()
    reached = {name.split(".")[0] for name, p in module.named_parameters() if p.grad is not None}
    assert reached == {"stage_2"}  # the mask is hard: nothing of stage 1 is in it


def test_predicted_classes_are_the_models() -> None:
    module, x = MODELS["class_token"]().train(), images_for("class_token", 3).float()
    classes = predicted_classes(module, x)
    assert torch.equal(classes, module.eval()(x).argmax(1)) and not classes.requires_grad


def test_a_method_without_a_graph_is_refused() -> None:
    with pytest.raises(UserError, match="Rollout: its maps cannot be differentiated; those of agcam"):
        differentiable_maps(MODELS["class_token"](), images_for("class_token"), build_method("rollout"))


def test_a_module_can_be_named() -> None:
    module, x = cnn(), images_for("cnn").float()
    assert explain(module, x, "gradcam").shape == (2, 2, 2)
    assert explain(module, x, "gradcam", module="layer2").shape == (2, 8, 8)
    vit = shaken(CASES["class_token"].model())
    small = images_for("class_token").float()
    torch.testing.assert_close(
        explain(vit, small, "gradcam", module="blocks.1.norm1"), explain(vit, small, "gradcam", layer=1)
    )
    with pytest.raises(UserError, match=r"--module: a ResNet has no 'layer9'; nearest: layer\d"):
        explain(module, x, "gradcam", module="layer9")
    with pytest.raises(UserError, match="--method: a ResNet is not a ViT whose attention"):
        explain(module, x, "rollout")
