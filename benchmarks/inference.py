"""Parameters, FLOPs, images per second and memory of inference, dense and with the hidden patches dropped.

    python benchmarks/inference.py runs/waterbirds-k8 --data.root data/CUB_200_2011 --batch 1 16 64
    python benchmarks/inference.py two_stage/vit_base_patch14_reg4_dinov2 vit/vit_base_patch14_reg4_dinov2 --save

A run is measured with its best weights and the images of a split, where stage 1 decides how much is hidden; flags with
a dot override its config. KIND/BACKBONE has random weights, and sees noise through masks of a given share.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for python benchmarks/inference.py

from inference_measure import difference, flops, kept_counts, parameters, paths_of, stage_2_of, timings
from inference_report import entry, markdown, summary
from inference_subjects import Subject, random_subject, run_subject
from step_report import write

from common.errors import UserError, exit_on_user_error
from datasets.types import SPLITS
from engine.evaluation.predict import evaluation_mode
from engine.run.folder import CONFIG_FILE
from engine.run.machine import PRECISIONS, pick_device, provenance
from models import masked_vit
from models.backbone import grid_of

RESULTS = Path(__file__).resolve().parent / "results"


def parse(args: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command line: known flags, and overrides of the runs' configs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("models", nargs="+", metavar="RUN|KIND/BACKBONE")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], metavar="B", help="images a batch")
    parser.add_argument("--rounds", type=int, default=20, help="timed batches of every case")
    parser.add_argument("--images", type=int, default=64, help="images in use, over and over")
    parser.add_argument("--split", choices=SPLITS, default="test", help="of a run")
    parser.add_argument(
        "--paths", nargs="+", choices=get_args(masked_vit.Path), default=["dense", "auto"], help="through stage 2"
    )
    parser.add_argument("--image-size", type=int, default=224, help="of KIND/BACKBONE, pixels")
    parser.add_argument("--keep", type=float, default=0.3, help="share of patches that stage 2 of KIND/BACKBONE sees")
    parser.add_argument("--spread", type=float, default=0.5, help="0.5: shares run from 0.5 to 1.5 x keep")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = torch's choice")
    parser.add_argument("--out", type=Path, help="write the table to this file's .json and .md")
    parser.add_argument("--save", action="store_true", help=f"write it under {RESULTS.parent.name}/{RESULTS.name}")
    options, overrides = parser.parse_known_args(args)
    if unknown := [word for word in overrides if not word.startswith("--") or "." not in word.partition("=")[0]]:
        parser.error(f"{unknown[0]}: overrides of a run's config are written --data.root=...")
    if min(*options.batch, options.rounds, options.images) < 1:
        parser.error("--batch, --rounds and --images are at least 1")
    if not (0 < options.keep <= 1 and 0 <= options.spread <= 1):
        parser.error("--keep lies in (0, 1], --spread in [0, 1]")
    return options, overrides


def subject(name: str, options: argparse.Namespace, overrides: list[str]) -> Subject:
    """What `name` stands for. Raises UserError."""
    if (Path(name) / CONFIG_FILE).is_file():
        return run_subject(Path(name), options.split, options.images, overrides)
    if Path(name).is_dir():
        raise UserError(f"{name} is not a run folder: it has no {CONFIG_FILE}")
    return random_subject(name, options.images, options.image_size, options.keep, options.spread)


def measure(each: Subject, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One model's entry of the table."""
    each.model.to(device)
    with evaluation_mode(each.model, device, seed=0):
        paths = paths_of(each.model, options.paths)
        counts = kept_counts(each, max(options.batch), device)
        apart = difference(each, paths, min(options.batch), device)
        work = {path: flops(each, path, counts, device) for path in paths}
        cases = timings(each, paths, options.batch, options.rounds, PRECISIONS[options.precision], device)
    stage_2 = stage_2_of(each.model)
    grid = None if stage_2 is None else grid_of(stage_2.backbone)
    return entry(each.name, each.source, parameters(each.model), grid, counts, apart, work, cases)


@exit_on_user_error
def main(args: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options, overrides = parse(args)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    entries = []
    for name in options.models:
        entries.append(measure(subject(name, options, overrides), options, device))
        print(f"measured {name}", file=sys.stderr, flush=True)
    shown = {name: value for name, value in vars(options).items() if name not in ("out", "save")}
    content = summary(shown | {"overrides": overrides}, provenance(), entries)
    page = markdown(content)
    print(page)
    name = "_".join(
        ["inference", *(each["model"].replace("/", "-") for each in entries), device.type, options.precision]
    )
    out = options.out or (RESULTS / name if options.save else None)
    for path in write(content, page, out) if out else []:
        print(f"wrote {path}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
