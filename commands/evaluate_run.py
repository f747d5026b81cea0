"""`evaluate.py` without `--method`: measure a run or a pretrained classifier on one split."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from commands.prediction_visualizer import PredictionVisualizer
from commands.pretrained import PretrainedClassifier, check_classes, open_pretrained
from commands.run_context import RunContext, check_mode
from common.errors import UserError
from common.metric_info import headlines
from common.processes import processes
from datasets import Split
from engine.evaluation.interventions import read_intervention
from engine.evaluation.loading import read_fit_split, read_split
from engine.evaluation.loop import evaluate, split_loader
from engine.evaluation.part_maps import PartMapWriter
from engine.evaluation.records import PREDICTIONS_FILE, PredictionTable, RecordCollector
from engine.run.folder import METRICS_FILE
from engine.run.stopping import sigterm_unwinds
from engine.run.tracking import read_rows
from metrics.registry import build_metrics, default_metrics
from models.interface import finds_parts, gives_mask
from report.evaluation import write_evaluation_report
from report.files import write_atomic

FAILURES = "failures.png"


def evaluate_run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Write metrics, predictions, contact sheets and the report of a run on a split."""
    # 1. model and data
    run, split, model = open_run(args, overrides) if args.run else open_model(args, overrides)

    # 2. metrics
    sample = split[0] if finds_parts(model) else None
    names = args.metrics or default_metrics(split.info, gives_mask(model), sample)
    if args.model and not args.metrics and not split.info.multi_label:
        names = (*names, "calibration")
    metrics = build_metrics(names, split.info)
    intervention = read_intervention(args.thresholds, args.remove_parts, model)
    options: dict[str, Any] = {"intervention": intervention} if intervention else {}

    # 3. measure
    recorder, predictions, started = RecordCollector(), PredictionTable(split.info), time.perf_counter()
    fit_split = read_fit_split(run.config, args.limit, metrics.to_fit, args.run) if metrics.to_fit else None
    with part_map_writer(args, run, split, model) as writer:
        results = evaluate(
            model, split_loader(split, run.config.data, run.device), metrics, run.device, run.precision,
            observers=[recorder, predictions, *([writer] if writer else [])], options=options,
            training=split_loader(fit_split, run.config.data, run.device) if fit_split else (),
        )  # fmt: skip
    records, table = recorder.gathered(), predictions.csv()  # gathered: every process must take part
    if not processes().is_main:
        return

    # 4. write
    details = run.details(
        split=args.split, split_origin=split.info.split_origin, images=len(split),
        seconds=time.perf_counter() - started,
        interventions={
            "remove_parts": args.remove_parts, "thresholds": str(args.thresholds) if args.thresholds else None,
        },
        fitted=fit_split and {"metrics": metrics.to_fit, "split": "train", "images": len(fit_split)},
    )  # fmt: skip
    run.write_results({**{f"{args.split}/{key}": value for key, value in results.items()}, **details})
    write_atomic(run.out / PREDICTIONS_FILE, table)
    visualizer = PredictionVisualizer(split, *run.config.data.normalisation)
    sheet = visualizer.sheet(model, run.out / "sheet.png", **options)
    failures = visualizer.failures(model, records, run.out / FAILURES, **options)
    if failures is None:  # that of an earlier evaluation in the same folder
        (run.out / FAILURES).unlink(missing_ok=True)
    title = f"{args.run.name if args.run else args.model}: {args.split}"
    history = read_rows(args.run / METRICS_FILE) if args.run else []
    report = write_evaluation_report(run.out, title, results, details, history, sheet, failures, run.config_text)
    shown = ", ".join(f"{name} {results[name]:.4f}" for name in headlines(results))
    print(f"{args.split}, {len(split)} images: {shown}")
    print(f"report: {report}")


@contextmanager
def part_map_writer(
    args: argparse.Namespace, run: RunContext, split: Split, model: nn.Module
) -> Iterator[PartMapWriter | None]:
    """The observer of `--save-part-maps`; None without the flag. Raises UserError for a model without parts."""
    if not args.save_part_maps:
        yield None
        return
    if not finds_parts(model):
        raise UserError("--save-part-maps needs a run with parts: model.name two_stage or pdiscoformer")
    data = run.config.data
    source = {
        "run": str(run.source), "checkpoint": run.checkpoint, "split": args.split, "limit": args.limit,
        "remove_parts": args.remove_parts, "thresholds": args.thresholds and str(args.thresholds),
        "data": data.name, "image_size": data.size_hw, "evaluation": data.evaluation,
        "interpolation": data.interpolation, "crop": data.crop,
    }  # fmt: skip
    # A stopped job leaves no partial file behind.
    with sigterm_unwinds(), PartMapWriter(args.save_part_maps, split.info, source) as writer:
        yield writer
    print(f"part maps: {args.save_part_maps}")


def open_run(args: argparse.Namespace, overrides: list[str]) -> tuple[RunContext, Split, nn.Module]:
    """The run `--run`, the split, and the model."""
    run = RunContext.open(args, overrides, f"evaluation/{args.split}")
    check_mode(run.out, PREDICTIONS_FILE)
    split = read_split(run.config, args.split, args.limit, args.run)
    return run, split, run.load_model(split.info)


def open_model(args: argparse.Namespace, overrides: list[str]) -> tuple[RunContext, Split, nn.Module]:
    """The same for `--model`."""
    run, split, found = open_pretrained(
        args, overrides, f"evaluation/{args.split}", lambda config: read_split(config, args.split, args.limit)
    )
    check_mode(run.out, PREDICTIONS_FILE)
    check_classes(found, args.model, split.info)
    return run, split, PretrainedClassifier(found.model)
