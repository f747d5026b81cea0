"""What is measured: every method in our way, in the published way and in that of a package, on the same weights.

A way is (Setup, Given) -> its maps or scores. Shape legend: B images.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import explain_packages as packages
import explain_published as published
import torch
from explain_published_lrp import lrp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from datasets.types import Batch, DatasetInfo
from explain import explain
from explain.loading import load_timm
from metrics.maps.perturbation import ABPC
from metrics.types import Explanation

SEED = 0
IG_STEPS = 8
ABPC_IMAGES = 4
"""Of 18 images an image; its forwards are as large as the batch all the same."""
SAME = {"published": 1e-5}
INFO = DatasetInfo("noise", ())
MIDDLE = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Given:
    """Images, and what ABPC scores on them."""

    images: Tensor
    """[B, 3, H, W]."""
    maps: Tensor
    """[B, H, W] in [0, 1), no two pixels alike: ties would leave the order open."""
    labels: Tensor
    """[B] int64."""

    def part(self, start: int, stop: int) -> "Given":
        """Some of the images."""
        return Given(self.images[start:stop], self.maps[start:stop], self.labels[start:stop])


def noise(count: int, size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Given:
    """`count` random images of size x size pixels."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(count, 3, size, size, generator=generator)
    maps = torch.rand(count, size * size, generator=generator).argsort(1) / size**2
    labels = torch.randint(10, (count,), generator=generator)
    return Given(images.to(device, dtype), maps.view(count, size, size).to(device, dtype), labels.to(device))


class Setup:
    """One ViT with random weights, and its copies with explicit attention for the published ways."""

    def __init__(self, name: str, size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """Raises UserError for a model that cannot be made, or that published code could not explain."""
        torch.manual_seed(SEED)
        self.vit = load_timm(name, "none", (size, size)).model
        assert isinstance(self.vit, VisionTransformer)
        _wake(self.vit)
        self.vit.to(device, dtype)
        self.explicit = published.explicit(self.vit)
        self.cut = published.explicit(self.vit, cut=True)

    def resident_bytes(self) -> int:
        """Bytes of one model's weights."""
        return sum(p.nbytes for p in self.vit.parameters())


def _wake(vit: nn.Module) -> None:
    """Weights at which attention is far from uniform, so that an error shows; timm's first ones hardly tell tokens."""
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)


Way = Callable[[Setup, Given], Tensor]


@dataclass(frozen=True)
class Method:
    """One method, and who can do it."""

    name: str
    ours: Way
    options: dict[str, Any] = field(default_factory=dict)
    """Ours, that give the published number."""
    others: dict[str, Way] = field(default_factory=dict)
    """published, or the name of a package -> how it is done there."""
    tolerance: dict[str, float] = field(default_factory=dict)
    """Of those others that compute the same: largest difference in double precision, relative to each map's top."""
    fewer: int = 1
    """A batch holds so many times fewer images, where one image costs many forwards or much time."""

    @property
    def label(self) -> str:
        """The name, with the options."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])

    def ways(self) -> dict[str, Way]:
        """Ours, and the others whose package is installed."""
        return {"ours": self.ours} | {
            name: way for name, way in self.others.items() if name == "published" or packages.is_installed(name)
        }


def _method(name: str, options: dict[str, Any] | None = None, **rest: Any) -> Method:
    options = options or {}
    return Method(name, lambda setup, given: explain(setup.vit, given.images, name, **options), options, **rest)


def _published(method: Callable[[VisionTransformer, Tensor], Tensor], cut: bool = False) -> dict[str, Way]:
    def one_by_one(setup: Setup, given: Given) -> Tensor:
        vit = setup.cut if cut else setup.explicit
        maps = torch.stack([method(vit, image[None]) for image in given.images])
        vit.zero_grad()
        return maps

    return {"published": one_by_one}


def _package(name: str, method: Callable[..., Tensor], **options: Any) -> dict[str, Way]:
    return {name: lambda setup, given: method(setup.vit, given.images, **options)}


def _abpc(setup: Setup, given: Given) -> Tensor:
    """All of it: the clean images, the covered one and every step."""

    def predict(images: Tensor) -> Tensor:
        with torch.no_grad():
            return setup.vit(images)

    count = len(given.images)
    batch = Batch(given.images, given.labels, ("",) * count)
    metric = ABPC(INFO, mean=MIDDLE, std=MIDDLE, chunk=count * ABPC_IMAGES if count > 1 else 1)
    return metric.rows(batch, Explanation(given.maps, predict(given.images), predict))[:, 0]


def _published_abpc(setup: Setup, given: Given) -> Tensor:
    triples = zip(given.images, given.maps, given.labels, strict=True)
    return torch.stack([published.abpc(setup.explicit, image[None], *rest) for image, *rest in triples])


def _forward(setup: Setup, given: Given) -> Tensor:
    with torch.no_grad():
        return setup.vit(given.images)


def _forward_backward(setup: Setup, given: Given) -> Tensor:
    """As in training: a gradient for every weight."""
    logits = setup.vit(given.images)
    logits.amax(1).sum().backward()
    setup.vit.zero_grad()
    return logits


FORWARD, BOTH = "(forward)", "(forward + backward)"
"""Yardsticks: the model alone."""
METHODS = (
    Method(FORWARD, _forward),
    Method(BOTH, _forward_backward),
    _method("raw_attention"),
    _method("gradient"),
    _method("rollout", {"compat": "vit-explain"}, others=_published(published.rollout), tolerance=SAME),
    _method("grad_rollout", {"compat": "vit-explain"}, others=_published(published.grad_rollout), tolerance=SAME),
    _method("lrp", {"start_layer": 1}, others=_published(lrp), tolerance={"published": 1e-6}),
    _method("agcam", others=_published(published.agcam, cut=True), tolerance=SAME),
    _method("gradcam", {"compat": "chefer", "relu": False}, others=_published(published.gradcam), tolerance=SAME),
    _method("gradcam", others=_package("grad-cam", packages.gradcam)),
    _method("guided_backprop", others=_package("captum", packages.guided_backprop)),
    _method("input_x_gradient", others=_package("captum", packages.input_x_gradient), tolerance={"captum": 1e-5}),
    _method(
        "integrated_gradients",
        {"steps": IG_STEPS},
        others=_package("captum", packages.integrated_gradients, steps=IG_STEPS),
        tolerance={"captum": 1e-5},
        fewer=IG_STEPS,
    ),
    _method("attention_flow", fewer=32),
    Method("abpc", _abpc, others={"published": _published_abpc}, tolerance=SAME, fewer=ABPC_IMAGES),
)
