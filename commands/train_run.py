"""Train a model and evaluate its best checkpoint: what train.py runs, from top to bottom."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from commands.prediction_visualizer import PredictionVisualizer
from commands.start_summary import start_lines
from common.errors import UserError
from common.processes import barrier, processes
from datasets import Split, load_split
from datasets.loader import BatchSampler
from datasets.readable import check_readable
from datasets.registry import WITHOUT_FILES
from datasets.semi_supervised import SemiSupervisedSampler, split_labels
from datasets.trained_on import check_same_classes
from datasets.types import SPLITS, DatasetInfo
from engine.evaluation.loading import warm_start
from engine.evaluation.predict import check_masks
from engine.evaluation.records import PREDICTIONS_FILE, PredictionTable
from engine.run.batch import for_processes
from engine.run.checkpointing import load_weights, read_checkpoint
from engine.run.config import RunConfig
from engine.run.fingerprint import Fingerprint
from engine.run.folder import BEST, RESULTS, open_run, trained_on
from engine.run.lives import count_life
from engine.run.lock import run_lock
from engine.run.machine import prepare_process, provenance
from engine.run.resume import resolve_resume
from engine.run.tracking import MetricsRow, Tracker, progress_bar
from engine.training.best_metric import check_best_metric, check_direction
from engine.training.consistency import ConsistencyObjective
from engine.training.objectives import OBJECTIVES, Objective, reads_annotations
from engine.training.optim import PARAM_GROUP_RULES
from engine.training.trainer import Trainer
from losses.classification import mixes_images
from models import build_model
from models.interface import ImageClassifier, needs_mask
from report.curves import training_curves
from report.files import json_text, write_atomic
from report.names import pretty

CURVES_EVERY = 20.0
"""Least seconds between two drawings of the curves, before the last: each takes a second of CPU."""


def train(config: RunConfig) -> MetricsRow:
    """Train with `config`, evaluate the best checkpoint on the test split, and return the content of results.json.

    Raises UserError if another job is writing the run folder.
    """
    with run_lock(Path(config.out)):
        if config.resume == "auto":
            count_life(Path(config.out))
        return _train(config)


def _train(config: RunConfig) -> MetricsRow:
    # 1. machine and data
    stated, first = resolve_resume(config), processes().is_main
    config = for_processes(stated, processes().world_size)
    resumes = config.resume is True
    device = prepare_process(config)
    splits = load_splits(config)
    fingerprint = Fingerprint.of(stated, splits, device)
    fingerprint.check_processes()
    info = splits["train"].info
    check_labels(config, info, config.out if resumes else config.model.init_from)
    if config.data.check_images:
        check_images(splits, config.data.loading_processes)

    # 2. model and objective
    fresh = not (resumes or config.model.init_from)
    model = build_model(config.model, info.num_classes, config.data.size_hw, config.train.seed, weights=fresh)
    if config.model.init_from and not resumes:
        warm_start(model, config.model.init_from)
    objective = build_objective(config, model, splits)
    rules = PARAM_GROUP_RULES[model.parameter_rules](config.optim)

    # 3. trainer and, after all checks, the run folder
    trainer = Trainer(config, model, objective, rules, splits, device, training_sampler(config, splits))
    if resumes:
        log: Callable[[str], None] = print if first else lambda message: None
        trainer.load(log)
        fingerprint.check_resumed(trainer.progress.fingerprint, stated.allow_change, log)
    else:
        known = trainer.metrics.certain()
        check_best_metric(config.train.best_metric, known, lambda: trainer.evaluate("val"))
    check_direction(config.train.best_metric)
    trainer.progress.fingerprint = fingerprint.saved()
    out = open_run(stated, model, info) if first else Path(config.out)
    tracker = Tracker(out, config, trainer.progress.wandb_id)
    tracker.truncate(trainer.position)
    for line in start_lines(config, splits, model, device):
        tracker.message(line)

    # 4. train
    after_epoch = epoch_images(config, splits["val"], trainer, tracker)
    trainer.run(tracker, after_epoch if first else lambda row: None)

    # 5. evaluate the best checkpoint on the test split
    predictions = PredictionTable(info)
    try:
        results, table = final_results(trainer, config, predictions), predictions.csv()
    except UserError as error:  # such as a test image that broke meanwhile
        raise UserError(f"{error}. Training is finished and saved: --resume evaluates it again") from None
    if first:
        write_atomic(out / PREDICTIONS_FILE, table)
        write_atomic(out / RESULTS, json_text(results))
    metric = config.train.best_metric if info.multi_label else "accuracy"
    value = f"{results[f'test/{metric}']:.1%}"
    tracker.message(f"test {pretty(metric)} {value} (best epoch {results['best_epoch']}); results in {out}")
    tracker.finish(results)
    return results


def epoch_images(config: RunConfig, val: Split, trainer: Trainer, tracker: Tracker) -> Callable[[MetricsRow], None]:
    """What draws the run's images after an epoch: curves, and a contact sheet where `train.sheet_every` wants one."""
    visualizer, out = PredictionVisualizer(val, *config.data.normalisation), Path(config.out)
    drawn = time.monotonic()

    def after_epoch(row: MetricsRow) -> None:
        nonlocal drawn
        every, epoch = config.train.sheet_every, row["epoch"]
        is_last = epoch == config.train.epochs
        if is_last or time.monotonic() - drawn > CURVES_EVERY:
            tracker.image("curves", training_curves(tracker.rows(), out / "curves.png"), row["step"])
            drawn = time.monotonic()
        if is_last or (every and epoch % every == 0):
            sheet = visualizer.sheet(trainer.evaluated_model(), out / "sheets" / f"epoch_{epoch:03d}.png")
            tracker.image("sheet", sheet, row["step"])

    return after_epoch


