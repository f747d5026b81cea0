"""What train.py says before the first step: what it is about to do, so that a wrong setting is seen at once."""

from collections.abc import Iterator

from engine.run.config import RunConfig
from models.backbone import own_input


def input_lines(config: RunConfig) -> Iterator[str]:
    """Size, normalisation and evaluation transform of the network's input, and whether they are the backbone's own."""
    data, model = config.data, config.model
    height, width = data.size_hw
    mean, std = data.normalisation
    crop = f"{data.evaluation}, {data.interpolation}, crop {data.crop:g}"
    own = own_input(model.backbone)
    whose = "" if not own else "those" if (mean, std) == (own["mean"], own["std"]) else "not those"
    yield (
        f"input: {height} x {width} pixels, mean {_numbers(mean)}, std {_numbers(std)}"
        + (f" ({whose} of {model.backbone})" if whose else "")
        + f"; evaluation: {crop}"
    )
    if whose == "those" and model.weights not in ("hub", "none"):
        yield (
            f"model.weights={model.weights}: if these weights were trained with another mean and std than timm's "
            f"{model.backbone}, set data.mean and data.std"
        )
    first = own_input(model.stage_1_backbone) if model.stage_1_backbone else own
    if first and (mean, std) != (first["mean"], first["std"]) and first != own:
        yield f"stage 1 sees the same input; {model.stage_1_backbone} has mean {_numbers(first['mean'])} in timm"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
