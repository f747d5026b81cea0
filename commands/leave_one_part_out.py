"""`evaluate.py --leave-one-part-out`: all metrics without part 0, without part 1, ..."""

import argparse

from rich.console import Console

from commands.prediction_visualizer import PredictionVisualizer
from common.errors import UserError
from common.processes import processes
from engine.evaluation.interventions import check_parts, read_thresholds, require_two_stage
from engine.evaluation.loading import fingerprint, load_run_model, read_split
from engine.evaluation.loop import split_loader
from engine.evaluation.part_removal import UNMODIFIED, measure, removal_settings
from engine.run.folder import CONFIG_FILE, RESULTS, run_config
from engine.run.machine import PRECISIONS, prepare_process, provenance
from engine.run.tracking import progress_bar
from metrics.registry import build_metrics, default_metrics
from report.evaluation import write_removal_report
from report.files import check_folder, json_text, write_atomic


def leave_one_part_out(args: argparse.Namespace, overrides: list[str]) -> None:
    """The unmodified run, then without each part: a table rows x metrics, an image of what went, report."""
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
    with progress_bar(Console(quiet=not processes().is_main), "leave one part out", len(loader)) as advance:
        precision = PRECISIONS[config.train.precision]
        changed = measure(model, loader, settings, metrics, device, precision, advance)

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
    details = {
        "run": str(args.run), "checkpoint": args.checkpoint, "fingerprint": fingerprint(model), "split": args.split,
        "split_origin": split.info.split_origin, "images": len(split),
        "thresholds": args.thresholds and str(args.thresholds), "fixed_parts": args.fixed_parts,
        "provenance": provenance(),
    }  # fmt: skip
    write_atomic(out / RESULTS, json_text({**details, "rows": records}))
    visualizer = PredictionVisualizer(split, config.data.mean, config.data.std)
    sheet = visualizer.removals(model, settings, out / "sheet.png")
    text = (args.run / CONFIG_FILE).read_text()
    report = write_removal_report(out, f"{args.run.name}: {args.split}, parts removed", records, sheet, details, text)
    print(f"{len(split)} images, {len(settings)} rows: look at {report}")
