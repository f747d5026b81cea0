"""What all benchmarks share: flags, timing in interleaved rounds, peak memory, and result files with provenance."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import gpu
from common.ranges import NonNegativeInt, PositiveInt
from engine.run.config import RunConfig
from engine.run.machine import pick_device, prepare_gpu, provenance
from report.files import json_text, write_atomic
from report.tables import TableText
from report.tables import markdown as markdown_table

RESULTS = Path(__file__).resolve().parent / "results"
SEED = 0
MIB = 2**20


@dataclass
class Case:
    """One row of a table: a piece of work and its measurements."""

    labels: dict[str, Any]
    """The first columns of the row, e.g. {"variant": "packed", "keep": 0.3}."""
    images: int
    """Images that one call processes."""
    prepare: Callable[[int], Callable[[], object]]
    """Round number -> the call that is timed. The time that `prepare` takes does not count."""
    peak_bytes: int = 0
    """See `peak_bytes`."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of one call, one entry per round."""
    flops: float = 0.0
    """FLOPs that the model needs for one call; 0: not known."""
    clocks: list[float] = field(default_factory=list)
    """Of a GPU after each round, MHz, where it can be read."""

    def times_faster(self, baseline: "Case") -> float:
        """Seconds per image of the baseline divided by those of this case: the median of each round's ratio."""
        scale = self.images / baseline.images
        return median(scale * b / a for a, b in zip(self.seconds, baseline.seconds, strict=True))

    def utilisation(self, peak: float | None) -> dict[str, float]:
        """Column `mfu`: the fraction of the `peak` FLOP/s that the model's own FLOPs are; none without a peak."""
        return {"mfu": self.flops / median(self.seconds) / peak} if peak else {}

    def row(self, **ratios: float | None) -> dict[str, Any]:
        """Labels and measurements, with `ratios` as further columns. None becomes an empty cell."""
        clock = {"sm_MHz": median(self.clocks)} if self.clocks else {}
        return {
            **self.labels,
            "images_per_second": self.images / median(self.seconds),
            "median_seconds": median(self.seconds),
            "min_seconds": min(self.seconds),
            "p90_seconds": float(np.quantile(self.seconds, 0.9)),
            "peak_MiB": self.peak_bytes / MIB,
            **clock,
            **ratios,
            "seconds": self.seconds,
        }


@dataclass
class Section:
    """One table of a report."""

    title: str
    rows: list[dict[str, Any]]
    """All with the same keys; lists are written to the JSON file only."""
    notes: list[str] = field(default_factory=list)
    """Lines above the table."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further values for the JSON file."""


def parser(description: str | None, rounds: int, precisions: Sequence[str]) -> argparse.ArgumentParser:
    """A command line with the flags of every benchmark. `rounds` is the default of --rounds."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    found.add_argument("--image-size", type=PositiveInt, default=224, help="pixels")
    found.add_argument(
        "--rounds", type=PositiveInt, default=rounds, help=f"timed calls per row; on a GPU at least {gpu.ROUNDS}"
    )
    found.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    found.add_argument("--precision", choices=precisions, default="fp32")
    found.add_argument("--threads", type=NonNegativeInt, default=0, help="CPU threads; 0: torch's default")
    found.add_argument("--out", type=Path, help="write the results to this file, as .json and .md")
    found.add_argument("--save", action="store_true", help=f"write the results to {RESULTS.parent.name}/{RESULTS.name}")
    return found


def start(options: argparse.Namespace) -> torch.device:
    """Set the number of threads, and on a GPU the kernels of training and the fewest rounds; return the device.

    Raises UserError for a device that does not exist.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    if device.type == "cuda":
        prepare_gpu(device, RunConfig().train.matmul_precision)
        options.rounds = max(options.rounds, gpu.ROUNDS)
    return device


