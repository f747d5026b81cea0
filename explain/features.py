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

    Where timm names no module that runs, it is the last one that returns the last of `forward_intermediates`. Raises
    UserError if there is none, or if attention over tokens (by the name of its class) follows it, as in torchvision's
    ViT.
    """
    modules = dict(network.named_modules())
    info = list(getattr(network, "feature_info", None) or [])
    if info and not isinstance(modules.get(info[-1]["module"], modules[""]), nn.ModuleList | type(network)):
        return str(info[-1]["module"])
    stages = intermediates(network, images[:1])
    last, attended = "", ""

    def note(name: str, module: nn.Module, out: Any) -> None:
        nonlocal last, attended
        out, shows = first_tensor(out), False
        if out is not None and stages:
            shows = _shows(out, stages[-1])
        elif out is not None and out.ndim == 4 and not isinstance(module, POOLINGS):
            features = as_features(out, network, images[:1])
            shows = features is not None and features.shape[1:3] != (1, 1)
        if shows:
            last, attended = name, ""
        elif not stages and type(module).__name__.endswith("Attention"):
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


def first_tensor(out: Any) -> Tensor | None:
    """What a module returns, or the first of several values, if it is a tensor: (features, class token), say."""
    out = out[0] if type(out) in (tuple, list) and out else out
    return out if isinstance(out, Tensor) else None


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
def intermediates(network: nn.Module, images: Tensor) -> list[Tensor]:
    """The features [B, D, h, w] of timm's `forward_intermediates`, last stage last; empty if there are none."""
    options: dict[str, Any] = {"norm": False, "intermediates_only": True}
    try:
        return list(cast(Any, network).forward_intermediates(images, **options))
    except (AttributeError, TypeError, AssertionError, RuntimeError):
        return []


def tokens_order(t: Tensor, network: nn.Module, images: Tensor) -> tuple[int, int] | None:
    """The grid (h, w) of which the last h * w tokens of t [B, N, D] are the places, row by row; None if not known.

    It is known if they equal one of the features of timm's `forward_intermediates`, which are in the order of the
    image. Some networks, such as Hiera, order their tokens by windows.
    """
    for features in reversed(intermediates(network, images)):
        if _shows(t, features):
            return int(features.shape[2]), int(features.shape[3])
    return None


def _shows(t: Tensor, features: Tensor) -> bool:
    """Whether t is the features [B, D, h, w], or [B, h, w, D], or tokens [B, N, D] whose last ones are the features."""
    tokens = features.flatten(2).transpose(1, 2)  # [B, h * w, D]
    wanted = {3: (tokens,), 4: (features, features.movedim(1, -1))}.get(t.ndim, ())
    t = t[:, -tokens.shape[1] :] if t.ndim == 3 else t
    return any(t.shape == each.shape and torch.allclose(t, each.to(t), rtol=1e-3, atol=1e-5) for each in wanted)
