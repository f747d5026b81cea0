"""`evaluate.py --leave-one-part-out`: all figures without part 0, without part 1, ..., from the flags to the report."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from rich.console import Console
from torch import Tensor

from common.errors import UserError
from common.processes import processes, totals
from datasets.types import Batch
from engine.evaluation import evaluation_mode, split_loader
from engine.interventions import check_parts, read_thresholds, require_two_stage
from engine.loading import fingerprint, load_run_model, read_split
from engine.objectives import prediction_of
from engine.pictures import Photographer
from engine.runs import CONFIG_FILE, RESULTS, prepare_process, provenance, run_config
from engine.tracking import progress_bar
from engine.trainer import PRECISIONS
from metrics.outputs import in_classes
from metrics.registry import MetricSet, build_metrics, default_metrics
from metrics.types import Prediction
from models.backbone import patch_tokens
from models.part_discovery import Intervention, draw_noise
from models.two_stage import TwoStageModel, TwoStageOutput
from report.files import check_folder, json_text, write_atomic
from report.interventions import write_removal_report

UNMODIFIED = "unmodified"
Settings = Mapping[str, Intervention]
"""Row of the table -> what is taken away. `UNMODIFIED` comes first."""


def leave_one_part_out(args: argparse.Namespace, overrides: list[str]) -> None:
    """The unmodified run, then without each part: a table rows x figures, a picture of what went, report."""
    # 1. run and data
    out = check_folder(args.out or args.run / "evaluation" / f"{args.split}-leave-one-part-out", "--out")
    config = run_config(args.run, overrides)
    device = prepare_process(config)
    split = read_split(config, args.split, args.limit)

    # 2. model, settings and metrics
    model = require_two_stage(load_run_model(args.run, config, args.checkpoint, split.info.num_outputs)).to(device)
    parts = model.model_config.parts.num_parts
    check_parts(args.fixed_parts, parts, "--fixed-parts")
    settings = removal_settings(parts, args.fixed_parts, read_thresholds(args.thresholds, model))
    names = args.metrics or default_metrics(split.info, has_mask=True)
    metrics = {row: build_metrics(names, split.info) for row in settings}
    if to_fit := metrics[UNMODIFIED].to_fit:
        raise UserError(f"--metrics: {', '.join(to_fit)} speaks of part maps alone, which removing a part leaves as is")

    # 3. measure
    loader = split_loader(split, config.data)
    with progress_bar(Console(quiet=not processes().first), "leave one part out", len(loader)) as advance:
        precision = PRECISIONS[config.train.precision]
        changed = measure(model, loader, settings, metrics, device, precision, advance)

    # 4. write
    records = [
        {
            "row": row,
            "removed_parts": " ".join(map(str, settings[row].remove_parts)),
            **metrics[row].compute(),
            "share_of_answers_changed": changed[row] / len(split),
        }
        for row in settings
    ]
    if not processes().first:
        return
    details = {
        "run": str(args.run), "checkpoint": args.checkpoint, "fingerprint": fingerprint(model), "split": args.split,
        "split_origin": split.info.split_origin, "images": len(split),
        "thresholds": args.thresholds and str(args.thresholds), "fixed_parts": args.fixed_parts,
        "provenance": provenance(),
    }  # fmt: skip
    write_atomic(out / RESULTS, json_text({**details, "rows": records}))
    photographer = Photographer(split, config.data.mean, config.data.std)
    sheet = photographer.removals(model, settings, out / "sheet.png")
    text = (args.run / CONFIG_FILE).read_text()
    report = write_removal_report(out, f"{args.run.name}: {args.split}, parts removed", records, sheet, details, text)
    print(f"{len(split)} images, {len(settings)} rows: look at {report}")


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
                prediction = in_classes(answer(intervention), metrics[row].info)
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
