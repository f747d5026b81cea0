"""Part-logit thresholds of a two-stage run, for `evaluate.py --thresholds`: the weak patches of every part go.

    python -m commands.part_thresholds --run runs/waterbirds-k8
    python evaluate.py --run runs/waterbirds-k8 --thresholds runs/waterbirds-k8/part_thresholds/0.95.json

Over the training split, in evaluation mode: a part's logits are the dot products of its prototype with the patches that
are its own, and the threshold for q is their quantile q. Writes one JSON {"0": t, ...} per quantile, named by the share
of patches that stays ("0.95.json" for q = 0.05), and info.json, to RUN/part_thresholds (or --out). Exact, in one
pass of stage 1. Any key of the run's config can be overridden by a flag.
"""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import exit_on_user_error
from common.flags import Parser
from datasets import eval_loader
from engine.evaluation.interventions import INFO, require_two_stage
from engine.evaluation.loading import fingerprint, load_run_model, read_split
from engine.evaluation.part_thresholds import PartThresholds, check_quantiles, measure_thresholds, threshold_file
from engine.run.config import RunConfig
from engine.run.distributed import one_process_only
from engine.run.folder import run_config
from engine.run.machine import PRECISIONS, prepare_process, provenance
from engine.run.tracking import progress_bar
from report.files import check_folder, json_text, write_atomic


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """Known flags, and the rest: overrides of the config."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, help="folder that train.py wrote")
    parser.add_argument("--quantiles", type=float, nargs="+", default=[0.01, 0.03, 0.05, 0.1], metavar="Q")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    parser.add_argument("--limit", type=int, metavar="N", help="a sample of N images, always the same ones")
    parser.add_argument("--out", type=Path, help="default: RUN/part_thresholds")
    return parser.parse_known_args()


@exit_on_user_error
def main() -> None:
    """Command line."""
    # 1. run and data
    args, overrides = parse_args()
    one_process_only("commands.part_thresholds", "it needs one pass of stage 1 alone")
    check_quantiles(args.quantiles)
    out = check_folder(args.out or args.run / "part_thresholds", "--out")
    config = run_config(args.run, overrides)
    device = prepare_process(config)
    split = read_split(config, "train", args.limit)

    # 2. model
    model = require_two_stage(load_run_model(args.run, config, args.checkpoint, split.info.num_outputs)).to(device)

    # 3. measure
    loader = eval_loader(split, batch_size=config.data.eval_batch_size, workers=config.data.workers)
    with progress_bar(Console(), "thresholds", len(loader)) as advance:
        precision = PRECISIONS[config.train.precision]
        thresholds = measure_thresholds(model, loader, device, args.quantiles, precision, advance)

    # 4. write
    for name, values in thresholds.files().items():
        write_atomic(out / name, json_text(values))
    details = {"run": str(args.run), "checkpoint": args.checkpoint, "images": len(split)}
    write_atomic(out / INFO, json_text({**details, **about(thresholds, config), "fingerprint": fingerprint(model)}))
    for part, patches in enumerate(thresholds.patches):
        print(f"part {part}: {patches:,} patches" + ("" if patches else "; its thresholds cut nothing"))
    print(f"{', '.join(thresholds.files())} and {INFO} in {out}")


def about(thresholds: PartThresholds, config: RunConfig) -> dict[str, Any]:
    """What the thresholds are and what they were measured on."""
    return {
        "num_parts": len(thresholds.patches),
        "quantiles": {threshold_file(quantile): quantile for quantile in thresholds.values},
        "patches": {str(part): count for part, count in enumerate(thresholds.patches)},
        "quantity": "dot product of a patch token with the prototype of its strongest part",
        "data": config.data.name, "split": "train", "data_seed": config.data.seed, "train_seed": config.train.seed,
        "provenance": provenance(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
