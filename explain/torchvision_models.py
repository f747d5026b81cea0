"""Build a classifier of torchvision by name, with its preprocessing as a data config of timm."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from common.errors import UserError

Made: TypeAlias = "tuple[nn.Module, dict[str, Any], list[str] | None]"
"""A model, the config of its preprocessing as timm's `create_transform` takes it, and its class names, if known."""


def torchvision_model(
    name: str, pretrained: bool, size: tuple[int, int] | None, state: Mapping[str, Tensor] | None
) -> Made:
    """torchvision's classifier `name` with its default weights, or random ones. Raises UserError.

    The preprocessing is that of the default weights. `state`: unused, as it must have the model's own classes.
    """
    import torchvision

    known = torchvision.models.list_models(torchvision.models)
    if name not in known:
        near = ", ".join(each for each in known if each[:4] == name[:4])
        raise UserError(f"--model: torchvision has no classifier {name!r}" + (f"; it has {near}" if near else ""))
    default = torchvision.models.get_model_weights(name).DEFAULT
    settings: dict[str, Any] = {"image_size": size[0]} if size and "vit" in name else {}
    if "image_size" in settings and size and size[0] != size[1]:
        raise UserError(f"--size: {size[0]} {size[1]}; torchvision's ViTs take square images")
    try:
        model = torchvision.models.get_model(name, weights=default if pretrained else None, **settings)
    except Exception as error:  # offline, a broken download, a size that does not fit
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        why = f"torchvision cannot make {name!r} ({reason}); or give --weights FILE or none"
        raise UserError(f"--model: {why}") from None
    preset = default.transforms()
    height, width = size or (preset.crop_size[0], preset.crop_size[0])
    config = {
        "input_size": (3, height, width), "crop_pct": preset.crop_size[0] / preset.resize_size[0],
        "interpolation": preset.interpolation.value, "mean": tuple(preset.mean), "std": tuple(preset.std),
        "crop_mode": "center",
    }  # fmt: skip
    return model, config, list(default.meta["categories"])
