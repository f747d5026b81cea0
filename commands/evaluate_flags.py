"""Flags of `evaluate.py` for interventions at test time."""

import argparse
from pathlib import Path

from common.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of interventions."""
    group = parser.add_argument_group("without --method")
    group.add_argument(
        "--thresholds", type=Path, metavar="FILE", help="part-logit thresholds of commands.part_thresholds"
    )
    group.add_argument("--remove-parts", type=int, nargs="+", default=[], metavar="K", help="parts (from 0) to hide")
    group.add_argument(
        "--leave-one-part-out", action="store_true", help="a table of all metrics without part 0, without part 1, ..."
    )
    group.add_argument(
        "--fixed-parts", type=int, nargs="+", default=[], metavar="K", help="with it: parts that are always hidden"
    )


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags that contradict each other."""
    if args.leave_one_part_out and args.remove_parts:
        raise UserError("--remove-parts with --leave-one-part-out: name the parts that are always hidden --fixed-parts")
    if args.fixed_parts and not args.leave_one_part_out:
        raise UserError("--fixed-parts goes with --leave-one-part-out; without it, use --remove-parts")
