"""`evaluate.py --leave-one-part-out`: all metrics without part 0, without part 1, ..., from the flags to the report."""

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
from models.backbone import patch_tokens
from models.outputs import TwoStageOutput
from models.part_discovery import Intervention, draw_noise
from models.two_stage import TwoStageModel

UNMODIFIED = "unmodified"
Settings = Mapping[str, Intervention]
"""Row of the table -> what is taken away. `UNMODIFIED` comes first."""


def removal_settings(parts: int, fixed: Sequence[int], thresholds: Tensor | None) -> dict[str, Intervention]:
    """The rows: unmodified, what all others share (thresholds, `fixed` parts), and that without one more part each."""
    one_more = [(*fixed, part) for part in range(parts) if part not in fixed]
    settings = {UNMODIFIED: Intervention()}
    for removed in dict.fromkeys(tuple(sorted(set(some))) for some in [(), fixed, *one_more]):
        words = ["thresholds"] if thresholds is not None else []
        if removed:
            words.append(f"without part{'s' if len(removed) > 1 else ''} {', '.join(map(str, removed))}")
        if words:
            settings[", ".join(words)] = Intervention(thresholds, removed)
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
    """Feed every setting's metrics in one pass over the images; how many answers differ from the unmodified model's.

    Of several processes each brings other images; all get the counts of all of them.
    Stage 1's backbone runs once per image, and published noise is drawn once: what differs is the intervention alone.
    """
    changed = {row: torch.zeros((), dtype=torch.int64, device=device) for row in settings}
    with evaluation_mode(model, device, seed=0):
        for batch in batches:
            batch = batch.to(device)
            answer = shared_answers(model, batch.image, precision)
            for row, intervention in settings.items():
                prediction = to_dataset_classes(answer(intervention), metrics[row].info)
                metrics[row].update(batch, prediction)
                predicted = prediction.logits.argmax(1)
                if row == UNMODIFIED:
                    before = predicted
                changed[row] += (predicted != before).sum()
            advance(len(batch))
    return dict(zip(changed, totals(*map(int, changed.values())), strict=True))


def shared_answers(
    model: TwoStageModel, images: Tensor, precision: torch.dtype
) -> Callable[[Intervention], Prediction]:
    """The model's answer to `images` [B, 3, H, W] under any intervention, from one pass of stage 1's backbone."""
    autocast = partial(torch.autocast, images.device.type, dtype=precision, enabled=precision != torch.float32)
    with autocast():
        tokens = patch_tokens(model.stage_1.backbone, images)
    shape = tokens.shape[0], tokens.shape[1]
    noise = draw_noise(model.model_config.parts, shape, tokens.device, model.training)

    def answer(intervention: Intervention) -> Prediction:
        with autocast():
            stage_1 = model.stage_1.from_tokens(tokens, noise, intervention)
            return prediction_of(TwoStageOutput(model.predict(images, stage_1.selection), stage_1))

    return answer
