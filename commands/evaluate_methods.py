"""`evaluate.py --method`: measure explanation methods on a run or a classifier of timm, torchvision or Hugging Face."""

import argparse
import contextlib
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from rich.console import Console
from torch import nn

from commands.flags import check_method_flags, read_metric_options
from commands.method_outputs import (
    ExampleCollector,
    method_records,
    metric_table,
    remove_other_methods,
    write_per_image,
)
from commands.pretrained import check_classes, open_pretrained
from commands.run_context import METHODS_FILE, RunContext, check_mode
from common.errors import UserError
from common.processes import processes
from datasets import Split, collate
from datasets.trained_on import check_same_classes
from engine.evaluation.loading import fingerprint, load_run_model, read_split
from engine.evaluation.loop import split_loader
from engine.explanation.evaluator import ExplanationEvaluator, chosen_methods, options_of
from engine.explanation.map_metrics import build_map_metrics, wanted_metrics
from engine.explanation.map_store import MapProvenance, MapReader, MapWriter
from engine.explanation.masked_classifier import MaskedClassifier
from engine.explanation.model_checks import ModelChecks
from engine.explanation.through_resize import ThroughResize
from engine.run.config import RunConfig
from engine.run.folder import run_config, trained_on
from engine.run.machine import PRECISIONS, provenance
from engine.run.memory import AutoBatchSize
from engine.run.stopping import sigterm_unwinds
from engine.run.tracking import progress_bar
from explain.loading import patch_size
from models.interface import Stage, finds_parts, is_two_stage, selects_patches
from report.explanations import ExplainedImage, method_sheet, write_explanation_report
from report.files import check_folder


def evaluate_methods(args: argparse.Namespace, overrides: list[str]) -> None:
    """Write a table methods x metrics, metrics of every image, the maps of some images, and the report.

    With several processes, each measures a block of neighbouring images, and the main process writes.
    """
    # 1. model and data
    check_method_flags(args)
    run, split, model = load_run_subject(args, overrides) if args.run else load_pretrained_subject(args, overrides)
    model = model.eval()
    sample = collate([split[0]]).to(run.device)

    # 2. methods and metrics
    console = Console(highlight=False, quiet=not processes().is_main)
    log = partial(console.print, soft_wrap=True, markup=False)
    stage = explained_stage(args, model)
    methods = chosen_methods(args.method, vars(args), model, sample.image, stage, log)
    auto_batch, data = AutoBatchSize(run.config.data.eval_batch_size, log), run.config.data
    precision = PRECISIONS[args.predict_precision]
    own = MaskedClassifier(model, data, data, auto_batch, precision) if selects_patches(model) else None
    masked = read_masked_classifier(args.masks_for, run, split, auto_batch, precision) if args.masks_for else own
    wanted = wanted_metrics(args.metrics, sample, masked is not None)
    options = read_metric_options(args, data, patch_size(model, data.size_hw), masked)
    metrics = {name: build_map_metrics(wanted.maps, split.info, options) for name in methods}

    # 3. measure
    source = MapProvenance(map_provenance(run.config, args.split, stage, model), options_of(methods))
    evaluator = ExplanationEvaluator(model, methods, metrics, auto_batch, split.info, stage, precision=precision)
    checks = ModelChecks(split, wanted, options, evaluator.predict, own, masked, through_resize(args, split, own))
    examples = ExampleCollector(split, *data.normalisation)
    loader, start = split_loader(split, data, run.device), processes().block(len(split)).start
    if 0 < start < len(split):  # some metrics use the image before, which another process measures
        previous = collate([split[start - 1]]).to(run.device)
        evaluator.start_after(previous)
        checks.start_after(previous)
    evaluator.reader = MapReader(args.maps, source) if args.maps else None
    with contextlib.ExitStack() as stack:
        if args.save_maps:
            stack.enter_context(sigterm_unwinds())  # so that a stopped job leaves no partial file behind
            evaluator.writer = stack.enter_context(MapWriter(args.save_maps, source))
        advance = stack.enter_context(progress_bar(console, "explain", len(loader) * len(methods)))
        evaluator.measured = lambda images: advance(images / len(methods))
        evaluator.run(loader, run.device, [checks, examples], start)

    # 4. write; what is gathered needs every process
    records = method_records(evaluator, checks.rows())
    model_metrics, images = checks.model_results(), examples.images()
    if processes().is_main:
        remove_other_methods(run.out, methods)
    write_per_image(run.out, evaluator)
    if not processes().is_main:
        return
    protocols = {name: metric.protocol() for name, metric in metrics[next(iter(metrics))].items()}
    details = settings_of(args, run, split) | {
        "stage": stage, "model_metrics": model_metrics, "inputs": source.inputs, "methods": source.methods,
        "masks_for_weights": fingerprint(masked.model) if args.masks_for and masked else None,
        "protocol": protocols | checks.protocols(), "provenance": provenance(),
    }  # fmt: skip
    report = write_outputs(run, records, details, images)
    log(metric_table(records, console.width if console.is_terminal else None))
    log(f"counts and intervals: {run.out / 'methods.csv'}")
    log(f"{len(split)} images, {len(methods)} methods; report: {report}")


