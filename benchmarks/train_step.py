"""Seconds and memory of a training step, an inference batch and stage 2 alone: the published work against ours.

    python benchmarks/train_step.py                                  # about 5 minutes on two CPU cores
    python benchmarks/train_step.py --keep 0.1 0.2 0.3 0.5 1.0 --save
    python benchmarks/train_step.py --device cuda --precision bf16 --backbone vit_base_patch14_reg4_dinov2

First it proves that all variants compute the same loss and the same gradients; exit code 1 where they do not.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for python benchmarks/train_step.py

from step_measure import CLOCKS, Case, Work, cases, difference, numbers, peak_bytes, seconds
from step_report import markdown, summary, write
from step_variants import VARIANTS, Bench, random_batch, random_mask

from common.errors import UserError
from engine.run.machine import pick_device, provenance

RESULTS = Path(__file__).resolve().parent / "results"
OURS = [name for name in VARIANTS if name != "published"]
CHECK_IMAGES = 4
CHECK_SPREAD = 0.5
TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}
"""Largest relative difference of the loss or of a gradient. bf16 keeps 3 digits: a sanity check."""


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2", help="any timm ViT; weights are random")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.3], help="shares of patches that stage 2 sees")
    parser.add_argument("--spread", type=float, default=0.0, help="0.5: shares run from 0.5 to 1.5 x keep in a batch")
    parser.add_argument("--stage-2-keep", type=float, default=0.25, help="share for stage 2 alone")
    parser.add_argument("--variants", nargs="+", choices=OURS, default=OURS, help="beside published")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=list(TOLERANCE), default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile both stages")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = torch's choice")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="cpu: for a busy machine, with --threads 1"
    )
    parser.add_argument("--out", type=Path, help="write the table to this file's .json and .md")
    parser.add_argument("--save", action="store_true", help=f"write it under {RESULTS.parent.name}/{RESULTS.name}")
    options = parser.parse_args(args)
    if not all(0 < keep <= 1 for keep in [*options.keep, options.stage_2_keep]):
        parser.error("--keep and --stage-2-keep: shares lie in (0, 1]")
    if not 0 <= options.spread <= 1 or options.rounds < 1 or options.batch < 1:
        parser.error("--spread lies in [0, 1]; --rounds and --batch are at least 1")
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu needs --threads 1: threads that wait for each other count as working")
    return options


def check(bench: Bench, options: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    """Precision -> variant -> largest difference to `published` and where, on a few images with unequal counts."""
    size = min(options.batch, CHECK_IMAGES)
    mask = random_mask(size, bench.grid, min(options.keep), CHECK_SPREAD)
    batch = random_batch(size, options.image_size, bench.device)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for precision in dict.fromkeys(("fp32", options.precision)):
        bench.precision = torch.bfloat16 if precision == "bf16" else torch.float32
        truth = numbers(bench, "published", mask, batch)
        found[precision] = {}
        for variant in options.variants:
            value, name = difference(bench, variant, mask, batch, truth)
            found[precision][variant] = {"difference": value, "where": name, "fine": value <= TOLERANCE[precision]}
            _say(f"check {precision} {variant}: largest relative difference {value:.1e} ({name})")
    return found


def measure(bench: Bench, options: argparse.Namespace) -> list[Case]:
    """Memory of every case (this warms it up, too), then the rounds."""
    batch = random_batch(options.batch, options.image_size, bench.device)
    measured = cases(options.keep, options.variants, options.stage_2_keep)
    works: dict[str, Work] = {
        "training step": bench.train_step,
        "inference batch": bench.inference,
        "stage 2, forward + backward": bench.stage_2_step,
    }

    def work(case: Case) -> partial[None]:
        mask = random_mask(options.batch, bench.grid, case.keep or options.keep[0], options.spread)
        return partial(works[case.part], case.variant, mask.to(bench.device), batch)

    bench.train_step("dense", random_mask(options.batch, bench.grid, options.keep[0]), batch)  # optimiser state
    for case in measured:
        if options.compile:
            work(case)()
        case.peak_bytes = peak_bytes(work(case), bench.device)
    for number in range(options.rounds):
        for case in measured:
            case.seconds.append(seconds(work(case), bench.device, CLOCKS[options.clock]))
        _say(f"round {number + 1}/{options.rounds}: {sum(case.seconds[-1] for case in measured):.0f} s")
    return measured


def main(args: Sequence[str] | None = None) -> int:
    """Check, measure, print; 1 where the variants' numbers differ or an option means nothing."""
    options = parse(args)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.compile:
        torch._dynamo.config.recompile_limit = 64  # one per variant, batch size, mode and precision
    try:
        device = pick_device(options.device)
        if options.clock == "cpu" and device.type != "cpu":
            raise UserError(f"--clock cpu does not see the work of {device}")
        bench = Bench(options.backbone, options.image_size, device, options.compile)
    except UserError as error:
        return _fail(str(error))
    checked = check(bench, options)
    wrong = [f"{p} {v}" for p, table in checked.items() for v, value in table.items() if not value["fine"]]
    if wrong:
        return _fail(f"not the numbers of the published step: {', '.join(wrong)}; nothing was timed")
    measured = measure(bench, options)
    shown = {name: value for name, value in vars(options).items() if name not in ("out", "save")}
    content = summary(shown, provenance(), checked, bench.resident_bytes(), measured)
    page = markdown(content)
    print(page)
    out = options.out or (RESULTS / _name(options, bench.device) if options.save else None)
    for path in write(content, page, out) if out else []:
        _say(f"wrote {path}")
    return 0


def _name(options: argparse.Namespace, device: torch.device) -> str:
    words = [options.backbone, f"{options.image_size}px", device.type, options.precision]
    extra = {"compiled": options.compile, "spread": options.spread, "cpu_seconds": options.clock == "cpu"}
    return "_".join([*words, *(word for word, on in extra.items() if on)])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _fail(reason: str) -> int:
    _say(f"error: {reason}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
