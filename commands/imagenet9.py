"""How much a run of ImageNet's 1000 classes leans on backgrounds: ImageNet-9, the BG-gap, the backgrounds challenge.

    python -m commands.imagenet9 --run runs/imagenet1k-k1 --data.root /data/bg_challenge
    python -m commands.imagenet9 --run runs/imagenet1k-k1 --data.root /data/bg_challenge --challenge
    python -m commands.imagenet9 --run runs/imagenet1k-k1 --data.root /data/bg_challenge --data.output_rule restricted

One table of the sets in data.root; BG-gap = accuracy on mixed_same - accuracy on mixed_rand. With --challenge also the
share of objects that no background of only_bg_t makes the run fail on (4050 x 4050 images: hours on a GPU). Writes
results.json, table.{json,csv,md} and report.html to RUN/evaluation/backgrounds (or --out).
"""

import argparse
from pathlib import Path

from rich.console import Console

from common.errors import exit_on_user_error
from common.flags import Parser
from common.processes import processes
from engine.evaluation.backgrounds import FOREGROUNDS, background_gaps, measure_set, read_sets, run_challenge
from engine.evaluation.loading import fingerprint, load_run_model
from engine.run.distributed import distributed_main
from engine.run.folder import CONFIG_FILE, RESULTS, run_config
from engine.run.machine import prepare_process, provenance
from engine.run.tracking import progress_bar
from report.evaluation import write_background_report
from report.files import check_folder, json_text, write_atomic


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """Known flags, and the rest: overrides of the config."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, help="folder that train.py wrote")
    parser.add_argument("--challenge", action="store_true", help="also every object before every background")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    parser.add_argument("--limit", type=int, metavar="N", help="a sample of N images of each set, always the same ones")
    parser.add_argument("--out", type=Path, help="default: RUN/evaluation/backgrounds")
    return parser.parse_known_args()


@exit_on_user_error
@distributed_main
def main() -> None:
    """Command line."""
    # 1. run and data
    args, overrides = parse_args()
    out = check_folder(args.out or args.run / "evaluation" / "backgrounds", "--out")
    config = run_config(args.run, ["--data.name=imagenet9", *overrides])
    device = prepare_process(config)
    sets = read_sets(config, args.limit, args.challenge)

    # 2. model
    info = next(iter(sets.values())).info
    model = load_run_model(args.run, config, args.checkpoint, info.num_outputs).to(device)

    # 3. measure
    results = {name: measure_set(model, split, config, device) for name, split in sets.items()}
    summary = background_gaps(results)
    if args.challenge:
        with progress_bar(Console(quiet=not processes().is_main), "challenge", len(sets[FOREGROUNDS])) as advance:
            summary |= run_challenge(model, sets, config, device, advance)
    if not processes().is_main:
        return

    # 4. write
    records = [{"row": name, **values} for name, values in results.items()]
    details = {
        "run": str(args.run), "checkpoint": args.checkpoint, "fingerprint": fingerprint(model),
        "output_rule": config.data.output_rule, "image_size": config.data.size_hw, "limit": args.limit,
        "provenance": provenance(),
    }  # fmt: skip
    write_atomic(out / RESULTS, json_text({**summary, **details, "rows": records}))
    shown = {key: value for key, value in summary.items() if "/class/" not in key and "count/" not in key}
    text = (args.run / CONFIG_FILE).read_text()
    report = write_background_report(out, f"{args.run.name}: backgrounds", records, shown, details, text)
    print(", ".join(f"{name} {value:.4f}" for name, value in shown.items()))
    print(f"look at {report}")


if __name__ == "__main__":
    main()
