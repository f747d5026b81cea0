"""What train.py says before the first step, so that a wrong setting is seen at once."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from common.processes import processes
from datasets import Split
from engine.run.batch import StepBatch
from engine.run.config import RunConfig
from engine.run.machine import PRECISIONS, precision_of
from models.backbone import own_input

MOST = 12
"""Classes or groups that are listed with their numbers of images."""


def start_lines(
    config: RunConfig, splits: Mapping[str, Split], model: nn.Module, device: torch.device
) -> Iterator[str]:
    """The lines of a run; `model` after its parameters are frozen or not."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    used = precision_of(config.train.precision, device)
    precision = next(precision for precision, dtype in PRECISIONS.items() if dtype == used)
    products = f", float32 products {config.train.matmul_precision}" if device.type == "cuda" else ""
    yield f"device: {device} ({name}), precision {precision}{products}"
    yield from data_lines(config, splits)
    yield from input_lines(config)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    frozen = sum(size for size, trains in sizes if not trains)
    yield f"model: {config.model.name}, {trained:,} parameters trained, {frozen:,} frozen"
    yield str(StepBatch(processes().world_size, config.data.batch_size, config.optim.grad_accum_steps))


def data_lines(config: RunConfig, splits: Mapping[str, Split]) -> Iterator[str]:
    """Images of each split and where they come from; numbers of images of the classes and groups."""
    for name, split in splits.items():
        yield f"{name}: {len(split):,} images ({split.info.split_origin})"
    info, train = splits["train"].info, splits["train"]
    counts = "several in an image" if info.multi_label else _counts(info.class_names, Counter(train.labels))
    yield f"{info.num_classes} classes in training: {counts}"
    groups = train.raw.groups
    if info.group_names and groups is not None:
        yield f"{len(info.group_names)} groups in training: {_counts(info.group_names, Counter(groups))}"


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


def _counts(names: Sequence[str], counts: Mapping[int, int]) -> str:
    """Numbers of images by name; of many names the extremes only. Names without images are always counted."""
    values = [counts.get(number, 0) for number in range(len(names))]
    if len(names) <= MOST:
        return ", ".join(f"{name} {value:,}" for name, value in zip(names, values, strict=True))
    few, many = (pick(range(len(names)), key=values.__getitem__) for pick in (min, max))
    empty = f", {values.count(0)} without images" if 0 in values else ""
    return f"{values[few]:,} ({names[few]}) to {values[many]:,} ({names[many]}) images{empty}"
