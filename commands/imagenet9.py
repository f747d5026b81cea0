"""Measure how much an ImageNet-1k model relies on backgrounds: ImageNet-9, the BG-gap and the backgrounds challenge.

    python -m commands.imagenet9 --run runs/imagenet1k-k1 --data.root /data/bg_challenge
    python -m commands.imagenet9 --model timm/resnet50.a1_in1k --data.root /data/bg_challenge
    python -m commands.imagenet9 --run runs/imagenet1k-k1 --data.root /data/bg_challenge --challenge
    python -m commands.imagenet9 --run runs/imagenet1k-k1 --data.root /data/bg_challenge --data.output_rule restricted

One row per image set found in data.root. BG-gap = accuracy on mixed_same - accuracy on mixed_rand. --challenge adds the
fraction of objects that are classified correctly on every background of only_bg_t (4050 x 4050 images: hours on a GPU).
--limit takes N images of each set. Any config key of the run can be overridden with a flag. Writes results.json,
table.{json,csv,md} and report.html.

Xiao et al., "Noise or Signal: The Role of Image Backgrounds in Object Recognition", ICLR 2021.
"""

import argparse

from torch import nn

from commands.flags import add_output_flags, add_source_flags, check_source_flags
from commands.pretrained import PretrainedClassifier, check_classes, open_pretrained
from commands.run_context import RunContext
from common.errors import exit_on_user_error
from common.flags import Parser
from common.plugins import with_plugins
from common.processes import processes
from datasets import Split
from engine.evaluation.backgrounds import FOREGROUNDS, background_gaps, measure_set, read_sets, run_challenge
from engine.evaluation.loading import fingerprint
from engine.run.config import RunConfig
from engine.run.launch import distributed_main
from report.evaluation import write_background_report


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """Known flags, and the rest: overrides of the config."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add_source_flags(parser)
    parser.add_argument("--challenge", action="store_true", help="also classify every object on every background")
    add_output_flags(parser, "RUN/evaluation/backgrounds")
    return parser.parse_known_args()


def open_model(args: argparse.Namespace, overrides: list[str]) -> tuple[RunContext, dict[str, Split], nn.Module]:
    """The run or model, the image sets, and the network."""

    def read(config: RunConfig) -> dict[str, Split]:
        return read_sets(config, args.limit, args.challenge)

    folder = "evaluation/backgrounds"
    if args.run:
        run = RunContext.open(args, overrides, folder)
        sets = read(run.config)
        return run, sets, run.load_model(next(iter(sets.values())).info)
    run, sets, found = open_pretrained(args, overrides, folder, read)
    check_classes(found, args.model, next(iter(sets.values())).info)
    return run, sets, PretrainedClassifier(found.model).eval()


@exit_on_user_error
@with_plugins
@distributed_main
def main() -> None:
    """Command line."""
    # 1. run and data
    args, overrides = parse_args()
    check_source_flags(args)
    run, sets, model = open_model(args, ["--data.name=imagenet9", *overrides])

    # 2. measure
    results = {name: measure_set(model, split, run.config, run.device) for name, split in sets.items()}
    summary = background_gaps(results)
    if args.challenge:
        with run.progress("challenge", len(sets[FOREGROUNDS])) as advance:
            summary |= run_challenge(model, sets, run.config, run.device, advance)
    if not processes().is_main:
        return

    # 3. write
    records = [{"row": name, **values} for name, values in results.items()]
    details = run.details(
        fingerprint=fingerprint(model), output_rule=run.config.data.output_rule, image_size=run.config.data.size_hw,
        limit=args.limit,
    )  # fmt: skip
    run.write_results({**summary, **details, "rows": records})
    shown = {key: value for key, value in summary.items() if "/class/" not in key and "count/" not in key}
    title = f"{args.run.name if args.run else args.model}: backgrounds"
    report = write_background_report(run.out, title, records, shown, details, run.config_text)
    print(", ".join(f"{name} {value:.4f}" for name, value in shown.items()))
    print(f"report: {report}")


if __name__ == "__main__":
    main()
