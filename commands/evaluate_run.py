"""`evaluate.py` without `--method`: a trained run on one split, from the flags to the report."""

import argparse
import time
from typing import Any

from commands.prediction_visualizer import PredictionVisualizer
from common.processes import processes
from engine.evaluation.interventions import read_intervention
from engine.evaluation.loading import load_run_model, read_fit_split, read_split
from engine.evaluation.loop import evaluate, split_loader
from engine.evaluation.records import PREDICTIONS_FILE, PredictionTable, Recorder
from engine.run.folder import CONFIG_FILE, METRICS_FILE, RESULTS, run_config
from engine.run.machine import PRECISIONS, prepare_process, provenance
from engine.run.tracking import read_rows
from metrics.registry import build_metrics, default_metrics
from models.interface import gives_mask
from report.evaluation import HEADLINES, write_evaluation_report
from report.files import check_folder, json_text, write_atomic


def evaluate_run(args: argparse.Namespace, overrides: list[str]) -> None:
    """A trained run on a split: metrics, sheets, report."""
    # 1. run and data
    out = check_folder(args.out or args.run / "evaluation" / args.split, "--out")
    config = run_config(args.run, overrides)
    device = prepare_process(config)
    split = read_split(config, args.split, args.limit)

    # 2. model and metrics
    model = load_run_model(args.run, config, args.checkpoint, split.info.num_outputs).to(device)
    sample = split[0] if model.finds_parts else None
    names = args.metrics or default_metrics(split.info, gives_mask(model), sample)
    metrics = build_metrics(names, split.info)
    intervention = read_intervention(args.thresholds, args.remove_parts, model)
    options: dict[str, Any] = {"intervention": intervention} if intervention else {}

    # 3. measure
    recorder, predictions, started = Recorder(), PredictionTable(split.info), time.perf_counter()
    fit_split = read_fit_split(config, args.limit, metrics.to_fit) if metrics.to_fit else None
    results = evaluate(
        model, split_loader(split, config.data), metrics, device, PRECISIONS[config.train.precision],
        observers=[recorder, predictions], options=options,
        training=split_loader(fit_split, config.data) if fit_split else (),
    )  # fmt: skip
    records, table = recorder.everyone(), predictions.csv()
    if not processes().is_main:
        return

    # 4. write
    details = {
        "run": str(args.run), "checkpoint": args.checkpoint, "split": args.split,
        "split_origin": split.info.split_origin, "images": len(split),
        "seconds": time.perf_counter() - started, "interventions": {"remove_parts": args.remove_parts,
        "thresholds": str(args.thresholds) if args.thresholds else None},
        "fitted": fit_split and {"metrics": metrics.to_fit, "split": "train", "images": len(fit_split)},
        "provenance": provenance(),
    }  # fmt: skip
    content = {**{f"{args.split}/{key}": value for key, value in results.items()}, **details}
    write_atomic(out / RESULTS, json_text(content))
    write_atomic(out / PREDICTIONS_FILE, table)
    visualizer = PredictionVisualizer(split, config.data.mean, config.data.std)
    sheet = visualizer.sheet(model, out / "sheet.png", **options)
    failures = visualizer.failures(model, records, out / "failures.png", **options)
    history, text = read_rows(args.run / METRICS_FILE), (args.run / CONFIG_FILE).read_text()
    title = f"{args.run.name}: {args.split}"
    report = write_evaluation_report(out, title, results, details, history, sheet, failures, text)
    headlines = ", ".join(f"{name} {results[name]:.4f}" for name in HEADLINES if name in results)
    print(f"{args.split}, {len(split)} images: {headlines}")
    print(f"look at {report}")
