"""`targets` of ViTs without classifier: an index, a direction or an image, against finite differences and autograd."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import UserError
from explain import METHODS, explain
from explain.vits import attention_pooling
from tests.explain.small import CASES, NO_TOKEN, eva, vit
from tests.explain.textbook import Softmaxes, product, sdpa_modules
from tests.models.small import eva_t_dinov3, shaken

torch.manual_seed(0)
MODELS: dict[str, Any] = {
    "dino": shaken(vit(num_classes=0)).double().eval(),
    "dinov3": shaken(eva(eva_t_dinov3, num_classes=0, global_pool="avg")).double().eval(),
    "siglip": shaken(vit(**NO_TOKEN, num_classes=0, global_pool="map")).double().eval(),
}
x, other = CASES["class_token"].images(5).double().split([3, 2])
WIDTH = 32
direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def score(model: Any, images: Tensor, kind: str) -> Tensor:
    """y [B] as it is defined."""
    f = model(images)
    if kind == "index":
        y: Tensor = f[:, 7]
    elif kind == "direction":
        y = (f * direction).sum(1)
    else:
        r = model(other[:1])
        y = (f * r).sum(1) / (f.square().sum(1) * r.square().sum(1)).sqrt()
    return y


TARGETS: dict[str, Any] = {"index": 7, "direction": direction, "image": other[:1]}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_features(name: str, kind: str) -> None:
    model = MODELS[name]
    maps = explain(model, x, "input_x_gradient", TARGETS[kind])
    image = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(score(model, image, kind).sum(), image)
    torch.testing.assert_close(maps, (x * wanted).sum(1))
    for b, i, j in ((0, 3, 4), (2, 17, 30)):  # x dy/dx by central differences
        step = torch.zeros_like(x)
        step[b, :, i, j] = 1e-4 * x[b, :, i, j]
        with torch.no_grad():
            slope = (score(model, x + step, kind) - score(model, x - step, kind))[b] / 2e-4
        torch.testing.assert_close(maps[b, i, j], slope, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].class_specific])
def test_every_method_takes_a_direction_as_the_head_it_is(method: str) -> None:
    """A classifier whose only class is the direction has the same maps."""
    headless = MODELS["dino"]
    classifier = vit(num_classes=1).double().eval()
    classifier.load_state_dict(
        {**headless.state_dict(), "head.weight": direction[None], "head.bias": direction.new_zeros(1)}
    )
    found = explain(headless, x, method, direction)
    torch.testing.assert_close(found, explain(classifier, x, method, 0), rtol=1e-7, atol=1e-14)
    each = torch.stack([direction, direction.roll(1), direction])
    torch.testing.assert_close(explain(headless, x, method, each)[::2], found[::2])
    assert not torch.allclose(explain(headless, x, method, each)[1], found[1])


def test_attention_is_read_where_the_features_are_pooled() -> None:
    """DINOv3 alone is read at its class token; features of global_pool=avg, at the patches."""
    model = MODELS["dinov3"]
    pooled = eva(eva_t_dinov3, num_classes=WIDTH, global_pool="avg").double().eval()
    weights = {"head.weight": torch.eye(WIDTH).double(), "head.bias": torch.zeros(WIDTH).double()}
    pooled.load_state_dict({**model.state_dict(), **weights})
    for method in ("agcam", "grad_rollout"):
        torch.testing.assert_close(explain(model, x, method, [1, 2, 3]), explain(pooled, x, method, [1, 2, 3]))
    assert not torch.allclose(explain(model, x, "rollout", 3), explain(pooled, x, "rollout", 3))
    assert torch.equal(explain(model, x, "rollout", 3), explain(model, x, "rollout"))


def test_grad_rollout_of_a_cosine() -> None:
    """Explicit attention: autograd through A of every block."""
    model = MODELS["dino"]
    found = explain(model, x, "grad_rollout", other[:1])
    explicit = copy.deepcopy(model)
    for part in sdpa_modules(explicit):
        part.fused_attn = False  # type: ignore[assignment]
    for i in range(3):
        with Softmaxes() as softmaxes:
            y = score(explicit, x[[i]].requires_grad_(), "image")
        A = [weights for _, weights in softmaxes.found[:3]]  # then those of the image to compare with
        gradients = torch.autograd.grad(y, A)
        blocks = [(a[0] * g[0]).mean(0).clamp(min=0).detach() for a, g in zip(A, gradients, strict=True)]
        torch.testing.assert_close(found[i], product(blocks, "row")[0, 1:].view(4, 4))


def test_relevance_of_a_cosine_is_that_of_its_direction() -> None:
    """Dividing features by their length passes relevance on, as norms do."""
    model = MODELS["dino"]
    unit = torch.nn.functional.normalize(model(other[:1]).detach(), dim=1)[0]
    found, wanted = (explain(model, x, "lrp", target, variant="last_layer") for target in (other[:1], unit))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-12)
    assert explain(model, x, "lrp", other[:1]).abs().max() > 0


def test_each_image_has_its_own() -> None:
    model = MODELS["siglip"]
    assert attention_pooling(model) is not None
    both = explain(model, x[:2], "gradient", other)
    for i in range(2):
        torch.testing.assert_close(both[[i]], explain(model, x[[i]], "gradient", other[[i]]))
    auto = explain(model, x[:2], "integrated_gradients", other, steps="auto", max_gap=1e-6)
    for i in range(2):
        alone = explain(model, x[[i]], "integrated_gradients", other[[i]], steps="auto", max_gap=1e-6)
        torch.testing.assert_close(auto[[i]], alone)


def test_what_cannot_be_a_target_is_one_line() -> None:
    model = MODELS["dino"]
    cases: dict[str, Any] = {
        r"no class to explain; give targets \(a feature's index, a direction or an image": None,
        r"targets: 32; the model has features 0 to 31": 32,
        r"targets: shape \(2,\) for 3 images": [1, 2],
        r"floats of shape \(31,\); without a classifier, give a feature's index, a direction of 32": direction[:31],
        r"targets: 2 directions for 3 images; give one, or one per image": direction.expand(2, -1),
        r"targets: 2 images to compare with for 3 images": other,
        r"finite features that are not all 0": np.zeros(WIDTH),
        r"32 x 16 pixels; this model takes": other[..., :16],
        r"names of this model's classes are not known": "tabby",
        r"the model has features 0 to 31": -1,
    }
    for why, targets in cases.items():
        with pytest.raises(UserError, match=why) as error:
            explain(model, x, "gradient", targets)
        assert "\n" not in str(error.value)
    tokens = vit(num_classes=0, global_pool="").double().eval()
    with pytest.raises(UserError, match="this ViT does not pool its tokens"):
        explain(tokens, x, "gradient", 3)
