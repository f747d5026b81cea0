"""The table of inference: what was measured, on what, as JSON and as Markdown."""

from datetime import date
from statistics import median
from typing import Any

import numpy as np
from inference_measure import Case
from step_report import MIB, origin

QUANTILES = {"min": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}


def entry(
    name: str,
    source: str,
    parameters: dict[str, int],
    grid: tuple[int, int] | None,
    counts: list[int],
    apart: float,
    flops: dict[str, dict[str, float]],
    cases: list[Case],
) -> dict[str, Any]:
    """Everything measured of one model.

    `counts`: patches seen of every image. `apart`: see `inference_measure.difference`. `flops`: path -> stage ->
    operations an image.
    """
    return {
        "model": name,
        "source": source,
        "parameters": parameters,
        "grid": grid,
        "kept": {"quantiles": quantiles(counts), "mean": float(np.mean(counts)), "counts": counts} if counts else None,
        "difference_of_paths": apart,
        "flops_per_image": flops,
        "rows": [row(case) for case in cases],
    }


def quantiles(counts: list[int]) -> dict[str, float]:
    """How many patches stage 2 sees of an image."""
    return {name: float(np.quantile(counts, share)) for name, share in QUANTILES.items()}


def row(case: Case) -> dict[str, Any]:
    """One case. p90: nine of ten batches took no longer, so nine of ten went at least at that speed."""
    middle, late = median(case.seconds), float(np.quantile(case.seconds, 0.9))
    return {
        "path": case.path,
        "batch": case.batch,
        "images_per_second": case.batch / middle,
        "images_per_second_p90": case.batch / late,
        "median_seconds": middle,
        "p90_seconds": late,
        "peak_bytes": case.peak_bytes,
        "seconds": case.seconds,
    }


def summary(options: dict[str, Any], machine: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything a reader of the figures needs."""
    return {"date": date.today().isoformat(), "machine": machine, "options": options, "models": entries}


def markdown(content: dict[str, Any]) -> str:
    """The same for people."""
    options = content["options"]
    what = f"{options['precision']}, {options['rounds']} interleaved rounds after a warm-up, the device synchronised."
    lines = ["# Inference", "", f"Whole batches through the whole model, {what}", ""]
    for model in content["models"]:
        lines += [f"## {model['model']}", "", *_about(model), "", *_table(model["rows"]), ""]
    how = (
        "p90: the speed that nine of ten batches reach. Peak: tensors on top of weights and images. FLOPs: of matrix "
        "products, convolutions and attention, a product and its sum counting as two; stage 2's are the mean over the "
        "images, without padding. `dense` masks the hidden patches, `packed` and `gathered` drop them."
    )
    return "\n".join([*lines, how, "", origin(content)]) + "\n"


def _about(model: dict[str, Any]) -> list[str]:
    size = ", ".join(f"{_words(name)} {count / 1e6:.2f} M" for name, count in model["parameters"].items())
    lines = [f"- measured on {model['source']}", f"- parameters: {size}"]
    for path, stages in model["flops_per_image"].items():
        work = " + ".join(f"{_words(name)} {count / 1e9:.2f}" for name, count in stages.items())
        lines.append(f"- GFLOPs an image, {path}: {work} = {sum(stages.values()) / 1e9:.2f}")
    if len(model["flops_per_image"]) > 1:
        lines.append(
            f"- largest difference between the paths' logits: {model['difference_of_paths']:.1e} of the largest"
        )
    if model["kept"]:
        rows, columns = model["grid"]
        shown = ", ".join(f"{name} {count:.0f}" for name, count in model["kept"]["quantiles"].items())
        share = model["kept"]["mean"] / (rows * columns)
        lines.append(
            f"- of {rows * columns} patches stage 2 sees: {shown}, mean {model['kept']['mean']:.1f} ({share:.1%})"
        )
    return lines


def _words(name: str) -> str:
    return name.replace("_", " ")


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| path | batch | images/s | images/s, p90 | median s | p90 s | peak MiB |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for line in rows:
        speeds = f"{line['images_per_second']:.1f} | {line['images_per_second_p90']:.1f}"
        times = f"{line['median_seconds']:.4f} | {line['p90_seconds']:.4f}"
        lines.append(f"| {line['path']} | {line['batch']} | {speeds} | {times} | {line['peak_bytes'] / MIB:.0f} |")
    return lines
