"""ImageNet-9: accuracy on each variant, the BG-gap, and the backgrounds challenge (Xiao et al. 2021)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.processes import totals
from datasets import Split, eval_loader
from datasets.readers.imagenet9 import VARIANTS
from datasets.types import Batch, DatasetInfo
from engine.evaluation.loading import read_split
from engine.evaluation.loop import evaluate, split_loader
from engine.evaluation.predict import evaluation_mode, predict
from engine.run.config import RunConfig
from engine.run.machine import precision_of
from metrics.base import is_correct, ratio
from metrics.class_mapping import to_dataset_classes
from metrics.registry import build_metrics, default_metrics
from models.interface import gives_mask

SAME, RANDOM = "mixed_same", "mixed_rand"
FOREGROUNDS, BACKGROUNDS = "original", "only_bg_t"
"""The variants that the challenge combines."""
Advance = Callable[[int], None]


def read_sets(config: RunConfig, limit: int | None, challenge: bool) -> dict[str, Split]:
    """The variants in data.root, by name. Raises UserError if a required one is missing.

    `limit`: number of images to sample from each variant.
    """
    root = Path(config.data.root).expanduser()
    needed = {SAME, RANDOM} | ({FOREGROUNDS, BACKGROUNDS} if challenge else set())
    names = [name for name in VARIANTS if name in needed or (root / name).is_dir()]
    sets = {
        name: read_split(replace(config, data=replace(config.data, variant=cast(Any, name))), "test", limit)
        for name in names
    }
    if challenge and sets[FOREGROUNDS][0].mask is None:
        raise UserError(f"--challenge: {root / 'fg_mask'} contains no object masks; unpack them there")
    return sets


def measure_set(model: nn.Module, split: Split, config: RunConfig, device: torch.device) -> dict[str, float]:
    """The default metrics of one variant."""
    metrics = build_metrics(default_metrics(split.info, has_mask=gives_mask(model)), split.info)
    precision = precision_of(config.train.precision, device)
    return evaluate(model, split_loader(split, config.data, device), metrics, device, precision)


def background_gaps(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """BG-gap of each stage: accuracy on mixed_same - accuracy on mixed_rand. `results`: variant -> its metrics."""
    same, random = results[SAME], results[RANDOM]
    keys = [key for key in ("accuracy", "stage_1/accuracy") if key in same]
    return {key.replace("accuracy", "bg_gap"): same[key] - random[key] for key in keys}


def run_challenge(
    model: nn.Module, sets: Mapping[str, Split], config: RunConfig, device: torch.device, advance: Advance
) -> dict[str, float]:
    """`challenge_accuracy`: fraction of objects classified correctly on every background of only_bg_t, also per class.

    More backgrounds give a lower value. All backgrounds are kept on the device, 12 H W bytes each. With several
    processes, each evaluates its own objects on all backgrounds.
    """
    info, precision = sets[FOREGROUNDS].info, precision_of(config.train.precision, device)
    size, workers = config.data.eval_batch_size, config.data.loading_processes
    loader = eval_loader(sets[BACKGROUNDS], batch_size=size, workers=workers, device=device)
    backgrounds = torch.cat([batch.image for batch in loader])
    chunks = list(backgrounds.split(size))
    total, correct = [0] * info.num_classes, [0] * info.num_classes
    with evaluation_mode(model, device, seed=0):
        for batch in split_loader(sets[FOREGROUNDS], config.data, device):
            for i, label in enumerate(batch.label.tolist()):
                advance(1)
                total[label] += 1
                correct[label] += correct_on_all(model, batch, i, chunks, info, precision)
    total, correct = totals(*total), totals(*correct)
    by_class = {
        f"challenge_accuracy/class/{name}": ratio(correct[label], total[label])
        for label, name in enumerate(info.class_names) if total[label]
    }  # fmt: skip
    counts = {"count/foregrounds": float(sum(total)), "count/backgrounds": float(len(backgrounds))}
    return {"challenge_accuracy": ratio(sum(correct), sum(total)), **by_class, **counts}


def correct_on_all(
    model: nn.Module, batch: Batch, i: int, backgrounds: list[Tensor], info: DatasetInfo, precision: torch.dtype
) -> bool:
    """Whether the object of image i of the batch is classified correctly on all backgrounds, a list of [b, 3, H, W].

    Stops at the first chunk of backgrounds with an error and moves it to the front of the list, since it is likely to
    cause one for the next object too.
    """
    assert batch.mask is not None
    mask, label = batch.mask[i], batch.label[i]
    for position, chunk in enumerate(backgrounds):
        count = len(chunk)
        images = torch.where(mask, batch.image[i], chunk)  # [H, W] and [3, H, W] broadcast to [b, 3, H, W]
        composed = Batch(images, label.expand(count), batch.paths[i : i + 1] * count, mask=mask.expand(count, -1, -1))
        prediction = to_dataset_classes(predict(model, composed, precision), info)
        if not bool(is_correct(prediction.logits, composed.label).all()):
            backgrounds.insert(0, backgrounds.pop(position))
            return False
    return True
