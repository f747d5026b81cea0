"""The sets of ImageNet-9: accuracy on each, the BG-gap, and the backgrounds challenge (Xiao et al. 2021)."""

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
from engine.run.machine import PRECISIONS
from metrics.base import is_correct, ratio
from metrics.class_mapping import to_dataset_classes
from metrics.registry import build_metrics, default_metrics
from models.interface import gives_mask

SAME, RANDOM = "mixed_same", "mixed_rand"
FOREGROUNDS, BACKGROUNDS = "original", "only_bg_t"
"""What the challenge is composed of."""
Advance = Callable[[int], None]


def read_sets(config: RunConfig, limit: int | None, challenge: bool) -> dict[str, Split]:
    """The sets that data.root holds, by name. Raises UserError where one is missing that is needed.

    `limit`: a sample of so many images of each.
    """
    root = Path(config.data.root).expanduser()
    needed = {SAME, RANDOM} | ({FOREGROUNDS, BACKGROUNDS} if challenge else set())
    names = [name for name in VARIANTS if name in needed or (root / name).is_dir()]
    sets = {
        name: read_split(replace(config, data=replace(config.data, variant=cast(Any, name))), "test", limit)
        for name in names
    }
    if challenge and sets[FOREGROUNDS][0].mask is None:
        raise UserError(f"--challenge: {root / 'fg_mask'} has no masks of the objects; unpack them there")
    return sets


def measure_set(model: nn.Module, split: Split, config: RunConfig, device: torch.device) -> dict[str, float]:
    """The default metrics of one set."""
    metrics = build_metrics(default_metrics(split.info, has_mask=gives_mask(model)), split.info)
    return evaluate(model, split_loader(split, config.data), metrics, device, PRECISIONS[config.train.precision])


def background_gaps(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """BG-gap = accuracy on mixed_same - accuracy on mixed_rand, of both stages. `results`: set to its metrics."""
    same, random = results[SAME], results[RANDOM]
    keys = [key for key in ("accuracy", "stage_1/accuracy") if key in same]
    return {key.replace("accuracy", "bg_gap"): same[key] - random[key] for key in keys}


def run_challenge(
    model: nn.Module, sets: Mapping[str, Split], config: RunConfig, device: torch.device, advance: Advance
) -> dict[str, float]:
    """`challenge_accuracy`: share of the objects that are classified rightly before every background of only_bg_t.

    Also by class. The more backgrounds, the lower. Holds the backgrounds on the device: 12 H W bytes each; of several
    processes each brings other objects and has all backgrounds.
    """
    info, precision = sets[FOREGROUNDS].info, PRECISIONS[config.train.precision]
    loader = eval_loader(sets[BACKGROUNDS], batch_size=config.data.eval_batch_size, workers=config.data.workers)
    backgrounds = torch.cat([batch.image.to(device) for batch in loader])
    pieces = list(backgrounds.split(config.data.eval_batch_size))
    total, safe = [0] * info.num_classes, [0] * info.num_classes
    with evaluation_mode(model, device, seed=0):
        for batch in split_loader(sets[FOREGROUNDS], config.data):
            batch = batch.to(device)
            for i, label in enumerate(batch.label.tolist()):
                advance(1)
                total[label] += 1
                safe[label] += withstands(model, batch, i, pieces, info, precision)
    total, safe = totals(*total), totals(*safe)
    by_class = {
        f"challenge_accuracy/class/{name}": ratio(safe[label], total[label])
        for label, name in enumerate(info.class_names) if total[label]
    }  # fmt: skip
    counts = {"count/foregrounds": float(sum(total)), "count/backgrounds": float(len(backgrounds))}
    return {"challenge_accuracy": ratio(sum(safe), sum(total)), **by_class, **counts}


def withstands(
    model: nn.Module, batch: Batch, i: int, backgrounds: list[Tensor], info: DatasetInfo, precision: torch.dtype
) -> bool:
    """Whether the object of the batch's image i is classified rightly before all backgrounds, n x [b, 3, H, W].

    Stops at the first background that fools the model, and moves its piece to the front: it may fool it again.
    """
    assert batch.mask is not None
    mask, label = batch.mask[i], batch.label[i]
    for position, piece in enumerate(backgrounds):
        count = len(piece)
        images = torch.where(mask, batch.image[i], piece)
        shown = Batch(images, label.expand(count), batch.paths[i : i + 1] * count, mask=mask.expand(count, -1, -1))
        answer = to_dataset_classes(predict(model, shown, precision), info)
        if not bool(is_correct(answer.logits, shown.label).all()):
            backgrounds.insert(0, backgrounds.pop(position))
            return False
    return True
