"""The run folder: its files, and how it is opened and read."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import parse_json, read_file
from datasets.trained_on import TrainedOn, read_trained_on
from datasets.types import DatasetInfo
from engine.run.atomic_files import remove_leftovers, replacing
from engine.run.checkpointing import checkpoint_exists
from engine.run.command_line import parse_config
from engine.run.config import RunConfig, save_config
from engine.run.own_files import check_links, delete_run
from engine.run.renamed_keys import converted_metrics
from models.interface import ImageClassifier

CONFIG_FILE = "config.yaml"
LAST = Path("checkpoints") / "last.safetensors"
BEST = Path("best")
METRICS_FILE = "metrics.jsonl"
RESULTS = Path("results.json")


def open_run(config: RunConfig, model: ImageClassifier, info: DatasetInfo | None = None) -> Path:
    """Create the run folder; write config.yaml, and best/config.json, from which `from_pretrained` rebuilds the model.

    `info`: the training data, whose classes are stored with the model; None if they are not known.

    Raises UserError, and changes nothing, if the folder holds a run that is neither to be resumed nor overwritten, or
    files that are to be overwritten but are no run's (`delete_run`).
    """
    out = Path(config.out)
    resumable = checkpoint_exists(out / LAST)
    used = resumable or (out / BEST / "model.safetensors").exists()
    # auto: a run that died before its first checkpoint cannot be resumed, but may have a best model.
    may_use = config.resume is True or (config.resume == "auto" and (out / LAST.parent).is_dir() and not resumable)
    if used and not (may_use or config.overwrite):
        raise UserError(f"{out} already holds a run; choose another --out, or pass --resume=true or --overwrite=true")
    try:
        check_links(out)
        if config.overwrite and used:
            delete_run(out)
        for folder in (out / LAST.parent, out / BEST):
            folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out, out / LAST.parent, out / BEST, out / "sheets")
        # resume and overwrite apply to this start only: saved, they would block the next `--config RUN/config.yaml`.
        with replacing(out / CONFIG_FILE) as file:
            save_config(replace(config, resume=False, allow_change=False, overwrite=False), file)
        if info:
            model.remember_data(TrainedOn.of(config.data, info).as_dict())
        with replacing(out / BEST / "config.json") as file:
            file.write_text(json.dumps(model._hub_mixin_config, indent=2, sort_keys=True))
    except OSError as error:
        raise UserError(f"--out: cannot write to {out} ({error.strerror})") from None
    return out


def run_config(run: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config a run was trained with; `overrides` are flags such as "--data.root=...". Raises UserError."""
    if not (run / CONFIG_FILE).is_file():
        raise UserError(f"{run} is not a run folder: it has no {CONFIG_FILE}")
    given = {flag.partition("=")[0] for flag in overrides}
    # Another evaluation transform has an interpolation and a crop of its own, not the saved ones.
    reopened = ("--data.interpolation=auto", "--data.crop=0") if "--data.evaluation" in given else ()
    return parse_config([f"--config={run / CONFIG_FILE}", *reopened, *overrides])


def trained_on(run: Path) -> TrainedOn | None:
    """What the run's model was trained on; None for runs of earlier versions and published checkpoints."""
    return read_trained_on(run / BEST / "config.json")


def read_results(run: Path) -> dict[str, Any] | None:
    """The results.json of a finished run; None if there is none yet. Raises UserError if it is damaged."""
    path = run / RESULTS
    if not path.is_file():
        return None
    try:
        results = parse_json(read_file(path))
        if not isinstance(results, dict) or not has_numbers(results):
            raise ValueError("no metrics")
        return converted_metrics(results)
    except (OSError, ValueError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged; delete it and run the same command again") from None


def has_numbers(values: dict[str, Any]) -> bool:
    """Whether all that is named as a metric of a split is a number, or None for nan."""
    metrics = (value for key, value in values.items() if key.startswith(("train/", "val/", "test/")))
    return all(value is None or isinstance(value, int | float) for value in metrics)
