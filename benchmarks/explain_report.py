"""The table of explanations: rows with their ratios, goals, JSON and Markdown."""

from collections.abc import Sequence
from datetime import date
from statistics import median
from typing import Any, Protocol

from explain_cases import BOTH, FORWARD, METHODS, Method
from explain_packages import MODULES, is_installed
from step_measure import speed_up
from step_report import MIB, origin

CPU_GOALS = {"rollout": 2.0, "agcam": 2.0, "lrp": 2.0, "abpc": 1.5}
"""Times fewer seconds an image than published, at batch CPU_BATCH."""
CPU_BATCH, GPU_BATCH, GPU_GOAL = 32, 64, 10.0
MEMORY_GOAL = 1.3
"""AGCAM's peak, of a plain forward and backward's at the same batch."""


class Measured(Protocol):
    """A case of explain_run."""

    method: Method
    way: str
    batch: int
    images: int
    peak_bytes: int
    seconds: list[float]


def rows(cases: Sequence[Measured]) -> list[dict[str, Any]]:
    """Each case with its ratios within a round: in forwards of the same batch, and times faster than the others."""
    found = []
    for case in cases:
        same = [other for other in cases if other.method == case.method]
        published = next((other for other in same if other.way == "published"), None)
        package = next((other for other in same if other.way in MODULES and other.batch == case.batch), None)
        forward = next((other for other in cases if other.method.name == FORWARD and other.batch == case.batch), None)
        found.append(
            {
                "method": case.method.label,
                "name": case.method.name,
                "way": case.way,
                "batch": case.batch,
                "images": case.images,
                "seconds_per_image": case.seconds,
                "images_per_second": 1 / median(case.seconds),
                "forwards": forward and 1 / speed_up(case.seconds, forward.seconds),
                "times_published": published and speed_up(case.seconds, published.seconds),
                "times_package": package and speed_up(case.seconds, package.seconds),
                "peak_bytes": case.peak_bytes,
            }
        )
    return found


def goals(table: list[dict[str, Any]], device: str) -> list[dict[str, Any]]:
    """The goals whose cases were measured."""
    found = []
    ours = [row for row in table if row["way"] == "ours"]
    for row in ours:
        least = GPU_GOAL if device == "cuda" else CPU_GOALS.get(row["name"])
        if row["times_published"] and least and row["batch"] == (GPU_BATCH if device == "cuda" else CPU_BATCH):
            what = f"{row['method']} at batch {row['batch']}: >= {least:g}x the images/s of the published way"
            found.append({"goal": what, "value": row["times_published"], "met": row["times_published"] >= least})
    plain = {row["batch"]: row["peak_bytes"] for row in ours if row["name"] == BOTH}
    for row in ours:
        if row["name"] == "agcam":
            share = row["peak_bytes"] / plain[row["batch"]]
            what = f"agcam's peak memory at batch {row['batch']}: <= {MEMORY_GOAL:g} of a plain forward + backward's"
            found.append({"goal": what, "value": share, "met": share <= MEMORY_GOAL})
    return found


def summary(
    options: dict[str, Any],
    machine: dict[str, Any],
    checked: list[dict[str, Any]],
    resident_bytes: int,
    cases: Sequence[Measured],
) -> dict[str, Any]:
    """Everything a reader of the figures needs."""
    table = rows(cases)
    return {
        "date": date.today().isoformat(),
        "machine": machine,
        "options": options,
        "check": checked,
        "missing": [name for name in MODULES if not is_installed(name)],
        "resident_bytes": resident_bytes,
        "rows": table,
        "goals": goals(table, options["device"]),
    }


def markdown(content: dict[str, Any]) -> str:
    """The same for people."""
    options = content["options"]
    what = f"{options['model']}, {options['image_size']} px, {options['precision']}, {options['rounds']} rounds"
    lines = ["# Explanations: ours, as published, and as installed", "", f"{what}, interleaved.", "", *HEAD]
    lines += [_line(row) for row in content["rows"]] + [_missing(name) for name in content["missing"]]
    lines += ["", *(f"- {'met' if g['met'] else 'MISSED'}: {g['goal']} ({g['value']:.2f})" for g in content["goals"])]
    lines += ["", _how(content), "", origin(content)]
    return "\n".join(lines) + "\n"


HEAD = (
    "| method | way | batch | images a call | images/s | in forwards | x published | x package | peak MiB |",
    "|---|---|--:|--:|--:|--:|--:|--:|--:|",
)


def _line(row: dict[str, Any]) -> str:
    ratios = ("forwards", "times_published", "times_package")
    cells = [row["method"], row["way"], row["batch"], row["images"], f"{row['images_per_second']:.2f}"]
    cells += [f"{row[ratio]:.2f}" if row[ratio] else "" for ratio in ratios]
    return f"| {' | '.join(map(str, cells))} | {row['peak_bytes'] / MIB:.0f} |"


def _missing(name: str) -> str:
    methods = ", ".join(method.label for method in METHODS if name in method.others)
    return f"| {methods} | {name}: not installed (pip install {name}), not measured | | | | | | | |"


def _how(content: dict[str, Any]) -> str:
    worst = ", ".join(f"{line['method']} ({line['way']}) {line['difference']:.0e}" for line in content["check"])
    return (
        "`published` re-creates the published systems' work: one image a call, explicit attention caught by hooks, "
        "N x N products, gradients of all weights, fp32. Its hooks that pile up and graphs that live on are not "
        "charged to it. Of a method with options, ours is timed with those that give its number. `x published`, "
        "`x package`: times the images/s, at batch 1 and at the same batch; `in forwards`: seconds against a forward "
        "of the same batch; both are medians over rounds of the ratio within a round. captum's guided_backprop guides "
        "ReLU alone, so that of a ViT it is the plain gradient; grad-cam also enlarges its maps. abpc makes 19 forward "
        "passes of an image where the published way makes 22. Peak: tensors on top of the "
        f"{content['resident_bytes'] / MIB:.0f} MiB of weights. Largest difference to ours in double precision, "
        f"relative to a map's top: {worst}."
    )
