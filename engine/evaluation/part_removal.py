"""`evaluate.py --leave-one-part-out`: all metrics without part 0, without part 1, and so on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from common.processes import totals
from datasets.types import Batch
from engine.evaluation.predict import evaluation_mode, prediction_of
from metrics.class_mapping import to_dataset_classes
from metrics.registry import MetricSet
from metrics.types import Prediction
from models.outputs import TwoStageOutput
from models.part_discovery import Intervention, draw_noise
from models.two_stage import TwoStageModel

UNMODIFIED = "unmodified"
Settings = Mapping[str, Intervention]
"""Row of the table -> intervention. `UNMODIFIED` comes first."""


def removal_settings(parts: int, fixed: Sequence[int], thresholds: Tensor | None) -> dict[str, Intervention]:
    """The rows: unmodified; with thresholds and without the `fixed` parts; and that without each further part."""
    one_more = [(*fixed, part) for part in range(parts) if part not in fixed]
    settings = {UNMODIFIED: Intervention()}
    for removed in dict.fromkeys(tuple(sorted(set(some))) for some in [(), fixed, *one_more]):
        name = ["thresholds"] if thresholds is not None else []
        if removed:
            name.append(f"without part{'s' if len(removed) > 1 else ''} {', '.join(map(str, removed))}")
        if name:
            settings[", ".join(name)] = Intervention(thresholds, removed)
    return settings


def measure(
    model: TwoStageModel,
    batches: Iterable[Batch],
    settings: Settings,
    metrics: Mapping[str, MetricSet],
    device: torch.device,
    precision: torch.dtype = torch.float32,
    advance: Callable[[int], None] = lambda images: None,
) -> dict[str, int]:
    """Update the metrics of every setting in one pass; returns how many predictions each changes.

    Stage 1's backbone runs once per image, and noise that `compat=reference` keeps is drawn once, so that settings
    differ by the intervention alone. With several processes, each passes its own images; counts cover all of them.
    """
    changed = {row: torch.zeros((), dtype=torch.int64, device=device) for row in settings}
    with evaluation_mode(model, device, seed=0):
        for batch in batches:
            batch = batch.to(device)
            predict = shared_predictions(model, batch.image, precision)
            for row, intervention in settings.items():
                prediction = to_dataset_classes(predict(intervention), metrics[row].info)
                metrics[row].update(batch, prediction)
                predicted = prediction.logits.argmax(1)
                if row == UNMODIFIED:
                    unmodified = predicted
                changed[row] += (predicted != unmodified).sum()  # stays on the device: no wait per batch
            advance(len(batch))
    return dict(zip(changed, totals(*map(int, changed.values())), strict=True))


def shared_predictions(
    model: TwoStageModel, images: Tensor, precision: torch.dtype
) -> Callable[[Intervention], Prediction]:
    """A function from interventions to predictions for `images` [B, 3, H, W], with one pass of stage 1's backbone."""
    autocast = partial(torch.autocast, images.device.type, dtype=precision, enabled=precision != torch.float32)
    with autocast():
        tokens = model.stage_1.tokens(images)
    noise = draw_noise(model.model_config.parts, tokens.shape[:2], tokens.device, model.training)

    def predict(intervention: Intervention) -> Prediction:
        with autocast():
            stage_1 = model.stage_1.from_tokens(tokens, noise, intervention)
            return prediction_of(TwoStageOutput(model.predict(images, stage_1.selection), stage_1))

    return predict
