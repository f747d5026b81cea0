"""The benchmark of explanations: equality first, then peak memory, then seconds in interleaved rounds."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from explain_cases import BOTH, FORWARD, METHODS, Given, Method, Setup, noise
from explain_report import markdown, summary
from step_measure import CLOCKS, peak_bytes, seconds
from step_report import write
from torch import Tensor

from common.errors import exit_on_user_error
from engine.run.machine import pick_device, provenance

RESULTS = Path(__file__).resolve().parent / "results"
NAMES = list(dict.fromkeys(method.name for method in METHODS if method.name not in (FORWARD, BOTH)))
CHECK_IMAGES = 2


@dataclass
class Case:
    """One line of the table."""

    method: Method
    way: str
    """ours | published | a package."""
    batch: int
    images: int
    """Images a call; fewer than `batch` for some methods."""
    calls: int
    """Calls that are timed together."""
    peak_bytes: int = 0
    """Tensors alive at once in one call, on top of weights and images."""
    seconds: list[float] = field(default_factory=list)
    """Per image, one per round."""


def parse(args: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "explain.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["vit_small_patch16_224"], help="timm ViTs; random weights")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 1], help="of ours and of packages")
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--singles", type=int, default=2, help="images explained one by one where the batch is 1")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="the published way stays fp32")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = torch's choice")
    parser.add_argument("--out", type=Path, help="folder for the tables")
    parser.add_argument("--save", action="store_true", help=f"write them to {RESULTS.parent.name}/{RESULTS.name}")
    options = parser.parse_args(args)
    if min(*options.batches, options.rounds, options.singles) < 1:
        parser.error("--batches, --rounds and --singles are at least 1")
    return options


def check(setup: Setup, given: Given, methods: Sequence[Method]) -> list[dict[str, Any]]:
    """Ours, all images at once, against those who compute the same: largest difference relative to each map's top."""
    found = []
    for method in methods:
        ways = method.ways()
        for other in method.tolerance.keys() & ways.keys():
            ours, theirs = ways["ours"](setup, given), ways[other](setup, given)
            value, tolerance = relative_difference(ours, theirs), method.tolerance[other]
            fine = value <= tolerance  # not for a nan
            found.append({"method": method.label, "way": other, "difference": value, "fine": fine})
            _say(f"check {method.label}, {other}: largest relative difference {value:.1e}, allowed {tolerance:g}")
    return found


def relative_difference(found: Tensor, truth: Tensor) -> float:
    """Largest |a - b| over the largest |b| of the same image; the worst image's. Both [B, ...]."""
    a, b = found.double().reshape(len(found), -1), truth.double().reshape(len(truth), -1)
    return ((a - b).abs().amax(1) / b.abs().amax(1)).max().item()


def cases(methods: Sequence[Method], batches: Sequence[int], singles: int) -> list[Case]:
    """Every case, in the order of a round: the ways of a method side by side, the published one image by image."""
    found = []
    for method in methods:
        for way in method.ways():
            for batch in [1] if way == "published" else batches:
                found.append(Case(method, way, batch, max(1, batch // method.fewer), singles if batch == 1 else 1))
    return found


def measure(setup: Setup, given: Given, options: argparse.Namespace, measured: Sequence[Case]) -> None:
    """Memory of every case (this warms it up, too), then the rounds."""
    device = given.images.device

    def work(case: Case, calls: int) -> Callable[[], None]:
        way = case.method.ways()[case.way]
        half = options.precision == "bf16" and case.way != "published"

        def run() -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16) if half else nullcontext():
                for call in range(calls):
                    way(setup, given.part(call * case.images, (call + 1) * case.images))

        return run

    for case in measured:
        case.peak_bytes = peak_bytes(work(case, 1), device)
    for number in range(options.rounds):
        for case in measured:
            taken = seconds(work(case, case.calls), device, CLOCKS["wall"])
            case.seconds.append(taken / (case.images * case.calls))
        total = sum(case.seconds[-1] * case.images * case.calls for case in measured)
        _say(f"round {number + 1}/{options.rounds}: {total:.0f} s")


@exit_on_user_error
def main(args: Sequence[str] | None = None, description: str | None = None) -> int:
    """One model after the other: check, measure, print; 1 where the numbers differ."""
    options = parse(args, description)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    methods = [method for method in METHODS if method.name in (FORWARD, BOTH, *options.methods)]
    for model in options.models:
        exact = Setup(model, options.image_size, device, torch.float64)
        checked = check(exact, noise(CHECK_IMAGES, options.image_size, device, torch.float64), methods)
        del exact
        wrong = [f"{line['method']} ({line['way']})" for line in checked if not line["fine"]]
        if wrong:
            _say(f"error: not the same numbers: {', '.join(wrong)}; nothing was timed")
            return 1
        _report(model, options, device, methods, checked)
    return 0


def _report(
    model: str, options: argparse.Namespace, device: torch.device, methods: Sequence[Method], checked: list[Any]
) -> None:
    setup = Setup(model, options.image_size, device)
    given = noise(max(*options.batches, options.singles), options.image_size, device)
    measured = cases(methods, options.batches, options.singles)
    measure(setup, given, options, measured)
    shown = {name: value for name, value in vars(options).items() if name not in ("out", "save", "models")}
    shown |= {"model": model, "device": device.type}
    content = summary(shown, provenance(), checked, setup.resident_bytes(), measured)
    page = markdown(content)
    print(page)
    folder = options.out or (RESULTS if options.save else None)
    name = "_".join(["explain", model, f"{options.image_size}px", device.type, options.precision])
    for path in write(content, page, folder / name) if folder else []:
        _say(f"wrote {path}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
