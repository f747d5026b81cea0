"""The consistency loss against its formulas in plain loops, one image at a time."""

import copy
import math
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from engine.training import consistency as engine_consistency
from engine.training.consistency import Consistency
from explain import METHODS, explain
from losses import matching
from losses.config import ConsistencyConfig, ConsistencyMethod
from losses.matching import ResolutionMatch
from models.cnn import Cnn
from models.config import ModelConfig
from tests.explain.small import CASES

LAYER = "layer3"
MATCHES = ("enlarge", "shrink", "mask_by_second", "mask_by_first")
SIMILARITIES = ("correlation", "convolution", "ssim")


def cnn(backbone: str = "test_resnet") -> Cnn:
    torch.manual_seed(0)
    model = Cnn(ModelConfig(name="cnn", backbone=backbone, weights="none"), 4, (64, 64)).double()
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if "bn" in name and "running" not in name and t.is_floating_point():
                t.uniform_(0.5, 1.5)
        model.head.weight.normal_()
    return model.train()


def random_images(batch: int = 2, side: int = 64) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class GuidedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x > 0) * (gradient > 0)


class GuidedReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return GuidedFunction.apply(x)


def guided(model: nn.Module) -> nn.Module:
    """A second model that shares the parameters, with every ReLU replaced."""
    parameters = {id(p): p for p in model.parameters()}
    twin = copy.deepcopy(model, memo=dict(parameters))
    for part in twin.modules():
        for name, child in part.named_children():
            if isinstance(child, nn.ReLU):
                setattr(part, name, GuidedReLU())
    return twin


def grad_cam(model: Any, image: Tensor, label: int) -> Tensor:
    kept: list[Tensor] = []
    handle = model.backbone.get_submodule(LAYER).register_forward_hook(lambda _, __, out: kept.append(out))
    score = model(image[None]).logits[0, label]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0], create_graph=True)
    channels = range(kept[0].shape[1])
    return torch.stack([gradient[0, k].mean() * kept[0][0, k] for k in channels]).sum(0)


def guided_backprop(model: nn.Module, image: Tensor, label: int) -> Tensor:
    leaf = image if image.requires_grad else image.clone().requires_grad_()
    score = guided(model)(leaf[None]).logits[0, label]
    (gradient,) = torch.autograd.grad(score, leaf, create_graph=True)
    return gradient[0].abs() + gradient[1].abs() + gradient[2].abs()


def upsampled(k: Tensor, side: int) -> Tensor:
    return F.interpolate(k[None, None], size=(side, side), mode="bilinear", align_corners=True)[0, 0]


def logistic(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def mask(m: Tensor, omega: float) -> Tensor:
    return logistic(omega * (m - (m.mean() + 0.5 * m.std())))


def pair(model: nn.Module, image: Tensor, match: str, omega: float) -> tuple[Tensor, Tensor]:
    label = int(model(image[None]).logits[0].argmax())
    k, q, side = grad_cam(model, image, label), guided_backprop(model, image, label), image.shape[-1]
    if match == "enlarge":
        return upsampled(k, side), q
    if match == "shrink":
        return k, F.avg_pool2d(q[None, None], side // k.shape[0])[0, 0]
    if match == "mask_by_second":
        return k, grad_cam(model, torch.stack([mask(q, omega) * channel for channel in image]), label)
    t = mask(upsampled(k, side), 32)
    return q, guided_backprop(model, torch.stack([t * channel for channel in image]), label)


def loss(u: Tensor, v: Tensor, similarity: str) -> Tensor:
    u, v = ((m - m.mean()) / m.std() for m in (u, v))
    if similarity == "convolution":
        return -(logistic(u) * logistic(v)).sum().abs()
    if similarity == "correlation":
        a, b = logistic(u) - logistic(u).mean(), logistic(v) - logistic(v).mean()
        return -(a * b).sum() / ((a**2).sum() * (b**2).sum()) ** 0.5
    bell = torch.tensor([math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)], dtype=u.dtype)
    window = (bell[:, None] * bell / (bell[:, None] * bell).sum())[None, None]

    def local(x: Tensor) -> Tensor:
        return F.conv2d(x[None, None], window, padding=5)[0, 0]

    mu, mv = local(u), local(v)
    variance_u, variance_v, covariance = local(u * u) - mu**2, local(v * v) - mv**2, local(u * v) - mu * mv
    top = (2 * mu * mv + 0.01**2) * (2 * covariance + 0.03**2)
    return 1 - (top / ((mu**2 + mv**2 + 0.01**2) * (variance_u + variance_v + 0.03**2))).mean()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("match", MATCHES)
def test_values_and_weight_gradients_match_the_textbook(match: Any, similarity: Any) -> None:
    model, images = cnn(), random_images()
    config = ConsistencyConfig(resolution_match=match, similarity=similarity, mask_intensity=8, layer=LAYER)
    found = Consistency(config)(model, images)
    model.eval()
    expected = torch.stack([loss(*pair(model, image, match, 8), similarity) for image in images])
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)

    parameters = list(model.parameters())
    of_found = torch.autograd.grad(found.mean(), parameters, materialize_grads=True)
    of_expected = torch.autograd.grad(expected.mean(), parameters, materialize_grads=True)
    size = max(float(gradient.abs().max()) for gradient in of_expected)
    assert size > 0
    for a, b in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * size)


