"""Load a vision model of Hugging Face's `transformers`, from the hub or a folder, with its preprocessing."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import huggingface_hub.utils
import torch
from torch import Tensor, nn

from common.errors import UserError
from explain.huggingface import READS, HuggingFaceModel, adapted
from explain.torchvision_models import Made

CLASSIFIER = "ForImageClassification"
TOWERS = {
    "vit": "ViTModel", "dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel", "clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel",
    "clip_vision_model": "CLIPVisionModel", "siglip_vision_model": "SiglipVisionModel",
}  # fmt: skip
"""What is explained of a model without classifier, by the `model_type` in its config."""
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's numbers."""


def huggingface_model(
    name: str, pretrained: bool, size: tuple[int, int] | None, state: Mapping[str, Tensor] | None
) -> Made:
    """The classifier or ViT `name`, a hub name or a folder of `save_pretrained`, with its weights or random ones.

    The preprocessing is its image processor's. `size`: (height, width) in pixels, for ViTs that take several sizes.
    Raises UserError: `transformers` is not installed, no such model, a model that cannot be explained, or weights that
    lack a part of it.
    """
    if state is not None:
        raise UserError("--weights: hf/NAME has its own weights; give hub or none, or save them to a folder")
    try:
        import transformers  # slow to import, and needed here only
    except ImportError:
        raise UserError("--model: hf/NAME needs the package transformers; pip install transformers") from None
    with _quiet(transformers), _one_line(name):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        kind: Any = getattr(transformers, _class_name(config, name))
        model = _pretrained(kind, name) if pretrained else kind(_own_config(config, kind))
        processor = cast(Any, transformers.AutoImageProcessor).from_pretrained(name, trust_remote_code=False)
    wrapped = cast(HuggingFaceModel, adapted(model.eval()))
    described = data_config(processor, name)
    if size:
        described["input_size"] = (3, *size)
    return wrapped, described, wrapped.class_names if hasattr(model, "classifier") else None


def _class_name(config: Any, name: str) -> str:
    built = (getattr(config, "architectures", None) or [""])[0]
    if built.endswith(CLASSIFIER) or built in READS:
        return str(built)
    if config.model_type in TOWERS:
        return TOWERS[config.model_type]
    what = f"a {built or config.model_type}"
    raise UserError(f"--model: hf/{name} is {what}; give a model for image classification, or a ViT: {_known()}")


def _known() -> str:
    return ", ".join(sorted(TOWERS))


def _own_config(config: Any, kind: Any) -> Any:
    """The config of the vision model, which may be a part of that of an image-text model."""
    return config if isinstance(config, kind.config_class) else config.vision_config


def _pretrained(kind: Any, name: str) -> nn.Module:
    options = {"add_pooling_layer": False} if kind.__name__ == "ViTModel" else {}  # often random, and not read
    model, found = kind.from_pretrained(
        name, use_safetensors=True, trust_remote_code=False, output_loading_info=True, dtype=torch.float32, **options
    )
    missing = sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"])))
    if missing:
        raise UserError(f"--model: the weights of hf/{name} lack {missing[0]} and {len(missing) - 1} other tensors")
    return cast(nn.Module, model)


def data_config(processor: Any, name: str) -> dict[str, Any]:
    """The preprocessing of an image processor as a data config of timm.

    timm's transform resizes with Pillow and rounds the place of the crop: where the processor does not, grey levels can
    differ by one, and the crop by one pixel. Raises UserError for preprocessing that timm's transform cannot do.
    """
    resized, cropped = _sides(processor.size), None
    if getattr(processor, "do_center_crop", False):
        cropped = _sides(processor.crop_size)
    wrong = {
        "does not resize": not getattr(processor, "do_resize", True),
        "does not scale by 1/255": not processor.do_rescale or abs(processor.rescale_factor * 255 - 1) > 1e-6,
        "pads": bool(getattr(processor, "do_pad", False)),
        "keeps the proportions of the image without a crop": resized is not None and len(resized) == 1 and not cropped,
        "has a size of another kind": resized is None or (cropped is not None and len(cropped) != 2),
    }
    for why, holds in wrong.items():
        if holds:
            raise UserError(f"--model: hf/{name}: its image processor {why}, which cannot be reproduced here")
    assert resized is not None
    height, width = cropped or resized
    # timm rounds side / crop_pct down: a little more than the side keeps it as it is.
    fractions = {a / (b if a == b else b + 1e-3) for a, b in ((height, resized[0]), (width, resized[-1]))}
    if len(fractions) > 1:
        raise UserError(f"--model: hf/{name}: its image processor crops height and width by different fractions")
    normalised = getattr(processor, "do_normalize", True)
    return {
        "input_size": (3, height, width), "crop_pct": fractions.pop(),
        "crop_mode": "center" if len(resized) == 1 else "squash",
        "interpolation": RESAMPLING[int(processor.resample)],
        "mean": tuple(processor.image_mean) if normalised else (0.0, 0.0, 0.0),
        "std": tuple(processor.image_std) if normalised else (1.0, 1.0, 1.0),
    }  # fmt: skip


def _sides(size: Any) -> tuple[int, ...] | None:
    """(height, width), or (shortest edge,); None for another kind of size."""
    given = {key: value for key, value in dict(size).items() if value is not None}
    if given.keys() == {"height", "width"}:
        return int(given["height"]), int(given["width"])
    return (int(given["shortest_edge"]),) if given.keys() == {"shortest_edge"} else None


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Inside, `transformers` and the hub write no progress bars and nothing but errors."""
    loggers = transformers.utils.logging, huggingface_hub.utils.logging  # the hub's tells every try to connect
    levels, bars = [logger.get_verbosity() for logger in loggers], loggers[0].is_progress_bar_enabled()
    for logger in loggers:
        logger.set_verbosity_error()
    loggers[0].disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
        if bars:
            loggers[0].enable_progress_bar()


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn the exceptions of `transformers` and the hub into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # offline, no such model, no config, no safetensors, a broken file: many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"--model: transformers cannot load {name!r} ({reason})") from None
