"""Train one model from one resolved config.

    python train.py --config configs/quickstart.yaml --out runs/mine --model.parts.num_parts 8

Writes to the run folder: config.yaml, metrics.jsonl, curves.png, sheets/, checkpoints/last.safetensors, best/ (for
`from_pretrained`), results.json. Ctrl-C and SIGTERM finish the step and save; `--resume=true` goes on exactly there.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from common.errors import exit_on_user_error
from datasets import Split, load_split
from engine.checkpointing import load_weights, read_checkpoint
from engine.config import RunConfig, parse_config
from engine.objectives import OBJECTIVES
from engine.optim import plain_rules, two_stage_rules
from engine.pictures import Photographer
from engine.runs import BEST, CONFIG_FILE, RESULTS, open_run, prepare_process, provenance
from engine.stopping import RunStopped
from engine.tracking import Row, Tracker
from engine.trainer import Trainer
from models import build_model
from report.curves import training_curves
from report.files import json_text, write_atomic


def train(config: RunConfig) -> Row:
    """Train as `config` says, evaluate the best checkpoint on the test split, and return what results.json holds."""
    # 1. machine and data
    device = prepare_process(config)
    splits = load_splits(config)
    info = splits["train"].info

    # 2. model and objective
    resume_weights = not config.resume
    model = build_model(config.model, info.num_classes, config.data.size_hw, config.train.seed, weights=resume_weights)
    counts = torch.bincount(torch.tensor(list(splits["train"].labels)), minlength=info.num_classes).tolist()
    objective = OBJECTIVES[config.model.name](config.loss, info.num_classes, counts)
    rules = plain_rules(config.optim) if config.model.name == "vit" else two_stage_rules(config.optim)

    # 3. trainer and, once everything is known to fit, the run folder
    trainer = Trainer(config, model, objective, rules, splits, device)
    if config.resume:
        trainer.load()
    out = open_run(config, model)
    tracker = Tracker(out, config, trainer.progress.wandb_id)
    tracker.keep_epochs(trainer.progress.epoch)
    photographer = Photographer(splits["val"], config.data.mean, config.data.std)

    # 4. train
    def after_epoch(row: Row) -> None:
        every, epoch = config.train.sheet_every, row["epoch"]
        tracker.picture("curves", training_curves(tracker.rows(), out / "curves.png"), epoch)
        if epoch == config.train.epochs or (every and epoch % every == 0):
            sheet = photographer.sheet(trainer.evaluated_model(), out / "sheets" / f"epoch_{epoch:03d}.png")
            tracker.picture("sheet", sheet, epoch)

    trainer.run(tracker, after_epoch)

    # 5. the best checkpoint on the test split
    results = final_results(trainer, config)
    write_atomic(out / RESULTS, json_text(results))
    tracker.say(f"test accuracy {results['test/accuracy']:.1%} (best epoch {results['best_epoch']}); results in {out}")
    tracker.finish(results)
    return results


def load_splits(config: RunConfig) -> dict[str, Split]:
    """The three splits; training augmented."""
    seed = config.train.seed
    return {name: load_split(config.data, name, train=name == "train", seed=seed) for name in ("train", "val", "test")}


def final_results(trainer: Trainer, config: RunConfig) -> dict[str, Any]:
    """Figures of the best checkpoint on test and validation, with what they cost and where they came from."""
    path = Path(config.out) / BEST / "model.safetensors"
    load_weights(trainer.evaluated_model(), read_best(path), path)
    progress = trainer.progress
    return {
        **trainer.evaluate("val"),
        **trainer.evaluate("test"),
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "seed": config.train.seed,
        "model": config.model.name,
        "train_seconds": progress.train_seconds,
        "wall_seconds": progress.wall_seconds,
        "skipped": progress.skipped,
        "provenance": provenance(),
    }


def read_best(path: Path) -> dict[str, torch.Tensor]:
    """The best weights of a run."""
    return read_checkpoint(path).tensors


@exit_on_user_error
def main() -> None:
    """Command line."""
    config = parse_config(description=__doc__)
    try:
        train(config)
    except RunStopped as stopped:
        command = f"python train.py --config {shlex.quote(str(Path(config.out) / CONFIG_FILE))} --resume=true"
        print(f"stopped by {stopped}; everything is saved in {config.out}; go on with: {command}", file=sys.stderr)
        raise SystemExit(stopped.exit_code) from None


if __name__ == "__main__":
    main()