def test_smoothgrad_is_the_enlarged_pair_with_a_mean_over_noise() -> None:
    model, images = cnn(), random_images()
    torch.manual_seed(3)
    found = Consistency(ConsistencyConfig(resolution_match="smoothgrad", layer=LAYER))(model, images)
    model.eval()
    torch.manual_seed(3)
    copies = [matching.noisy(images) for _ in range(matching.NOISY_COPIES)]
    expected = []
    for i, image in enumerate(images):
        label = int(model(image[None]).logits[0].argmax())
        q = torch.stack([guided_backprop(model, noisy[i], label) for noisy in copies]).mean(0)
        expected.append(loss(upsampled(grad_cam(model, image, label), 64), q, "correlation"))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-7, atol=1e-9)


PAIRS: dict[str, tuple[str, Any, Any]] = {
    "smooth cnn": ("cnn", "gradcam", "integrated_gradients"),
    "vit": ("class_token", "gradcam", "guided_backprop"),
    "vit rollout": ("class_token", "grad_rollout", "guided_backprop"),
    "vit agcam": ("class_token", "agcam", "gradient"),
    "registers": ("dino", "gradcam", "guided_backprop"),
    "two stage": ("stage_2", "foreground", "gradcam"),
}


@pytest.mark.parametrize(("case", "match"), [*((c, m) for c in PAIRS for m in MATCHES), ("vit", "smoothgrad")])
def test_every_pair_of_methods_can_be_trained(case: str, match: Any) -> None:
    """A gradient step lowers the loss; the loss of an image does not depend on its batch."""
    name, first, second = PAIRS[case]
    model = cnn("test_convnext").float() if name == "cnn" else CASES[name].model().train()
    images = random_images(3).float() if name == "cnn" else CASES[name].images()
    term = Consistency(ConsistencyConfig(first=first, second=second, resolution_match=match))

    def value() -> Tensor:
        torch.manual_seed(0)
        return term(model, images)

    before = value()
    assert before.shape == (3,) and before.dtype == torch.float32
    if match != "smoothgrad":
        alone = torch.cat([term(model, image[None]) for image in images])
        torch.testing.assert_close(before, alone, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(value(), before, rtol=1e-3, atol=1e-4)
    before.mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([g.norm() for g in gradients]).norm()
    assert norm.isfinite() and float(norm) > 0
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p.sub_(p.grad, alpha=1e-4 / float(norm) ** 2)
    assert float(value().mean().detach()) < float(before.mean().detach())


def test_both_stages_learn_from_the_natural_pair() -> None:
    model, images = CASES["stage_2"].model(), CASES["stage_2"].images()
    config = ConsistencyConfig(first="foreground", second="gradcam", resolution_match="enlarge")
    Consistency(config)(model, images).mean().backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"stage_1", "stage_2"}


def test_all_ones_mask_gives_full_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "soft_mask", lambda maps, intensity: torch.ones_like(maps))
    assert Consistency(ConsistencyConfig(layer=LAYER))(cnn(), random_images()).tolist() == [-1, -1]


def test_agreement_is_pearson_of_the_maps() -> None:
    model, images = cnn(), random_images()
    with torch.no_grad():
        classes = model.eval()(images).logits.argmax(1)
        found, _ = Consistency(ConsistencyConfig(layer=LAYER)).measured(model, images, classes)
    for value, image in zip(found, images, strict=True):
        k, q = pair(model, image, "shrink", 8)
        expected = torch.corrcoef(torch.stack([k.flatten(), q.flatten()]))[0, 1]
        torch.testing.assert_close(value, expected.detach())


@pytest.mark.parametrize("match", get_args(ResolutionMatch))
def test_measured_loss_is_the_trained_loss(match: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps that agreement and loss share are computed once, and both values stay bitwise the same."""
    model, images = cnn().eval(), random_images()
    term, called = Consistency(ConsistencyConfig(resolution_match=match, layer=LAYER)), []

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        called.append(kwargs["method"])
        return explain(*args, **kwargs)

    with torch.no_grad():
        torch.manual_seed(0)
        expected = term(model, images)
        classes = model(images).logits.argmax(1)
        monkeypatch.setattr(engine_consistency, "explain", counting)
        torch.manual_seed(0)
        agreement, value = term.measured(model, images, classes)
    assert torch.equal(value, expected) and agreement.shape == (2,)
    assert len(called) == {"enlarge": 2, "shrink": 2, "smoothgrad": 2 + matching.NOISY_COPIES}.get(match, 3)


def test_full_precision_under_autocast() -> None:
    model, images = cnn().float(), random_images().float()
    expected = Consistency(ConsistencyConfig(layer=LAYER))(model, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(Consistency(ConsistencyConfig(layer=LAYER))(model, images), expected)


def test_methods_that_cannot_explain_the_model() -> None:
    images = CASES["class_token"].images()
    with pytest.raises(UserError, match="inherent needs a two-stage model"):
        Consistency(ConsistencyConfig(first="foreground"))(CASES["class_token"].model(), images)
    with pytest.raises(UserError, match="--method: a ResNet is not a ViT whose attention"):
        Consistency(ConsistencyConfig(first="agcam"))(cnn(), random_images())


def test_every_method_in_the_config_exists() -> None:
    assert {engine_consistency.METHOD_OPTIONS.get(name, (name, {}))[0] for name in get_args(ConsistencyMethod)} <= set(
        METHODS
    )
