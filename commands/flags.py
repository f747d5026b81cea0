"""Command-line flags of `evaluate.py`, some of which other commands share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from datasets.config import DataConfig

if TYPE_CHECKING:  # slow to import, and not needed for --help
    from engine.explanation.map_metrics import MapMetricOptions
    from engine.explanation.masked_classifier import MaskedClassifier


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """`--run`, or `--model` with `--weights`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="run folder written by train.py")
    source.add_argument("--model", metavar="NAME", help="a classifier: timm/NAME, torchvision/NAME or hf/NAME")
    parser.add_argument(
        "--weights", help="of --model: hub (default), none, or a checkpoint file that includes the classifier"
    )


def check_source_flags(args: argparse.Namespace) -> None:
    """Raise UserError for `--weights` of a run."""
    if args.weights and args.run:
        raise UserError("--weights needs --model; a --run has its own weights")


def add_output_flags(parser: argparse.ArgumentParser, default_out: str) -> None:
    """`--checkpoint`, `--limit` and `--out`; `default_out`: the default folder, for --help."""
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="weights to use; default: best")
    parser.add_argument("--limit", type=int, metavar="N", help="measure a random sample of N images, always the same")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"output folder; default: {default_out}")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags without `--method`: part maps to save, parts or patches of a two-stage run to hide at test time."""
    group = parser.add_argument_group("without --method")
    group.add_argument(
        "--thresholds", type=Path, metavar="FILE", help="part-logit thresholds from commands.part_thresholds"
    )
    group.add_argument(
        "--remove-parts", type=int, nargs="+", default=[], metavar="K", help="parts to hide, numbered from 0"
    )
    group.add_argument(
        "--leave-one-part-out", action="store_true", help="table of all metrics without part 0, without part 1, ..."
    )
    group.add_argument(
        "--fixed-parts", type=int, nargs="+", default=[], metavar="K",
        help="with --leave-one-part-out: parts to hide in every row",
    )  # fmt: skip
    group.add_argument(
        "--save-part-maps", type=Path, metavar="FILE.h5", help="save part maps and masks of all images (docs/parts.md)"
    )


def check_run_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags without --method that contradict each other."""
    from common.processes import processes

    if args.leave_one_part_out and args.remove_parts:
        raise UserError("--remove-parts contradicts --leave-one-part-out; use --fixed-parts for parts to hide always")
    if args.leave_one_part_out and args.model:
        raise UserError("--leave-one-part-out needs a two-stage --run: a --model has no parts")
    if args.fixed_parts and not args.leave_one_part_out:
        raise UserError("--fixed-parts needs --leave-one-part-out; without it, use --remove-parts")
    if args.save_part_maps and args.leave_one_part_out:
        raise UserError("--save-part-maps contradicts --leave-one-part-out, which has no maps of its own; leave it out")
    if args.save_part_maps and processes().is_distributed:
        raise UserError("--save-part-maps works in one process only: start evaluate.py with python")


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `--method`, except the methods' own options."""
    group = parser.add_argument_group("with --method")
    group.add_argument("--stage", type=int, choices=(1, 2), help="stage of a two-stage run to explain; default: 2")
    group.add_argument(
        "--masks-for", type=Path, metavar="RUN", help="two-stage run that classifies the images with the maps as masks"
    )
    group.add_argument(
        "--predict-precision", choices=("fp32", "bf16", "fp16"), default="fp32",
        help="of predictions and of the forward passes of metrics; maps are always computed in fp32; default: fp32",
    )  # fmt: skip
    group.add_argument(
        "--through-resize", action="store_true",
        help="of a two-stage run: overwrite what its mask hides in the image file, before it is resized",
    )  # fmt: skip
    group.add_argument("--save-maps", type=Path, metavar="FILE.h5", help="save the maps")
    group.add_argument("--maps", type=Path, metavar="FILE.h5", help="read saved maps instead of computing them")
    _add_metric_options(parser.add_argument_group("options of map metrics"))


def _add_metric_options(group: argparse._ArgumentGroup) -> None:
    removal = "abpc, perturbation, insertion_deletion: "
    group.add_argument(
        "--threshold", type=_threshold, default=0.5, help="localization: in [0, 1), or mean (of each map); default: 0.5"
    )
    group.add_argument(
        "--edges", choices=("exact", "inclusive"), default="exact",
        help="localization: which pixels a box contains; inclusive: as in the published code; default: exact",
    )  # fmt: skip
    group.add_argument(
        "--tolerance", type=float, default=0.0, metavar="PIXELS",
        help="pointing: distance from the object that still counts as a hit; default: 0",
    )  # fmt: skip
    group.add_argument(
        "--removal-steps", type=int, default=10, metavar="N",
        help=removal + "steps to a fully covered image; default: 10",
    )  # fmt: skip
    group.add_argument(
        "--removal-fill", choices=("grey", "black", "mean", "blur"),
        help=removal + "what covers; default: the published one",
    )  # fmt: skip
    group.add_argument(
        "--removal-cell", type=int, default=1, metavar="PIXELS",
        help=removal + "side of the covered squares; default: 1",
    )  # fmt: skip
    group.add_argument(
        "--ties", choices=("position", "published"), default="position",
        help="abpc: order of equal values: row-major position, or as the published code leaves them; default: position",
    )  # fmt: skip
    group.add_argument(
        "--keep-ratio", type=float, metavar="RATIO",
        help="certificate: fraction of patches to keep; default: 0.25, or what the two-stage run keeps of each image",
    )  # fmt: skip


def check_method_flags(args: argparse.Namespace) -> None:
    """Raise UserError for values out of range and flags that contradict each other."""
    from common.processes import processes

    # Each line is the condition that must hold: comparisons with nan are false, so nan is refused too.
    valid = {
        "--threshold must be in [0, 1), or mean": args.threshold is None or 0 <= args.threshold < 1,
        "--tolerance must be 0 or more pixels": args.tolerance >= 0,
        "--removal-steps must be at least 2": args.removal_steps >= 2,
        "--removal-cell must be at least 1 pixel": args.removal_cell >= 1,
        "--keep-ratio must be in [0, 1]": args.keep_ratio is None or 0 <= args.keep_ratio <= 1,
        "--save-maps contradicts --maps: maps that are read are saved already": not (args.save_maps and args.maps),
        "--save-maps works in one process only: start evaluate.py with python (--maps works in several)": not (
            args.save_maps and processes().is_distributed
        ),
    }
    for problem, holds in valid.items():
        if not holds:
            raise UserError(problem)


def read_metric_options(
    args: argparse.Namespace, data: DataConfig, patch_size: int, masked_classifier: "MaskedClassifier | None"
) -> "MapMetricOptions":
    """The options of the map metrics. Raises UserError if --removal-cell does not divide the image size."""
    from engine.explanation.map_metrics import MapMetricOptions

    if any(side % args.removal_cell for side in data.size_hw):
        raise UserError(f"--removal-cell: {args.removal_cell} pixels do not divide images of {data.size_hw}")
    default_ratio = masked_classifier.keep_ratio if masked_classifier else 0.25
    return MapMetricOptions(
        mean=data.normalisation[0],
        std=data.normalisation[1],
        patch=patch_size,
        threshold=args.threshold,
        edges=args.edges,
        steps=args.removal_steps,
        fill=args.removal_fill,
        cell=args.removal_cell,
        ties=args.ties,
        tolerance=args.tolerance,
        keep_ratio=default_ratio if args.keep_ratio is None else args.keep_ratio,
    )


def _threshold(text: str) -> float | None:
    try:
        return None if text == "mean" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor mean") from None
