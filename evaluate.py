"""Evaluate a trained run or a pretrained classifier on a split, or explanation methods on a run or a pretrained ViT.

    python evaluate.py --run runs/quickstart/two_stage-seed0
    python evaluate.py --run runs/waterbirds-k8 --split val --metrics accuracy groups --data.root /data/CUB_200_2011
    python evaluate.py --run runs/waterbirds-k8 --leave-one-part-out
    python evaluate.py --model timm/vit_base_patch16_224 --data.name imagenet --data.root /data/ilsvrc
    python evaluate.py --run runs/quickstart/vit-seed0 --method all --limit 100
    python evaluate.py --model timm/vit_base_patch16_224 --method lrp --data.name imagenet --data.root /data/ilsvrc

Any config key of the run can be overridden with a flag. Writes results.json, tables, the prediction for every image
(predictions.csv), contact sheets and a self-contained report.html to RUN/evaluation/SPLIT; with --method to
RUN/evaluation/SPLIT-methods; with --leave-one-part-out to RUN/evaluation/SPLIT-leave-one-part-out. With --model NAME,
RUN is runs/NAME. --plugin FILE.py imports a file of yours that registers a data set, model, metric or method. Several
GPUs: torchrun --nproc-per-node 8 -- evaluate.py ... (docs/cluster.md). What is measured: docs/metrics.md.
"""

import argparse
import sys

from commands.flags import (
    add_method_flags,
    add_output_flags,
    add_run_flags,
    add_source_flags,
    check_run_flags,
    check_source_flags,
)
from common.errors import exit_on_user_error
from common.flags import Parser
from common.plugins import with_plugins
from datasets.config import SPLITS
from engine.run.launch import distributed_main


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """Known flags, and the rest: overrides of the config."""
    arguments = ["--help" if argument == "--help=all" else argument for argument in sys.argv[1:]]
    given = {argument.partition("=")[0] for argument in arguments}
    with_method, with_help = "--method" in given, bool({"-h", "--help"} & given)
    with_names = with_help and (with_method or "--help=all" in sys.argv)
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add_source_flags(parser)
    methods, metrics = _names() if with_names else ("", "")
    parser.add_argument("--method", nargs="+", metavar="NAME", help=f"all, or names of explanation methods{methods}")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: test")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help=f"default: all that apply{metrics}")
    add_output_flags(parser, "see above")
    # A flag of the other mode is an error, except in --help. --compat is a method option with --method, else a config
    # key, so both cannot be known at once.
    if with_help or not with_method:
        add_run_flags(parser)
    if with_help or with_method:
        add_method_flags(parser)
    if with_names or with_method:
        from explain.options import add_options  # slow to import

        add_options(parser)
    elif with_help:
        parser.epilog = "names of methods and metrics, and options of methods such as --head-fusion: --help=all"
    return parser.parse_known_args(arguments)


def _names() -> tuple[str, str]:
    """The methods and metrics, for --help; slow to import."""
    from engine.explanation.map_metrics import KNOWN
    from explain import METHODS
    from metrics.registry import METRICS

    metrics = f"; without --method some of {', '.join(METRICS)}; with it {', '.join(KNOWN)}"
    return f": {', '.join(METHODS)}", metrics


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
        check_run_flags(args)
        (leave_one_part_out if args.leave_one_part_out else evaluate_run)(args, overrides)


if __name__ == "__main__":
    main()
