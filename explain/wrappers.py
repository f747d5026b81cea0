"""Models inside other modules: data-parallel, averaged, compiled and adapted ones, and a ViT with a head of its own."""

from typing import Any, cast

import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from explain.huggingface import adapted
from explain.isolation import alone
from explain.peft_models import merged
from explain.vits import ReadableViT

WRAPPERS = (DataParallel, DistributedDataParallel, ModelEmaV2, ModelEmaV3, AveragedModel)
"""Modules whose `module` gives the same logits."""


def eager(module: nn.Module) -> nn.Module:
    """The module itself; of what `torch.compile(module)` returned, the module inside."""
    return cast(nn.Module, module._modules.get("_orig_mod", module))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside data-parallel, averaging and compiling wrappers, in any order; its adapters (peft) merged.

    A model of Hugging Face returns its logits or features. Raises UserError for one that cannot be explained.
    """
    while (inner := eager(model.module if isinstance(model, WRAPPERS) else model)) is not model:
        model = inner
    with alone(model):  # its weights may be replaced while it is explained
        return adapted(merged(model))


def inner_vit(model: nn.Module) -> tuple[str, ReadableViT] | None:
    """The name of the only ViT inside a module, and the ViT itself; None if there is none, or several."""
    if isinstance(model, ReadableViT):
        return "", model
    found = [(name, part) for name, part in model.named_modules() if isinstance(part, ReadableViT)]
    return found[0] if len(found) == 1 else None


def why_unread(model: nn.Module, vit: ReadableViT, images: Tensor) -> str:
    """Why attention methods cannot tell which tokens `model` reads of the `vit` inside; empty if they can.

    They can if the model calls the ViT itself, once, on images of the same size, so that the ViT pools its tokens. One
    image is run to see it.
    """
    sizes: list[tuple[int, ...]] = []

    def note(_: Any, args: Any) -> None:
        sizes.append(tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ())

    with vit.register_forward_pre_hook(note), torch.no_grad():
        model(images[:1])
    if len(sizes) != 1:
        return f"it calls its {type(vit).__name__} {len(sizes)} times"
    if sizes != [tuple(images[:1].shape)]:
        return "it changes the image size"
    return "" if vit.global_pool else f"its {type(vit).__name__} does not pool its tokens (global_pool='')"