def require_equal(differences: dict[str, float], tolerance: float) -> None:
    """Log the relative differences; exit with code 1 where one exceeds the tolerance."""
    for name, value in differences.items():
        log(f"check {name}: largest relative difference {value:.1e}, allowed {tolerance:g}")
    if wrong := [name for name, value in differences.items() if not value <= tolerance]:  # a nan is not equal
        log(f"error: not the published numbers: {', '.join(wrong)}; no results written")
        raise SystemExit(1)


def measure(cases: Sequence[Case], rounds: int, device: torch.device, warm_up: int = 0) -> None:
    """Fill in memory and seconds of all cases.

    Rounds are interleaved: each case gets one call per round, so that a slow phase of the machine affects all of them.
    The memory pass comes first and warms up; `warm_up` is the number of calls before it, on a GPU at least
    `gpu.WARM_UP`. There, events measure the seconds, and the clock is read after each round.
    """
    on_gpu = device.type == "cuda"
    for case in cases:
        for number in range(max(warm_up, gpu.WARM_UP) if on_gpu else warm_up):
            case.prepare(number)()
        case.peak_bytes = peak_bytes(case.prepare(0), device)
    for number in range(rounds):
        for case in cases:
            work = case.prepare(number)
            case.seconds.append(gpu.timed(work, device) if on_gpu else _seconds(work))
        if on_gpu and (clock := gpu.sm_clock(device)):  # not within a round: the GPU is idle meanwhile
            for case in cases:
                case.clocks.append(clock)
        log(f"round {number + 1}/{rounds}: {sum(case.seconds[-1] for case in cases):.0f} s")


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Largest number of bytes of tensors alive at once that `work` allocated.

    CUDA: torch.cuda.max_memory_allocated minus what was allocated before. CPU: the running sum of the allocations and
    frees that torch's profiler records. Neither counts scratch memory of libraries or memory reserved by the allocator.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else torch 2.14 writes a line at each start and stop
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        work()
    # Kineto's raw events: record.events() groups memory by operator and loses the order of allocations and frees.
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())), default=0)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def report(title: str, sections: list[Section], method: str, options: argparse.Namespace, stem: str) -> None:
    """Print all tables as Markdown; with --out or --save also write them as .json and .md.

    `method`: how it was measured, below the tables. `stem`: file name that --save uses, without suffix.
    """
    content = {
        "title": title,
        "date": date.today().isoformat(),
        "machine": provenance(),
        "options": {name: value for name, value in vars(options).items() if name not in ("out", "save")},
        "sections": [asdict(section) for section in sections],
        "method": method,
    }
    page = markdown(content)
    print(page)
    out = options.out or (RESULTS / stem if options.save else None)
    if out:
        out = out.with_suffix("") if out.suffix in (".json", ".md") else out
        for suffix, text in {".json": json_text(content), ".md": page}.items():
            log(f"wrote {write_atomic(out.with_name(out.name + suffix), text)}")


def markdown(content: dict[str, Any]) -> str:
    """The content of a results file as a Markdown page."""
    lines = [f"# {content['title']}", ""]
    for section in content["sections"]:
        lines += [f"## {section['title']}", "", *(f"- {note}" for note in section["notes"])]
        lines += ["" for _ in section["notes"][:1]] + [table(section["rows"])]
    machine = content["machine"]
    options = ", ".join(f"{name} {_cell(value)}" for name, value in content["options"].items())
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    where = f"{machine['device']}, Python {machine['python']}, {versions}, commit {machine['commit']}"
    return "\n".join([*lines, content["method"], "", f"Options: {options}.", "", f"{content['date']}, {where}"]) + "\n"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table; lists are left out."""
    shown = [[(key, value) for key, value in row.items() if not isinstance(value, list)] for row in rows]
    header = tuple(key.replace("_", " ") for key, _ in shown[0])
    return markdown_table(TableText(header, tuple(tuple(_cell(value) for _, value in row) for row in shown)))


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"  # 3 digits, never 1e+03
    return "" if value is None else str(value)


def log(message: str) -> None:
    """Print to standard error; standard output holds the tables alone."""
    print(message, file=sys.stderr, flush=True)
