"""The table: what was measured, on what, as JSON and as Markdown."""

import json
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from step_measure import Case, speed_up

GOAL_STEP = 1.6  # times fewer seconds a step than published, at keep 0.3
GOAL_STAGE_2 = 0.28  # of dense's seconds, at keep 0.25
MIB = 2**20


def rows(cases: list[Case]) -> list[dict[str, Any]]:
    """Each case with its median, its least and its ratios to its baseline."""
    found = []
    for case in cases:
        baseline = cases[case.baseline]
        row = asdict(case) | {"baseline": baseline.variant, "median_seconds": median(case.seconds)}
        row |= {"min_seconds": min(case.seconds), "times_faster": speed_up(case.seconds, baseline.seconds)}
        row |= {"memory_share": case.peak_bytes / max(1, baseline.peak_bytes)}
        found.append(row)
    return found


def goals(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The two goals, where their cases were measured."""
    found = []
    for row in table:
        if (row["part"], row["variant"], row["keep"]) == ("training step", "packed", 0.3):
            what = f"packed step at keep 0.3: >= {GOAL_STEP}x fewer seconds than published"
            found.append({"goal": what, "value": row["times_faster"], "met": row["times_faster"] >= GOAL_STEP})
        if row["part"].startswith("stage 2") and (row["variant"], row["keep"]) == ("packed", 0.25):
            share = 1 / row["times_faster"]
            what = f"packed stage 2 at keep 0.25: <= {GOAL_STAGE_2} of dense's seconds"
            found.append({"goal": what, "value": share, "met": share <= GOAL_STAGE_2})
    return found


def summary(
    options: dict[str, Any], machine: dict[str, Any], check: dict[str, Any], resident_bytes: int, cases: list[Case]
) -> dict[str, Any]:
    """Everything a reader of the figures needs."""
    table = rows(cases)
    return {
        "date": date.today().isoformat(),
        "machine": machine,
        "options": options,
        "check": check,
        "resident_bytes": resident_bytes,
        "rows": table,
        "goals": goals(table),
    }


def markdown(content: dict[str, Any]) -> str:
    """The same for people."""
    lines = ["# One training step, against the published one", "", _what(content["options"]), ""]
    for part in dict.fromkeys(row["part"] for row in content["rows"]):
        lines += _table(part, [row for row in content["rows"] if row["part"] == part])
    lines += [f"- {'met' if g['met'] else 'MISSED'}: {g['goal']} ({g['value']:.3f})" for g in content["goals"]]
    lines += ["", _how(content), "", origin(content)]
    return "\n".join(lines) + "\n"


def origin(content: dict[str, Any]) -> str:
    """When, and on what: the last line of a table."""
    machine = content["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    where = f"{machine['device']}, Python {machine['python']}, {versions}, commit {machine['commit']}"
    return f"{content['date']}, {where}"


def _what(options: dict[str, Any]) -> str:
    spread = f"varying by {options['spread']:.0%} between images" if options["spread"] else "the same in every image"
    return (
        f"{options['backbone']} in both stages, {options['image_size']} px, batch {options['batch']}, "
        f"{options['precision']}{', compiled' if options['compile'] else ''}, {options['rounds']} interleaved rounds, "
        f"{options['clock']} seconds; "
        f"stage-1 backbone frozen as in the recommended runs; kept share given exactly, {spread}."
    )


def _table(part: str, table: list[dict[str, Any]]) -> list[str]:
    baseline = table[0]["baseline"]
    lines = [
        f"| {part} | keep | median s | min s | times faster than {baseline} | peak MiB | of {baseline}'s |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in table:
        keep = "any" if row["keep"] is None else f"{row['keep']:g}"
        lines.append(
            f"| {row['variant']} | {keep} | {row['median_seconds']:.3f} | {row['min_seconds']:.3f} "
            f"| {row['times_faster']:.2f} | {row['peak_bytes'] / MIB:.0f} | {row['memory_share']:.2f} |"
        )
    return [*lines, ""]


def _how(content: dict[str, Any]) -> str:
    worst = ", ".join(f"{name} {value['difference']:.1e}" for name, value in content["check"]["fp32"].items())
    return (
        "`published` re-creates the published step's work: the equivariance view runs both stages, stage 2 runs dense. "
        "Its further costs (a [B, D, K+1, h, w] product, a D x D Gram matrix, host syncs) are not charged to it. Its "
        "evaluation prunes already, by a padded gather. Times faster: median over rounds of the ratio within a round. "
        f"Peak: tensors on top of the {content['resident_bytes'] / MIB:.0f} MiB of weights and optimiser state. "
        f"Largest relative difference (2-norm) to `published` of the loss and every gradient, fp32: {worst}."
    )


def write(content: dict[str, Any], page: str, out: Path) -> list[Path]:
    """Write OUT.json and, with `page`, OUT.md (`out` may end in either); their paths."""
    out.parent.mkdir(parents=True, exist_ok=True)
    stem = out.stem if out.suffix in (".json", ".md") else out.name
    paths = [out.with_name(stem + ".json"), out.with_name(stem + ".md")]
    paths[0].write_text(json.dumps(content, indent=2) + "\n")
    paths[1].write_text(page)
    return paths
