"""Log a run's metrics to metrics.jsonl, the terminal and, optionally, Weights & Biases and TensorBoard."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common.errors import UserError, printable
from common.processes import processes
from engine.run.atomic_files import replacing
from engine.run.config import RunConfig
from engine.run.folder import METRICS_FILE, has_numbers
from engine.run.renamed_keys import converted_metrics
from engine.run.trackers import MetricsRow, Mirror, TensorboardMirror, WandbMirror, wandb_mode

LINE_EVERY = 60
"""Seconds between the lines of a progress that is written to a file."""

_COLUMNS = (
    ("train/loss", "loss", "8.4f"),
    ("val/accuracy", "val acc", "7.1%"),
    ("val/mean_average_precision", "val mAP", "7.1%"),
    ("val/worst_group_accuracy", "val worst", "9.1%"),
    ("val/mask_iou", "val IoU", "7.3f"),
    ("val/keep_ratio", "kept", "6.1%"),
    ("test/worst_group_accuracy", "test worst", "10.1%"),
    ("train/images_per_second", "img/s", "7.0f"),
    ("train/seconds", "seconds", "7.1f"),
)


class Tracker:
    """Writes one row of metrics per validation or epoch to every destination.

    Only in the job's main process; in the others it writes and prints nothing.
    """

    def __init__(self, out: Path, config: RunConfig, run_id: str | None = None) -> None:
        """`run_id` continues a Weights & Biases run."""
        self.path, self.active = out / METRICS_FILE, processes().is_main
        self.console = Console(highlight=False, markup=False, quiet=not self.active)  # paths may contain [brackets]
        self._header_shown, self._tensorboard = False, self.active and "tensorboard" in config.train.trackers
        mode = wandb_mode(config) if self.active else "off"
        self.wandb = None if mode == "off" else WandbMirror(out, config, mode, run_id, self.message)
        self.mirrors: list[Mirror] = [self.wandb] if self.wandb else []

    @property
    def run_id(self) -> str | None:
        """Id of the Weights & Biases run, saved in checkpoints so that a resumed run continues it."""
        return self.wandb.run.id if self.wandb else None

    def rows(self) -> list[MetricsRow]:
        """All rows written so far."""
        return read_rows(self.path)

    def truncate(self, last: float) -> None:
        """Drop rows after epoch `last`, which a resumed run writes again, and open TensorBoard's files there."""
        if not self.active:
            return
        rows = [row for row in self.rows() if row["epoch"] <= last]
        with _disk_errors(self.path), replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if self._tensorboard:
            self.mirrors.append(TensorboardMirror(self.path.parent, rows[-1]["step"] if rows else -1))

    def log(self, row: MetricsRow) -> None:
        """Write one row, of an epoch or of a validation within one (its "epoch" is then fractional)."""
        if not self.active:
            return
        with _disk_errors(self.path):
            _append_line(self.path, json.dumps(row))
        self._print(row)
        for mirror in self.mirrors:
            mirror.log(row)

    def image(self, name: str, path: Path, step: int) -> None:
        """Log an image of the run folder to every mirror."""
        for mirror in self.mirrors:
            mirror.image(name, path, step)

    def message(self, text: str) -> None:
        """Print one line for the user."""
        self.console.print(printable(text), soft_wrap=True)

    def finish(self, summary: MetricsRow) -> None:
        """Log the summary and close every mirror."""
        for mirror in self.mirrors:
            mirror.finish(summary)

    def bar(self, description: str, total: int, start: int = 0) -> AbstractContextManager[Callable[[int], None]]:
        """See `progress_bar`."""
        return progress_bar(self.console, description, total, start)

    def _print(self, row: MetricsRow) -> None:
        shown = [(title, row[key], form) for key, title, form in _COLUMNS if key in row]
        if not self._header_shown:
            titles = "  ".join(title.rjust(int(form.split(".")[0])) for title, _, form in shown)
            self.console.print(f"epoch  {titles}", style="bold", soft_wrap=True)
            self._header_shown = True
        results = "  ".join(format(value, form) for _, value, form in shown)
        self.console.print(f"{row['epoch']:5.4g}  {results}", soft_wrap=True)


@contextmanager
def progress_bar(console: Console, description: str, total: int, start: int = 0) -> Iterator[Callable[[float], None]]:
    """A progress bar with rate and ETA; yields a function to call after each step with its number of images.

    Where the console is no terminal (a log file) it is a line every `LINE_EVERY` seconds instead.
    """
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True,
        disable=console.quiet or not console.is_terminal,
    )  # fmt: skip
    with progress:
        task = progress.add_task(description, total=total, completed=start, rate="")
        images, done, began, said = 0.0, start, time.monotonic(), time.monotonic()

        def advance(count: float) -> None:
            nonlocal images, done, said
            images, done, now = images + count, done + 1, time.monotonic()
            rate = f"{images / (now - began):.3g} img/s" if now > began else ""
            progress.update(task, advance=1, rate=rate)
            if not console.is_terminal and now - said >= LINE_EVERY:
                said = now
                left = timedelta(seconds=round((now - began) / (done - start) * (total - done)))
                console.print(f"{description}: {done} of {total}, {rate}, {left} left", soft_wrap=True)

        yield advance


def read_rows(path: Path) -> list[MetricsRow]:
    """The rows of a metrics.jsonl, up to the first damaged line (a crash may cut the last one short)."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
            if not isinstance(row["epoch"], int | float) or not abs(row["epoch"]) < 1e9 or not has_numbers(row):
                break
        except (ValueError, TypeError, KeyError, RecursionError):
            break
        rows.append(converted_metrics(row))
    return rows


def _append_line(path: Path, line: str) -> None:
    """Append the line and flush it to disk; on failure remove what was written of it."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):  # it may not exist
            os.truncate(path, before)
        raise


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; its earlier content is unchanged") from None
