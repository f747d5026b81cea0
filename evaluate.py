"""Measure a trained run on a split.

    python evaluate.py --run runs/quickstart/two_stage-seed0
    python evaluate.py --run runs/waterbirds-k8 --split val --metrics accuracy groups --data.root /data/CUB_200_2011

Any key of the run's config can be overridden by a flag. Writes results.json, figures.csv, figures.md, sheet.png,
failures.png and a self-contained report.html to RUN/evaluation/SPLIT (or --out). Two evaluations of one checkpoint on
the CPU are equal to the last bit.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError, exit_on_user_error
from datasets import eval_loader, load_split
from engine.checkpointing import load_weights, read_checkpoint
from engine.config import RunConfig
from engine.evaluation import Recorder, evaluate
from engine.pictures import Photographer
from engine.runs import BEST, CONFIG_FILE, LAST, METRICS_FILE, RESULTS, prepare_process, provenance, run_config
from engine.tracking import read_rows
from engine.trainer import PRECISIONS
from metrics.registry import METRICS, build_metrics, default_metrics
from models import build_model
from models.part_discovery import Intervention
from models.registry import AnyModel
from models.two_stage import TwoStageModel
from report.evaluation import HEADLINES, write_evaluation_report
from report.files import json_text, write_atomic


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """Known flags, and the rest: overrides of the run's config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder that train.py wrote")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument(
        "--metrics", nargs="+", metavar="NAME", help=f"default: all that apply, of {', '.join(METRICS)}"
    )
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    parser.add_argument("--thresholds", type=Path, help='JSON {"0": t, ...}: part-logit thresholds, one per part')
    parser.add_argument("--remove-parts", type=int, nargs="+", default=[], metavar="K", help="parts (from 0) to hide")
    parser.add_argument("--out", type=Path, help="default: RUN/evaluation/SPLIT")
    return parser.parse_known_args()


def load_model(run: Path, config: RunConfig, checkpoint: str, num_classes: int) -> AnyModel:
    """The run's model with its best or last weights (last: the moving average where the run kept one)."""
    model = build_model(config.model, num_classes, config.data.size_hw, weights=False)
    if checkpoint == "best":
        path = run / BEST / "model.safetensors"
        load_weights(model, read_checkpoint(path).tensors, path)
        return model
    last = read_checkpoint(run / LAST)
    load_weights(model, last.part("ema") or last.part("model"), run / LAST)
    return model


def read_intervention(args: argparse.Namespace, model: AnyModel) -> Intervention | None:
    """What the user takes away at test time. Raises UserError for parts or thresholds the model does not have."""
    if not args.thresholds and not args.remove_parts:
        return None
    if not isinstance(model, TwoStageModel):
        raise UserError("--thresholds and --remove-parts need a two-stage run: a plain ViT has no parts")
    parts = model.model_config.parts.num_parts
    if any(not 0 <= part < parts for part in args.remove_parts):
        raise UserError(f"--remove-parts: parts are numbered 0 to {parts - 1}, got {args.remove_parts}")
    return Intervention(_read_thresholds(args.thresholds, parts), tuple(args.remove_parts))


def _read_thresholds(path: Path | None, parts: int) -> torch.Tensor | None:
    if path is None:
        return None
    try:
        content = json.loads(path.read_text())
        return torch.tensor([float(content[str(k)]) for k in range(parts)])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'--thresholds: {path} must map "0".."{parts - 1}" to numbers ({error})') from None


@exit_on_user_error
def main() -> None:
    """Command line."""
    # 1. run and data
    args, overrides = parse_args()
    config = run_config(args.run, overrides)
    device = prepare_process(config)
    split = load_split(config.data, args.split, train=False, seed=config.train.seed)

    # 2. model and metrics
    model = load_model(args.run, config, args.checkpoint, split.info.num_classes).to(device)
    two_stage = isinstance(model, TwoStageModel)
    metrics = build_metrics(args.metrics or default_metrics(split.info, has_mask=two_stage), split.info)
    intervention = read_intervention(args, model)
    options: dict[str, Any] = {"intervention": intervention} if intervention else {}

    # 3. measure
    recorder, started = Recorder(), time.perf_counter()
    loader = eval_loader(split, batch_size=config.data.eval_batch_size, workers=config.data.workers)
    precision = PRECISIONS[config.train.precision]
    figures = evaluate(model, loader, metrics, device, precision, observers=[recorder], options=options)

    # 4. write
    out = args.out or args.run / "evaluation" / args.split
    out.mkdir(parents=True, exist_ok=True)
    details = {
        "run": str(args.run), "checkpoint": args.checkpoint, "split": args.split, "images": len(split),
        "seconds": time.perf_counter() - started, "interventions": {"remove_parts": args.remove_parts,
        "thresholds": str(args.thresholds) if args.thresholds else None}, "provenance": provenance(),
    }  # fmt: skip
    content = {**{f"{args.split}/{key}": value for key, value in figures.items()}, **details}
    write_atomic(out / RESULTS, json_text(content))
    photographer = Photographer(split, config.data.mean, config.data.std)
    sheet = photographer.sheet(model, out / "sheet.png", **options)
    failures = photographer.failures(model, recorder.records, out / "failures.png", **options)
    history, text = read_rows(args.run / METRICS_FILE), (args.run / CONFIG_FILE).read_text()
    title = f"{args.run.name}: {args.split}"
    report = write_evaluation_report(out, title, figures, details, history, sheet, failures, text)
    print(f"{args.split}, {len(split)} images: " + ", ".join(f"{name} {figures[name]:.4f}" for name in shown(figures)))
    print(f"look at {report}")


def shown(figures: Mapping[str, float]) -> list[str]:
    """The figures worth a line on the terminal."""
    return [name for name in HEADLINES if name in figures]


if __name__ == "__main__":
    main()
