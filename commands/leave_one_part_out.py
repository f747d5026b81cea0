"""`evaluate.py --leave-one-part-out`: all metrics without part 0, without part 1, ..."""

import argparse

from commands.prediction_visualizer import PredictionVisualizer
from commands.run_context import RunContext
from common.errors import UserError
from common.processes import processes
from engine.evaluation.interventions import check_parts, read_thresholds, require_two_stage
from engine.evaluation.loading import fingerprint, read_split
from engine.evaluation.loop import split_loader
from engine.evaluation.part_removal import UNMODIFIED, measure, removal_settings
from metrics.registry import build_metrics, default_metrics
from report.evaluation import write_removal_report


def leave_one_part_out(args: argparse.Namespace, overrides: list[str]) -> None:
    """Write a table with one row per removed part, a contact sheet and the report of a two-stage run."""
    # 1. run and data
    run = RunContext.open(args, overrides, f"evaluation/{args.split}-leave-one-part-out")
    split = read_split(run.config, args.split, args.limit, args.run)

    # 2. model, settings and metrics
    model = require_two_stage(run.load_model(split.info))
    parts = model.model_config.parts.num_parts
    check_parts(args.fixed_parts, parts, "--fixed-parts")
    settings = removal_settings(parts, args.fixed_parts, read_thresholds(args.thresholds, model))
    names = args.metrics or default_metrics(split.info, has_mask=True)
    metrics = {row: build_metrics(names, split.info) for row in settings}
    if to_fit := metrics[UNMODIFIED].to_fit:
        raise UserError(
            f"--metrics: {', '.join(to_fit)} depends on the part maps alone, which removing a part does not change"
        )

    # 3. measure
    loader = split_loader(split, run.config.data, run.device)
    with run.progress("leave one part out", len(loader)) as advance:
        changed = measure(model, loader, settings, metrics, run.device, run.precision, advance)

    # 4. write
    records = [
        {
            "row": row,
            "removed_parts": " ".join(map(str, settings[row].remove_parts)),
            **metrics[row].compute(),
            "changed_predictions_ratio": changed[row] / len(split),
        }
        for row in settings
    ]
    if not processes().is_main:
        return
    details = run.details(
        fingerprint=fingerprint(model), split=args.split, split_origin=split.info.split_origin, images=len(split),
        thresholds=args.thresholds and str(args.thresholds), fixed_parts=args.fixed_parts,
    )  # fmt: skip
    run.write_results({**details, "rows": records})
    visualizer = PredictionVisualizer(split, *run.config.data.normalisation)
    sheet = visualizer.removals(model, settings, run.out / "sheet.png")
    title = f"{args.run.name}: {args.split}, parts removed"
    report = write_removal_report(run.out, title, records, sheet, details, run.config_text)
    print(f"{len(split)} images, {len(settings)} rows; report: {report}")
