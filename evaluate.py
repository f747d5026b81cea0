"""Measure a trained run or a pretrained classifier on a split, or explanation methods on a run or any timm ViT.

    python evaluate.py --run runs/quickstart/two_stage-seed0
    python evaluate.py --run runs/waterbirds-k8 --split val --metrics accuracy groups --data.root /data/CUB_200_2011
    python evaluate.py --run runs/waterbirds-k8 --leave-one-part-out
    python evaluate.py --model timm/vit_base_patch16_224 --data.name imagenet --data.root /data/ilsvrc
    python evaluate.py --run runs/quickstart/vit-seed0 --method all --limit 100
    python evaluate.py --model timm/vit_base_patch16_224 --method lrp --data.name imagenet --data.root /data/ilsvrc

--plugin FILE.py imports a file of yours that registers a data set, model or metric.

Any config key of the run can be overridden with a flag. Writes results.json, tables, the prediction for every image
(predictions.csv), contact sheets and a self-contained report.html to RUN/evaluation/SPLIT; with --method to
RUN/evaluation/SPLIT-methods; with --leave-one-part-out to RUN/evaluation/SPLIT-leave-one-part-out (with --model NAME
runs/NAME stands for RUN). Two evaluations of
one checkpoint on the CPU give bitwise equal results. Several processes split the images among them:
torchrun --nproc-per-node 8 -- evaluate.py ... (docs/cluster.md).
"""

import argparse
import sys

from commands.flags import (
    add_intervention_flags,
    add_method_flags,
    add_output_flags,
    add_source_flags,
    check_intervention_flags,
    check_source_flags,
)
from common.errors import exit_on_user_error
from common.flags import Parser
from common.plugins import with_plugins
from datasets.types import SPLITS
from engine.explanation.map_metrics import KNOWN
from engine.run.launch import distributed_main
from explain import METHODS
from explain.options import add_options
from metrics.registry import METRICS


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """Known flags, and the rest: overrides of the config."""
    given = {argument.partition("=")[0] for argument in sys.argv}
    with_method, with_help = "--method" in given, bool({"-h", "--help"} & given)
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add_source_flags(parser)
    parser.add_argument("--method", nargs="+", metavar="NAME", help=f"all, or some of {', '.join(METHODS)}")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: test")
    parser.add_argument(
        "--metrics", nargs="+", metavar="NAME",
        help=f"default: all that apply; without --method some of {', '.join(METRICS)}; with it {', '.join(KNOWN)}",
    )  # fmt: skip
    add_output_flags(parser, "see above")
    # A flag of the other mode is an error, except in --help. --compat is a method option with --method, else a config
    # key, so both cannot be known at once.
    if with_help or not with_method:
        add_intervention_flags(parser)
    if with_help or with_method:
        add_method_flags(parser)
        add_options(parser)
    return parser.parse_known_args()


@exit_on_user_error
@with_plugins
@distributed_main
def main() -> None:
    """Command line."""
    args, overrides = parse_args()
    # Slow to import, and not needed for --help or a wrong flag.
    from commands.evaluate_methods import evaluate_methods
    from commands.evaluate_run import evaluate_run
    from commands.leave_one_part_out import leave_one_part_out

    check_source_flags(args)
    if args.method:
        evaluate_methods(args, overrides)
    else:
        check_intervention_flags(args)
        (leave_one_part_out if args.leave_one_part_out else evaluate_run)(args, overrides)


if __name__ == "__main__":
    main()
