"""Check and convert what a user passes to `explain`: images, target classes, class names, weights in half precision."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from common.errors import UserError
from explain.explained_model import evaluated
from explain.huggingface import HuggingFaceModel, HuggingFaceViT
from explain.vits import ReadableViT, embedding, patch_side, takes_any_size
from models.cnn import Cnn
from models.interface import ImageClassifier

Targets: TypeAlias = "int | str | Sequence[int | str] | np.ndarray | Tensor | None"
"""A class for all images or one per image, as index or name; None: the predicted class."""


def checked_images(model: nn.Module, images: Any) -> Tensor:
    """The images, if they are a batch [B, 3, H, W] of floats of a size that the model takes. Raises UserError."""
    if not isinstance(images, Tensor):
        raise UserError(f"images: a {type(images).__name__}; give a tensor [B, 3, H, W], normalised for the model")
    shape = tuple(images.shape)
    if images.ndim == 3:
        raise UserError(f"images: shape {shape} has no batch dimension; give images[None], [1, 3, H, W]")
    if images.ndim != 4 or shape[1] != 3:
        raise UserError(f"images: shape {shape}; give [B, 3, H, W]")
    if not len(images):
        raise UserError("images: the batch is empty; give at least one image")
    if not images.is_floating_point():
        raise UserError(f"images: {images.dtype}; give floats, normalised as the model expects")
    if (size := _fixed_size(model)) and shape[2:] != size:
        raise UserError(f"images: {shape[2]} x {shape[3]} pixels; this model takes {size[0]} x {size[1]}")
    if isinstance(model, ReadableViT) and not size and not getattr(embedding(model), "dynamic_img_pad", False):
        patch = patch_side(model)
        if any(side % step or side < step for side, step in zip(shape[2:], patch, strict=True)):
            raise UserError(f"images: {shape[2]} x {shape[3]} pixels are no multiple of the patch size {patch}")
    return images


def _fixed_size(model: nn.Module) -> tuple[int, ...] | None:
    """(height, width) of the only images that the model takes; None if it takes several sizes."""
    if isinstance(model, ImageClassifier):
        return None if isinstance(model, Cnn) else tuple(model.input_size)
    if isinstance(model, HuggingFaceViT):
        return model.fixed_size
    embed: Any = getattr(model, "patch_embed", None)
    if not isinstance(model, ReadableViT):
        strict = isinstance(embed, PatchEmbed) and embed.strict_img_size and embed.img_size
        return tuple(embed.img_size) if strict else None
    if takes_any_size(model):
        return None
    # not every kind has timm's switches
    if not getattr(embed, "strict_img_size", True):
        return None
    return tuple(count * side for count, side in zip(embed.grid_size, patch_side(model), strict=True))


def num_classes(model: nn.Module) -> int:
    """Length of the logits of a timm ViT or a model of this project; 0 if only a forward pass can tell."""
    if isinstance(model, ImageClassifier):
        return int(model.num_outputs)
    head = getattr(model, "head", None)
    return head.out_features if isinstance(head, nn.Linear) else 0


def returning_logits(logits: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """The same function; a UserError where it does not return logits [B, C]."""

    def checked(images: Tensor) -> Tensor:
        try:
            found = logits(images)
        except AssertionError as error:  # timm's way to refuse an image size
            why = " ".join(str(error).split()) or "it gives no reason"
            raise UserError(
                f"images: {images.shape[2]} x {images.shape[3]} pixels: the model refuses ({why})"
            ) from None
        if not isinstance(found, Tensor) or found.ndim != 2:
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise UserError(f"the model's forward returns {what}; explanations need logits, a tensor [B, C]")
        return found

    return checked


def imagenet_names(model: nn.Module) -> list[str] | None:
    """The class names of a timm model with 1000 classes whose weights are made for ImageNet-1k, each with its synonyms,
    "tabby, tabby cat"; None for other models."""
    from timm.data import ImageNetInfo

    made_for = getattr(model, "pretrained_cfg", None) or {}
    if getattr(model, "num_classes", None) != 1000 or made_for.get("num_classes") != 1000:
        return None
    return list(ImageNetInfo("imagenet-1k").label_descriptions())


def class_index(text: str, names: Sequence[str], flag: str = "--target") -> int:
    """The index of a class given by number, by name, or by one of the synonyms between commas in a name.

    Upper and lower case are the same. Raises UserError that starts with `flag`, with the nearest names.
    """
    if text.isdecimal() and text not in names:
        if int(text) < len(names):
            return int(text)
        raise UserError(f"{flag}: {text}; the model has classes 0 to {len(names) - 1}")
    wanted, lower = text.strip().lower(), [name.lower() for name in names]
    found = [i for i, name in enumerate(lower) if name == wanted]
    found = found or [i for i, name in enumerate(lower) if wanted in (part.strip() for part in name.split(","))]
    if len(found) == 1:
        return found[0]
    if found:
        which = ", ".join(f"{index} ({names[index]})" for index in found)
        raise UserError(f"{flag}: several classes are named {text!r}: {which}; give the number")
    near = [name for name in names if wanted and wanted in name.lower()][:3]
    near = near or [names[lower.index(name)] for name in difflib.get_close_matches(wanted, lower, 3, 0)]
    raise UserError(f"{flag}: no class is named {text!r}; nearest: {', '.join(map(repr, near))} (see --class-names)")


def checked_targets(
    targets: Any, images: Tensor, model: nn.Module, logits: Callable[[Tensor], Tensor], what: str = "classes"
) -> Tensor | None:
    """`Targets` as [B] int64 on the images' device; None stays None. Raises UserError for anything else.

    `logits`: images -> [B, C], called if the model does not say how many classes it has. `what`: the C numbers.
    """
    if targets is None:
        return None
    count = num_classes(model)
    if not count:
        with evaluated(model), torch.no_grad():
            count = logits(images).shape[1]
    if isinstance(targets, str) or (
        isinstance(targets, list | tuple) and any(isinstance(target, str) for target in targets)
    ):
        targets = _indices(targets, model)
    try:
        values = targets.detach() if isinstance(targets, Tensor) else torch.as_tensor(np.asarray(targets))
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"targets: cannot use a {type(targets).__name__}; give one class index per image") from None
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise UserError(f"targets: {values.dtype}; give class indices, integers from 0 to {count - 1}")
    values = values.to(torch.int64)
    values = values.expand(len(images)) if values.ndim == 0 else values
    if values.shape != (len(images),):
        raise UserError(f"targets: shape {tuple(values.shape)} for {len(images)} images; give one class per image")
    # Checked where they are: indices from Python are on the CPU, and need no wait for the images' device.
    if outside := [index for index in values.tolist() if not 0 <= index < count]:
        raise UserError(f"targets: {outside[0]}; the model has {what} 0 to {count - 1}")
    return values.to(images.device, non_blocking=True)


def _indices(targets: str | Sequence[int | str], model: nn.Module) -> int | list[Any]:
    names = model.class_names if isinstance(model, HuggingFaceModel) else imagenet_names(model)
    if names is None:
        raise UserError("targets: the names of this model's classes are not known; give class indices")
    if isinstance(targets, str):
        return class_index(targets, names, "targets")
    return [class_index(target, names, "targets") if isinstance(target, str) else target for target in targets]
