"""The flags of `evaluate.py --method` that are not a method's own options."""

import argparse
from pathlib import Path

from common.errors import UserError
from common.processes import processes
from datasets.config import DataConfig
from engine.explanation.map_metrics import MapMetricOptions
from engine.explanation.masked_classifier import MaskedClassifier


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What goes with `--method`."""
    group = parser.add_argument_group("with --method")
    group.add_argument("--weights", help="for --model: hub (default), none or a file with the classifier")
    group.add_argument("--stage", type=int, choices=(1, 2), help="stage of a two-stage run to explain; default: 2")
    group.add_argument("--masks-for", type=Path, metavar="RUN", help="two-stage run to be shown the maps as masks")
    group.add_argument("--save-maps", type=Path, metavar="FILE.h5")
    group.add_argument("--maps", type=Path, metavar="FILE.h5", help="read what --save-maps wrote instead of computing")
    _add_metric_options(parser.add_argument_group("options of map metrics"))


def _add_metric_options(group: argparse._ArgumentGroup) -> None:
    removal = "abpc, perturbation, insertion_deletion: "
    group.add_argument(
        "--threshold", type=_threshold, default=0.5, help="localization: in [0, 1), or mean (of each map)"
    )
    group.add_argument(
        "--edges", choices=("exact", "inclusive"), default="exact", help="localization: inclusive is the published code"
    )
    group.add_argument("--tolerance", type=float, default=0.0, help="pointing: pixels around the object that count")
    group.add_argument("--removal-steps", type=int, default=10, metavar="N", help=removal + "steps to a covered image")
    group.add_argument(
        "--removal-fill", choices=("grey", "black", "mean", "blur"), help=removal + "default: the published one"
    )
    group.add_argument(
        "--removal-cell", type=int, default=1, metavar="PIXELS", help=removal + "side of what is covered at a time"
    )
    group.add_argument(
        "--kept", type=float, metavar="SHARE",
        help="certificate: patches that a map calls relevant (0.25; with a two-stage run, as many as it keeps itself)",
    )  # fmt: skip


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError for values out of range and flags that contradict each other."""
    # A comparison with nan is false, so each is put as what must hold.
    fine = {
        "--threshold must be in [0, 1), or mean": args.threshold is None or 0 <= args.threshold < 1,
        "--tolerance must be 0 or more pixels": args.tolerance >= 0,
        "--removal-steps must be at least 2": args.removal_steps >= 2,
        "--removal-cell must be at least 1 pixel": args.removal_cell >= 1,
        "--kept must be in [0, 1]": args.kept is None or 0 <= args.kept <= 1,
        "--save-maps and --maps contradict each other: what is read is not written": not (args.save_maps and args.maps),
        "--save-maps works in one process: start evaluate.py with python; --maps reads the file in several": not (
            args.save_maps and processes().is_distributed
        ),
        "--weights goes with --model; a run has its own": not (args.weights and args.run),
    }
    for problem, holds in fine.items():
        if not holds:
            raise UserError(problem)


def read_metric_options(
    args: argparse.Namespace, data: DataConfig, patch_size: int, judge: MaskedClassifier | None
) -> MapMetricOptions:
    """The options of the metrics. Raises UserError for a cell that does not divide the images."""
    if any(side % args.removal_cell for side in data.size_hw):
        raise UserError(f"--removal-cell: {args.removal_cell} pixels do not divide images of {data.size_hw}")
    return MapMetricOptions(
        mean=data.mean,
        std=data.std,
        patch=patch_size,
        threshold=args.threshold,
        edges=args.edges,
        steps=args.removal_steps,
        fill=args.removal_fill,
        cell=args.removal_cell,
        tolerance=args.tolerance,
        kept=args.kept if args.kept is not None else judge.keep_ratio if judge else 0.25,
    )


def _threshold(text: str) -> float | None:
    try:
        return None if text == "mean" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor mean") from None
