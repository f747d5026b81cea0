"""Measure a trained run on a split, or explanation methods on a run or any timm ViT.

    python evaluate.py --run runs/quickstart/two_stage-seed0
    python evaluate.py --run runs/waterbirds-k8 --split val --metrics accuracy groups --data.root /data/CUB_200_2011
    python evaluate.py --run runs/waterbirds-k8 --leave-one-part-out
    python evaluate.py --run runs/quickstart/vit-seed0 --method all --limit 100
    python evaluate.py --model timm/vit_base_patch16_224 --method lrp --data.name imagenet --data.root /data/ilsvrc

Any key of the run's config can be overridden by a flag. Writes results.json, tables, every image's answer
(answers.csv), contact sheets and a self-contained report.html to RUN/evaluation/SPLIT (or --out); with --method to
RUN/evaluation/SPLIT-methods, with --leave-one-part-out to RUN/evaluation/SPLIT-leave-one-part-out. Two evaluations of
one checkpoint on the CPU are equal to the last bit. Several processes share the images:
torchrun --nproc-per-node 8 -- evaluate.py ... (docs/cluster.md).
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from common.errors import UserError, exit_on_user_error
from common.flags import Parser
from common.processes import processes
from datasets.types import SPLITS
from engine.answers import ANSWERS, Answers
from engine.distributed import across_processes
from engine.evaluation import Recorder, evaluate, split_loader
from engine.given_masks import hands_out_mask
from engine.interventions import add_flags as add_intervention_flags
from engine.interventions import check_flags as check_intervention_flags
from engine.interventions import read_intervention
from engine.leave_one_out import leave_one_part_out
from engine.loading import load_run_model, read_fit_split, read_split
from engine.map_metrics import KNOWN
from engine.method_evaluation import evaluate_methods
from engine.method_flags import add_flags
from engine.pictures import Photographer
from engine.runs import CONFIG_FILE, METRICS_FILE, RESULTS, prepare_process, provenance, run_config
from engine.tracking import read_rows
from engine.trainer import PRECISIONS
from explain import METHODS
from explain.options import add_options
from metrics.registry import METRICS, build_metrics, default_metrics
from report.evaluation import HEADLINES, write_evaluation_report
from report.files import check_folder, json_text, write_atomic


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """Known flags, and the rest: overrides of the config. With --method there are other flags than without."""
    words = {word.partition("=")[0] for word in sys.argv}
    with_method, helped = "--method" in words, bool({"-h", "--help"} & words)
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="folder that train.py wrote")
    source.add_argument("--model", metavar="timm/NAME", help="any timm ViT with its classifier; needs --method")
    parser.add_argument("--method", nargs="+", metavar="NAME", help=f"all, or some of {', '.join(METHODS)}")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument(
        "--metrics", nargs="+", metavar="NAME",
        help=f"default: all that apply; of a run {', '.join(METRICS)}; of methods {', '.join(KNOWN)}",
    )  # fmt: skip
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    parser.add_argument("--limit", type=int, metavar="N", help="a sample of N images, always the same ones")
    parser.add_argument("--out", type=Path, help="default: RUN/evaluation/SPLIT (see above)")
    if helped or not with_method:
        add_intervention_flags(parser)
    if helped or with_method:  # the methods' --compat is not the config's
        add_flags(parser)
        add_options(parser)
    return parser.parse_known_args()


def evaluate_run(args: argparse.Namespace, overrides: list[str]) -> None:
    """A trained run on a split: figures, sheets, report."""
    # 1. run and data
    out = check_folder(args.out or args.run / "evaluation" / args.split, "--out")
    config = run_config(args.run, overrides)
    device = prepare_process(config)
    split = read_split(config, args.split, args.limit)

    # 2. model and metrics
    model = load_run_model(args.run, config, args.checkpoint, split.info.num_outputs).to(device)
    sample = split[0] if hasattr(model, "select") else None
    names = args.metrics or default_metrics(split.info, hands_out_mask(model), sample)
    metrics = build_metrics(names, split.info)
    intervention = read_intervention(args.thresholds, args.remove_parts, model)
    options: dict[str, Any] = {"intervention": intervention} if intervention else {}

    # 3. measure
    recorder, answers, started = Recorder(), Answers(split.info), time.perf_counter()
    fit_split = read_fit_split(config, args.limit, metrics.to_fit) if metrics.to_fit else None
    figures = evaluate(
        model, split_loader(split, config.data), metrics, device, PRECISIONS[config.train.precision],
        observers=[recorder, answers], options=options,
        training=split_loader(fit_split, config.data) if fit_split else (),
    )  # fmt: skip
    records, table = recorder.everyone(), answers.csv()
    if not processes().first:
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
    content = {**{f"{args.split}/{key}": value for key, value in figures.items()}, **details}
    write_atomic(out / RESULTS, json_text(content))
    write_atomic(out / ANSWERS, table)
    photographer = Photographer(split, config.data.mean, config.data.std)
    sheet = photographer.sheet(model, out / "sheet.png", **options)
    failures = photographer.failures(model, records, out / "failures.png", **options)
    history, text = read_rows(args.run / METRICS_FILE), (args.run / CONFIG_FILE).read_text()
    title = f"{args.run.name}: {args.split}"
    report = write_evaluation_report(out, title, figures, details, history, sheet, failures, text)
    headlines = ", ".join(f"{name} {figures[name]:.4f}" for name in HEADLINES if name in figures)
    print(f"{args.split}, {len(split)} images: {headlines}")
    print(f"look at {report}")


@exit_on_user_error
@across_processes
def main() -> None:
    """Command line."""
    args, overrides = parse_args()
    if args.method:
        evaluate_methods(args, overrides)
    elif args.model:
        raise UserError("--model needs --method: without one, a --run is measured")
    else:
        check_intervention_flags(args)
        (leave_one_part_out if args.leave_one_part_out else evaluate_run)(args, overrides)


if __name__ == "__main__":
    main()