def check_labels(config: RunConfig, info: DatasetInfo, source: str) -> None:
    """Raise UserError if the run `source` ("": none) has other classes, or `best_metric` does not suit the labels."""
    if source and (trained := trained_on(Path(source))):
        check_same_classes(info, trained, source)
    if info.multi_label and config.train.best_metric == "accuracy":
        raise UserError(
            f"train.best_metric=accuracy: {info.name} is multi-label; "
            "set it to mean_average_precision, macro_f1 or micro_f1"
        )


def check_images(splits: Mapping[str, Split], workers: int) -> None:
    """Raise UserError naming validation and test images that cannot be read; see `check_readable`."""
    console = Console(quiet=not processes().is_main)
    for name in ("val", "test"):
        check_readable(splits[name], name, workers, partial(progress_bar, console))


def build_objective(config: RunConfig, model: ImageClassifier, splits: Mapping[str, Split]) -> Objective:
    """The objective of the model's kind. Raises UserError if the model needs masks that the data do not have."""
    mixing, info = config.loss.classification, splits["train"].info
    check_masks(model, splits.values(), mixes_images=mixes_images(mixing))
    counts = torch.bincount(torch.tensor(list(splits["train"].labels)), minlength=info.num_classes).tolist()
    kind = OBJECTIVES[model.objective]
    objective: Objective = kind(config.loss, info.num_classes, counts)
    if not needs_mask(model) and not reads_annotations(kind):  # nothing in a step reads them
        for name in splits.keys() & {"train", "unlabelled"}:
            splits[name].annotations = False
    if config.loss.consistency.weight:
        return ConsistencyObjective(objective, config.loss.consistency, config.data.semi.mode == "supervised")
    return objective


def load_splits(config: RunConfig) -> dict[str, Split]:
    """The three splits, "train" with augmentation; in semi-supervised training also "unlabelled".

    Raises UserError if data.root names files that the data set would not read: the default is a synthetic one.
    """
    if config.data.root and config.data.name in WITHOUT_FILES:
        raise UserError(
            f"data.root={config.data.root}: data.name={config.data.name} reads no files; give the name of your data "
            "(--data.name folder for your own images), or leave out data.root"
        )
    seed, semi = config.train.seed, config.data.semi
    splits = {name: load_split(config.data, name, train=name == "train", seed=seed) for name in SPLITS}
    for name, split in splits.items():
        if split.info.keys != splits["train"].info.keys:
            raise UserError(f"data.name={config.data.name}: the {name} split has other classes than the training split")
    if semi.mode != "supervised" or semi.images_per_class:
        splits["train"], rest = split_labels(splits["train"], semi, config.data.seed)
        splits |= {"unlabelled": rest} if semi.mode != "supervised" else {}
    return splits


def training_sampler(config: RunConfig, splits: dict[str, Split]) -> BatchSampler | None:
    """The sampler of training batches; None: the whole training split once per epoch."""
    semi = config.data.semi
    if semi.mode == "supervised":
        return None
    return SemiSupervisedSampler(splits["train"], splits["unlabelled"], config.data.batch_size, semi, config.train.seed)


def final_results(trainer: Trainer, config: RunConfig, predictions: PredictionTable) -> dict[str, Any]:
    """Validation and test metrics of the best checkpoint, with training time and provenance.

    `predictions` gets the predictions of the test images.
    """
    path = Path(config.out) / BEST / "model.safetensors"
    barrier()  # wait for the first process to write it
    load_weights(trainer.evaluated_model(), read_checkpoint(path).tensors, path)
    progress = trainer.progress
    return {
        **trainer.evaluate("val"),
        **trainer.evaluate("test", [predictions]),
        "best_epoch": progress.best_epoch,
        "best_metric": progress.best_metric,
        "epochs": progress.epoch,
        "seed": config.train.seed,
        "model": config.model.name,
        "train_seconds": progress.train_seconds,
        "wall_seconds": progress.wall_seconds,
        "skipped": progress.skipped,
        "split_origin": {name: split.info.split_origin for name, split in trainer.splits.items()},
        "provenance": provenance(),
    }
