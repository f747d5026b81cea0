"""Compute part-logit thresholds of a two-stage run, which hide weak patches of each part (`evaluate.py --thresholds`).

    python -m commands.part_thresholds --run runs/waterbirds-k8
    python evaluate.py --run runs/waterbirds-k8 --thresholds runs/waterbirds-k8/part_thresholds/0.95.json

Uses the training split without augmentation. A part's logits are the dot products of its prototype with the patches
assigned to it; the threshold for quantile q is their quantile q. Writes info.json and, for each quantile, a JSON file
{"0": threshold, ...} named after the fraction of patches that stay (0.95.json for q = 0.05). The quantiles are exact.
Any config key of the run can be overridden with a flag.
"""

import argparse
from pathlib import Path
from typing import Any

from commands.flags import add_output_flags
from commands.run_context import RunContext
from common.errors import exit_on_user_error
from common.flags import Parser
from common.plugins import with_plugins
from engine.evaluation.interventions import INFO, require_two_stage
from engine.evaluation.loading import fingerprint, read_split
from engine.evaluation.loop import split_loader
from engine.evaluation.part_thresholds import PartThresholds, check_quantiles, measure_thresholds, threshold_file
from engine.run.launch import one_process_only
from report.files import json_text, write_atomic


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """Known flags, and the rest: overrides of the config."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, help="run folder written by train.py")
    parser.add_argument(
        "--quantiles", type=float, nargs="+", default=[0.01, 0.03, 0.05, 0.1], metavar="Q",
        help="fractions of each part's patches to hide, in (0, 1); default: 0.01 0.03 0.05 0.1",
    )  # fmt: skip
    add_output_flags(parser, "RUN/part_thresholds")
    return parser.parse_known_args()


@exit_on_user_error
@with_plugins
def main() -> None:
    """Command line."""
    # 1. run and data
    args, overrides = parse_args()
    one_process_only("commands.part_thresholds", "it only runs stage 1, once")
    check_quantiles(args.quantiles)
    run = RunContext.open(args, overrides, "part_thresholds")
    split = read_split(run.config, "train", args.limit, args.run)

    # 2. model
    model = require_two_stage(run.load_model(split.info))

    # 3. measure
    loader = split_loader(split, run.config.data, run.device)
    with run.progress("thresholds", len(loader)) as advance:
        thresholds = measure_thresholds(model, loader, run.device, args.quantiles, run.precision, advance)

    # 4. write
    for name, values in thresholds.files().items():
        write_atomic(run.out / name, json_text(values))
    details = run.details(images=len(split), **about(thresholds, run), fingerprint=fingerprint(model))
    write_atomic(run.out / INFO, json_text(details))
    for part, patches in enumerate(thresholds.patches):
        print(f"part {part}: {patches:,} patches" + ("" if patches else "; its thresholds hide nothing"))
    print(f"{', '.join(thresholds.files())} and {INFO} in {run.out}")


def about(thresholds: PartThresholds, run: RunContext) -> dict[str, Any]:
    """What the thresholds are and what they were measured on."""
    return {
        "num_parts": len(thresholds.patches),
        "quantiles": {threshold_file(quantile): quantile for quantile in thresholds.values},
        "patches": {str(part): count for part, count in enumerate(thresholds.patches)},
        "quantity": "dot product of a patch token with the prototype of its strongest part",
        "data": run.config.data.name, "split": "train", "data_seed": run.config.data.seed,
        "train_seed": run.config.train.seed,
    }  # fmt: skip


if __name__ == "__main__":
    main()
