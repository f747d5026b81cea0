"""`evaluate.py --method`: explanation methods on a run or any timm ViT, from the flags to the report."""

import argparse
import contextlib
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import yaml
from rich.console import Console
from torch import nn

from commands.method_flags import check_flags, read_metric_options
from commands.method_outputs import ExampleCollector, method_records, write_per_image
from common.errors import UserError
from common.processes import processes
from datasets import Split, collate
from engine.evaluation.loading import fingerprint, load_run_model, read_split
from engine.evaluation.loop import split_loader
from engine.explanation.evaluator import ExplanationEvaluator, chosen_methods, options_of
from engine.explanation.map_metrics import build_map_metrics, wanted_metrics
from engine.explanation.map_store import MapProvenance, MapReader, MapWriter
from engine.explanation.masked_classifier import MaskedClassifier
from engine.explanation.model_checks import ModelChecks
from engine.run.command_line import parse_config
from engine.run.config import RunConfig
from engine.run.folder import RESULTS, run_config
from engine.run.machine import prepare_process, provenance
from engine.run.memory import AutoBatchSize
from engine.run.stopping import sigterm_unwinds
from engine.run.tracking import progress_bar
from explain.loading import load_timm, patch_size
from models.interface import Stage, finds_parts, is_two_stage
from report.explanations import HEADLINES, method_sheet, write_explanation_report
from report.files import check_folder, json_text, write_atomic


def evaluate_methods(args: argparse.Namespace, overrides: list[str]) -> None:
    """Explanation methods on a run or a timm ViT: a table methods x metrics, their maps, report.

    Of several processes each measures a block of neighbouring images, and the first one writes.
    """
    # 1. model and data
    check_flags(args)
    out = check_folder(
        args.out or (args.run or Path("runs") / args.model) / "evaluation" / f"{args.split}-methods", "--out"
    )
    config, split, model = method_subject(args, overrides)
    device = prepare_process(config)
    model = model.to(device).eval()
    sample = collate([split[0]]).to(device)

    # 2. methods and metrics
    console = Console(highlight=False, quiet=not processes().is_main)
    say = partial(console.print, soft_wrap=True, markup=False)
    stage = explained_stage(args, model)
    methods = chosen_methods(args.method, vars(args), model, sample.image, stage, say)
    halving = AutoBatchSize(config.data.eval_batch_size, say)
    own = MaskedClassifier(model, config.data, config.data, halving) if is_two_stage(model) else None
    judge = read_masked_classifier(args.masks_for, config, split, model, halving) if args.masks_for else own
    wanted = wanted_metrics(args.metrics, sample, judge is not None)
    protocol = read_metric_options(args, config.data, patch_size(model), judge)
    metrics = {name: build_map_metrics(wanted.maps, split.info, protocol) for name in methods}

    # 3. measure
    source = MapProvenance(map_provenance(config, args.split, stage, model), options_of(methods))
    bench = ExplanationEvaluator(model, methods, metrics, halving, split.info, stage)
    checks, gallery = ModelChecks(split, wanted, protocol, bench.predict, own, judge), ExampleCollector(split, protocol)
    loader, start = split_loader(split, config.data), processes().block(len(split)).start
    if 0 < start < len(split):
        previous = collate([split[start - 1]]).to(device)
        bench.start_after(previous)
        checks.start_after(previous)
    bench.reader = MapReader(args.maps, source) if args.maps else None
    with contextlib.ExitStack() as stack:
        if args.save_maps:
            stack.enter_context(sigterm_unwinds())
            bench.writer = stack.enter_context(MapWriter(args.save_maps, source))
        advance = stack.enter_context(progress_bar(console, "explain", len(loader)))
        bench.run(loader, device, [checks, gallery, lambda batch, *_: advance(len(batch))], start)

    # 4. write
    records = method_records(bench, checks.rows())
    model_metrics, shown = checks.model_results(), gallery.images()
    write_per_image(out, bench)
    if not processes().is_main:
        return
    details = {
        "model": str(args.run or args.model), "checkpoint": args.checkpoint if args.run else args.weights or "hub",
        "data": config.data.name, "split": args.split, "split_origin": split.info.split_origin,
        "images": len(split), "stage": stage,
        "masks_for": args.masks_for and str(args.masks_for), "maps": args.maps and str(args.maps),
        "model_metrics": model_metrics, "methods": source.methods,
        "protocol": {name: metric.protocol() for name, metric in metrics[next(iter(metrics))].items()}
        | checks.protocols(), "provenance": provenance(),
    }  # fmt: skip
    write_atomic(out / RESULTS, json_text({**details, "rows": records}))
    sheet = method_sheet(shown, out / "sheet.png")
    title, text = f"Explanations of {args.run or args.model}", yaml.safe_dump(asdict(config), sort_keys=False)
    report = write_explanation_report(out, title, records, HEADLINES, sheet, details, text)
    say(f"{len(split)} images, {len(methods)} methods: look at {report}")