def write_outputs(
    run: RunContext, records: list[dict[str, Any]], details: dict[str, Any], images: list[ExplainedImage]
) -> Path:
    """Write results.json, the tables, the sheet and the report; returns the path of the report."""
    run.write_results({**details, "rows": records})
    sheet = method_sheet(images, run.out / "sheet.png")
    title, text = f"Explanations of {run.source}", yaml.safe_dump(asdict(run.config), sort_keys=False)
    return write_explanation_report(run.out, title, records, sheet, details, text)


def settings_of(args: argparse.Namespace, run: RunContext, split: Split) -> dict[str, Any]:
    """What was measured and how, for results.json."""
    return {
        "model": str(run.source), "checkpoint": run.checkpoint, "data": run.config.data.name, "split": args.split,
        "split_origin": split.info.split_origin, "images": len(split), "predict_precision": args.predict_precision,
        "masks_for": args.masks_for and str(args.masks_for), "maps": args.maps and str(args.maps),
    }  # fmt: skip


def load_run_subject(args: argparse.Namespace, overrides: list[str]) -> tuple[RunContext, Split, nn.Module]:
    """The run `--run`, the split, and the model."""
    run = RunContext.open(args, overrides, f"evaluation/{args.split}-methods")
    check_mode(run.out, METHODS_FILE)
    split = read_split(run.config, args.split, args.limit, args.run)
    return run, split, run.load_model(split.info)


def load_pretrained_subject(args: argparse.Namespace, overrides: list[str]) -> tuple[RunContext, Split, nn.Module]:
    """The same for `--model`. Raises UserError if the model has another number of classes than the data set."""
    folder = f"evaluation/{args.split}-methods"
    check_mode(check_folder(args.out or Path("runs") / args.model / folder, "--out"), METHODS_FILE)
    run, split, found = open_pretrained(
        args, overrides, folder, lambda config: read_split(config, args.split, args.limit)
    )
    check_classes(found, args.model, split.info)
    return run, split, found.model


def explained_stage(args: argparse.Namespace, model: nn.Module) -> Stage:
    """The stage to explain. Raises UserError if --stage is given for a model without stages."""
    if args.stage and not is_two_stage(model):
        raise UserError("--stage needs a two-stage run: this model has no stages")
    return cast(Stage, args.stage or (1 if finds_parts(model) and not is_two_stage(model) else 2))


def through_resize(args: argparse.Namespace, split: Split, own: MaskedClassifier | None) -> ThroughResize | None:
    """The check of `--through-resize`. Raises UserError for a model that selects no patches."""
    if args.through_resize and own is None:
        raise UserError("--through-resize needs a --run that selects patches, such as a two-stage one")
    return ThroughResize(split, own) if args.through_resize and own else None


def read_masked_classifier(
    folder: Path, run: RunContext, split: Split, auto_batch: AutoBatchSize, precision: torch.dtype
) -> MaskedClassifier:
    """The two-stage run `folder`, to classify the images of `run` with maps as masks."""
    config = run_config(folder)
    if trained := trained_on(folder):
        check_same_classes(split.info, trained, f"--masks-for: {folder}")
    model = load_run_model(folder, config, "best", split.info.num_outputs)
    if not selects_patches(model):
        raise UserError(f"--masks-for: {folder} is not a two-stage run; only those classify with a given mask")
    if config.data.size_hw != run.config.data.size_hw:
        sizes = f"{config.data.size_hw}, not {run.config.data.size_hw}"
        raise UserError(
            f"--masks-for: {folder} takes images of {sizes} pixels; give a run with the same data.image_size"
        )
    return MaskedClassifier(model.to(run.device).eval(), run.config.data, config.data, auto_batch, precision)


def map_provenance(config: RunConfig, split: str, stage: int, model: nn.Module) -> dict[str, Any]:
    """Everything that determines the maps, except the methods."""
    data = asdict(config.data)
    images = (
        "name", "variant", "output_rule", "image_folder", "exif", "evaluation", "interpolation", "crop", "mean", "std",
        "seed", "val_fraction", "synthetic",
    )  # fmt: skip
    return {
        "weights": fingerprint(model), "stage": stage, "split": split, "image size": config.data.size_hw,
        **{f"data.{key}": data[key] for key in images},
    }  # fmt: skip
