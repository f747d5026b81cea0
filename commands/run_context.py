"""What the commands that measure a model have in common: the config, the device, the model and the output folder."""

import argparse
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from common.errors import UserError
from common.processes import processes
from datasets.types import DatasetInfo
from engine.evaluation.loading import load_run_model
from engine.evaluation.records import PREDICTIONS_FILE
from engine.run.atomic_files import DAY, remove_leftovers
from engine.run.config import RunConfig
from engine.run.folder import CONFIG_FILE, RESULTS, run_config
from engine.run.machine import precision_of, prepare_process, provenance
from engine.run.own_files import check_links
from engine.run.tracking import progress_bar
from models.interface import ImageClassifier
from report.files import check_folder, json_text, write_atomic

METHODS_FILE = "methods.json"
MODES = {PREDICTIONS_FILE: "predictions of a run", METHODS_FILE: "explanation methods"}
"""A file that only one mode of evaluate.py writes -> what it measures."""


def check_mode(out: Path, own: str) -> None:
    """Raise UserError if `out` holds the files of another mode than the one that writes the file `own`.

    Both modes write results.json, report.html and sheet.png, so the folder would mix two evaluations.
    """
    for name, what in MODES.items():
        if name != own and (out / name).exists():
            raise UserError(f"--out: {out} holds an evaluation of {what} ({name}); choose another folder")


@dataclass(frozen=True)
class RunContext:
    """A run folder (or a model from timm) under evaluation, and the folder the results go to."""

    source: Path
    """The run folder, or timm/NAME, torchvision/NAME or hf/NAME."""
    checkpoint: str
    """Of a run "best" or "last"; of another model where its weights come from."""
    config: RunConfig
    """The run's config with the overrides from the command line."""
    device: torch.device
    out: Path

    @classmethod
    def open(cls, args: argparse.Namespace, overrides: list[str], default_out: str) -> "RunContext":
        """Open `args.run` and set up this process (threads, determinism, device); creates nothing.

        `default_out`: output folder below the run, used without --out. Raises UserError if that folder is not writable
        or a link, the run is not a run folder, or an override is not valid.
        """
        if not args.out:
            check_links(args.run)
        out = check_folder(args.out or args.run / default_out, "--out")
        config = run_config(args.run, overrides)
        return cls(args.run, args.checkpoint, config, prepare_process(config), out)

    @property
    def precision(self) -> torch.dtype:
        """The autocast dtype of `train.precision`."""
        return precision_of(self.config.train.precision, self.device)

    @property
    def config_text(self) -> str:
        """The config as the run saved it, YAML; of a model that is not a run the config in use."""
        saved = self.source / CONFIG_FILE
        return saved.read_text() if saved.is_file() else yaml.safe_dump(asdict(self.config), sort_keys=False)

    def load_model(self, info: DatasetInfo) -> ImageClassifier:
        """The run's model with the weights of `checkpoint`, on the device."""
        model = load_run_model(self.source, self.config, self.checkpoint, info.num_outputs)
        return model.to(self.device, non_blocking=True)

    def progress(self, description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar, shown by the main process; see `progress_bar`."""
        return progress_bar(Console(quiet=not processes().is_main), description, total)

    def details(self, **measured: Any) -> dict[str, Any]:
        """What was measured, for results.json and the report: the run, `measured`, and the provenance."""
        return {"run": str(self.source), "checkpoint": self.checkpoint, **measured, "provenance": provenance()}

    def write_results(self, content: Mapping[str, Any]) -> None:
        """Write results.json, after removing what killed processes left in the folder."""
        remove_leftovers(self.out, self.out / "per_image", age=DAY)
        write_atomic(self.out / RESULTS, json_text(content))