def method_subject(args: argparse.Namespace, overrides: list[str]) -> tuple[RunConfig, Split, nn.Module]:
    """The model to explain, the data it is explained on, and their config."""
    if args.run:
        config = run_config(args.run, overrides)
        split = read_split(config, args.split, args.limit)
        return config, split, load_run_model(args.run, config, args.checkpoint, split.info.num_outputs)
    place, _, name = args.model.partition("/")
    if place != "timm" or not name:
        raise UserError(f"--model: {args.model!r}; write timm/NAME, or --run DIR for a folder that train.py wrote")
    sized = any(flag.partition("=")[0] == "--data.image_size" for flag in overrides)
    found = load_timm(name, args.weights or "hub", parse_config(overrides).data.size_hw if sized else None)
    made_for = {"image_size": found.size, "mean": found.mean, "std": found.std}
    config = parse_config([*(f"--data.{key}={list(value)}" for key, value in made_for.items()), *overrides])
    split = read_split(config, args.split, args.limit)
    if split.info.num_outputs != found.num_classes:
        raise UserError(
            f"--model: {name} knows {found.num_classes} classes, data set {config.data.name} has "
            f"{split.info.num_outputs}; give --weights FILE with a classifier for it, or evaluate a --run"
        )
    return config, split, found.model


def explained_stage(args: argparse.Namespace, model: nn.Module) -> Stage:
    """--stage. Raises UserError where a stage of a model without stages is asked for."""
    if args.stage and not is_two_stage(model):
        raise UserError("--stage needs a two-stage run: this model has no stages")
    return cast(Stage, args.stage or (1 if finds_parts(model) and not is_two_stage(model) else 2))


def read_masked_classifier(
    run: Path, config: RunConfig, split: Split, model: nn.Module, halving: AutoBatchSize
) -> MaskedClassifier:
    """The two-stage model of `run`, to be shown masks on the images of `config`, on the device of `model`."""
    own = run_config(run)
    judge = load_run_model(run, own, "best", split.info.num_outputs)
    if not is_two_stage(judge):
        raise UserError(f"--masks-for: {run} is a plain ViT, which cannot be shown a mask")
    if own.data.size_hw != config.data.size_hw:
        raise UserError(f"--masks-for: {run} takes images of {own.data.size_hw}, not of {config.data.size_hw}")
    return MaskedClassifier(judge.to(next(model.parameters()).device).eval(), config.data, own.data, halving)


def map_provenance(config: RunConfig, split: str, stage: int, model: nn.Module) -> dict[str, Any]:
    """All but the methods that decides how a map looks."""
    data = asdict(config.data)
    images = (
        "name", "variant", "output_rule", "image_folder", "evaluation", "mean", "std", "seed", "val_fraction",
        "synthetic",
    )  # fmt: skip
    return {
        "weights": fingerprint(model), "stage": stage, "split": split, "image size": config.data.size_hw,
        **{f"data.{key}": data[key] for key in images},
    }  # fmt: skip
