"""The feature map that Grad-CAM reads of a network that is not one of `explain.vits`: CNNs and hierarchical ViTs."""

import difflib
from typing import Any, cast

import torch
from torch import Tensor, nn

from common.errors import UserError

MAX_STRIDE = 64
"""Of features, in pixels. What is smaller, such as [B, D, 1, 1] after a pooling, shows no places."""

POOLINGS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
"""What these return has the size that is asked for, whatever the features' own."""


def find_module(network: nn.Module, name: str) -> nn.Module:
    """The module of this name. Raises UserError if there is none."""
    known: dict[str, nn.Module] = dict(network.named_modules())
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0)
    raise UserError(f"--module: a {type(network).__name__} has no {name!r}; nearest: {', '.join(near)}")


def last_stage(network: nn.Module, images: Tensor) -> str:
    """The name of timm's last feature stage; of other networks, of the last module that returns a feature map.

    Raises UserError if there is none, or if attention over tokens (by the name of its class) follows it, as in
    torchvision's ViT.
    """
    modules = dict(network.named_modules())
    for stage in reversed(list(getattr(network, "feature_info", None) or [])[-1:]):
        if stage["module"] in modules:
            return str(stage["module"])
    last, attended = "", ""

    def note(name: str, module: nn.Module, out: Any) -> None:
        nonlocal last, attended
        features = None
        if isinstance(out, Tensor) and out.ndim == 4 and not isinstance(module, POOLINGS):
            features = as_features(out, network, images[:1])
        if features is not None and features.shape[1:3] != (1, 1):
            last, attended = name, ""
        elif type(module).__name__.endswith("Attention"):
            attended = name

    handles = [
        module.register_forward_hook(lambda module, _, out, name=name: note(name, module, out))
        for name, module in modules.items()
        if name
    ]
    try:
        with torch.no_grad():
            network(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    if attended or not last:
        why = f"no feature map after {attended}" if attended else "no feature map"
        raise UserError(f"--method: gradcam finds {why} in a {type(network).__name__}; choose a method at pixels")
    return last


def as_features(t: Tensor, network: nn.Module, images: Tensor) -> Tensor | None:
    """Features [B, D, h, w] or [B, h, w, D] as [B, h, w, D]; None unless h x w has the proportions of the images."""
    layouts = [t.movedim(1, -1), t]
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        layouts.reverse()
    H, W = images.shape[-2:]
    for t_BhwD in layouts:
        height, width = t_BhwD.shape[1:3]
        same_proportions = abs(height / H - width / W) < 1 / min(H, W)
        if same_proportions and H / MAX_STRIDE <= height <= H and W / MAX_STRIDE <= width <= W:
            return t_BhwD
    return None


@torch.no_grad()
def tokens_order(t: Tensor, network: nn.Module, images: Tensor) -> tuple[int, int] | None:
    """The grid (h, w) of which the last h * w tokens of t [B, N, D] are the places, row by row; None if not known.

    It is known if they equal one of the features of timm's `forward_intermediates`, which are in the order of the
    image. Some networks, such as Hiera, order their tokens by windows.
    """
    try:
        options: dict[str, Any] = {"norm": False, "intermediates_only": True}
        stages = cast(Any, network).forward_intermediates(images, **options)
    except (AttributeError, TypeError, AssertionError, RuntimeError):
        return None
    for features in reversed(stages):
        wanted = features.flatten(2).transpose(1, 2)  # [B, h * w, D]
        last = t[:, -wanted.shape[1] :]
        if last.shape == wanted.shape and torch.allclose(last, wanted.to(last), rtol=1e-3, atol=1e-5):
            return int(features.shape[2]), int(features.shape[3])
    return None
