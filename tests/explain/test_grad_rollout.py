"""Gradient rollout against its slow textbook form, the published quirks and known values."""

from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from explain import explain
from explain.attention_capture import AttentionCapture
from explain.grad_rollout import GradRollout
from tests.explain.small import CASES, NO_TOKEN, STAGES, TIMM, vit
from tests.explain.test_rollout import assert_known, known_capture, known_explained
from tests.explain.textbook import dropped, explicit_layers, fuse, product, read_out
from tests.models.small import images

TARGETS = torch.tensor([4, 1])


@pytest.mark.parametrize(
    ("ratio", "numbers"),
    [(0.0, (1, 0.136007, 0.069127, 0.02681)), (0.5, (1, 0.135517, 0.068878, 0.026714))],
)
def test_known_values_with_the_gradients_reversed(ratio: float, numbers: tuple[float, ...]) -> None:
    method = GradRollout(discard_ratio=ratio, compat="vit-explain")
    assert_known(method.maps_from(known_capture(), *known_explained()), *numbers)


@pytest.mark.parametrize(
    ("ratio", "numbers"),
    [(0.0, (1, 0.83972, 0.268175, 0.122378)), (0.5, (1, 0.839226, 0.268017, 0.122306))],
)
def test_known_values_with_the_gradients_in_order(ratio: float, numbers: tuple[float, ...]) -> None:
    capture: Any = known_capture()
    first, last = capture.attentions
    first.gradient, last.gradient = last.gradient, first.gradient
    method = GradRollout(discard_ratio=ratio, compat="vit-explain")
    assert_known(method.maps_from(AttentionCapture([first, last]), *known_explained()), *numbers)


@pytest.mark.parametrize("name", [*TIMM, *STAGES])
@pytest.mark.parametrize("options", [{}, {"head_fusion": "max", "discard_ratio": 0.4}])
def test_equals_the_textbook(name: str, options: dict[str, Any]) -> None:
    case = CASES[name]
    model, x = case.model(), case.images(2)
    maps = explain(model, x, "grad_rollout", TARGETS, stage=case.stage, **options)
    for image, target in enumerate(TARGETS.tolist()):
        explained = case.explained(model, x[[image]])
        layers = explicit_layers(explained, x[[image]], target)
        fused = [fuse(layer.A * layer.G, options.get("head_fusion", "mean")).clamp(min=0) for layer in layers]
        fused = [dropped(F, options.get("discard_ratio", 0), keep_first=False) for F in fused]
        wanted = read_out(product(fused, "row") - torch.eye(len(fused[0])), explained)
        torch.testing.assert_close(maps[image].flatten(), wanted, rtol=1e-4, atol=1e-6)


def test_float32_tells_patches_apart_where_the_classifier_averages_them() -> None:
    """The gradients are far below the 1 / N of the identity, which float32 cannot add to them."""
    torch.manual_seed(0)
    model, x = vit(**NO_TOKEN, global_pool="avg", img_size=96).eval(), images(1, (96, 96))  # 144 patches
    with torch.no_grad():
        model.head.weight.mul_(1e-4)
    maps = explain(model, x, "grad_rollout", TARGETS[:1])
    model, x = model.double(), x.double()
    layers = explicit_layers(CASES["gap"].explained(model, x), x, int(TARGETS[0]))
    fused = [fuse(layer.A * layer.G, "mean").clamp(min=0) for layer in layers]
    wanted = (product(fused, "row") - torch.eye(144)).mean(0)
    assert len(maps.unique()) == 144
    torch.testing.assert_close(maps.flatten().double(), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_published_form(ratio: float | None) -> None:
    case = CASES["class_token"]
    model, x = case.model(), case.images(1)
    explained = case.explained(model, x)
    layers = explicit_layers(explained, x, 2)
    fused = [fuse(a.A * b.E, "mean").clamp(min=0) for a, b in zip(layers, reversed(layers), strict=True)]
    wanted: Tensor = read_out(
        product([dropped(F, 0.9 if ratio is None else ratio, keep_first=False) for F in fused], "column"), explained
    )
    maps = explain(model, x, "grad_rollout", torch.tensor([2]), compat="vit-explain", discard_ratio=ratio)
    torch.testing.assert_close(maps.flatten(), wanted / wanted.max(), rtol=1e-4, atol=1e-6)


def test_refused_options() -> None:
    with pytest.raises(UserError, match="--head-fusion"):
        GradRollout(head_fusion="sum")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--discard-ratio"):
        GradRollout(discard_ratio=2)
