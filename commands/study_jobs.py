"""A study: several rows (overrides of one config) times several seeds, each an ordinary run of train.py."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from commands.compare_evaluations import read_table
from common.errors import UserError
from common.plain_yaml import read_yaml
from datasets import load_split
from datasets.types import SPLITS
from engine.evaluation.records import PREDICTIONS_FILE
from engine.run.batch import in_one_process
from engine.run.checkpointing import checkpoint_exists
from engine.run.command_line import load_config
from engine.run.config import RunConfig
from engine.run.folder import LAST, read_results, run_config
from engine.run.resume import MAY_CHANGE, changes
from engine.run.tracking import MetricsRow
from metrics.comparison import compare_seeds
from models import build_model

T = TypeVar("T")


@dataclass(frozen=True)
class Study:
    """The content of a study file."""

    title: str
    about: str
    config: Path
    seeds: tuple[int, ...]
    vary: tuple[str, ...]
    """Config keys that are set to the seed."""
    rows: dict[str, dict[str, Any]]
    """Row name to overrides by dotted key; in strings, {out} and {seed} stand for the study's folder and the seed."""
    more_seeds: dict[str, tuple[int, ...]]
    """Row name to additional seeds of that row."""
    compare: dict[str, str]
    """Row name to the row that it is compared with, over all seeds of both."""

    def pairs(self, seeds: Sequence[int] | None = None) -> Iterator[tuple[int, str]]:
        """(seed, row) of every run; all rows of one seed first, so that an interrupted study can still compare them.

        `seeds`: replace the study's seeds, for every row.
        """
        common = tuple(seeds or self.seeds)
        extra = {row: () if seeds else self.more_seeds.get(row, ()) for row in self.rows}
        for seed in dict.fromkeys((*common, *(seed for more in extra.values() for seed in more))):
            yield from ((seed, row) for row in self.rows if seed in common or seed in extra[row])

    def only(self, names: list[str] | None) -> "Study":
        """The study with only the named rows (None: all). Raises UserError for an unknown row."""
        unknown = set(names or ()) - set(self.rows)
        if unknown:
            raise UserError(f"--rows: no row {', '.join(sorted(unknown))}; the study has {', '.join(self.rows)}")
        return replace(self, rows={name: self.rows[name] for name in names}) if names else self


@dataclass(frozen=True)
class Job:
    """The run of one row with one seed."""

    row: str
    seed: int
    config: RunConfig


def _list_of(kind: type[T], values: Any, key: str) -> tuple[T, ...]:
    """Raises ValueError for anything but a list of this type: of the text "12" a tuple would be 1 and 2."""
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ValueError(f"{key} is not a list of {kind.__name__}")
    return tuple(values)


def _not_a_name(row: str) -> str:
    """Why a row's name cannot begin the name of a folder; "" if it can."""
    checks = {
        "it is empty": not row.strip(),
        "it starts with a dot": row.startswith("."),
        "it has a / or a \\": "/" in row or "\\" in row,
        "it has a character that cannot be printed": not row.isprintable(),
        "it has more than 100 characters": len(row) > 100,
    }
    return next((problem for problem, found in checks.items() if found), "")


def load_study(path: Path) -> Study:
    """Read a study file. Raises UserError that names what is wrong in it."""
    content = read_yaml(path)
    try:
        study = Study(
            title=str(content["title"]),
            about=str(content.get("about", "")),
            config=Path(content["config"]),
            seeds=_list_of(int, content.get("seeds", [0]), "seeds"),
            vary=_list_of(str, content.get("vary", ["train.seed"]), "vary"),
            rows={str(name): dict(overrides or {}) for name, overrides in content["rows"].items()},
            more_seeds={
                str(name): _list_of(int, more, f"more_seeds of {name}")
                for name, more in content.get("more_seeds", {}).items()
            },
            compare={str(row): str(other) for row, other in content.get("compare", {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: a study needs title, config and rows ({' '.join(str(error).split())})") from None
    for row in study.rows:
        if problem := _not_a_name(row):
            raise UserError(f"{path}: the row {row[:80]!r} names a folder, but {problem}; rename it")
    if unknown := {str(key) for key in content} - set(Study.__dataclass_fields__):
        raise UserError(f"{path}: unknown keys {', '.join(sorted(unknown))}")
    if unknown := set(study.more_seeds) - set(study.rows):
        raise UserError(
            f"{path}: more_seeds names unknown rows {', '.join(sorted(unknown))}; rows: {', '.join(study.rows)}"
        )
    if unknown := {*study.compare, *study.compare.values()} - set(study.rows):
        raise UserError(
            f"{path}: compare names unknown rows {', '.join(sorted(unknown))}; rows: {', '.join(study.rows)}"
        )
    return study


def jobs(study: Study, out: Path, seeds: Sequence[int] | None, overrides: dict[str, Any]) -> Iterator[Job]:
    """Every run of the study, in the order of `Study.pairs`; `overrides` by dotted key win over those of the rows.

    Raises UserError for an override of a key that the study sets to the seed, of `out`, or of `overwrite`.
    """
    for keys in (overrides, *study.rows.values()):
        if "overwrite" in keys:
            raise UserError("overwrite: a study deletes no run; delete the run's folder, or choose another --out")
    fixed = set(overrides) & {*study.vary, "out"}
    if fixed:
        raise UserError(f"--set: {', '.join(sorted(fixed))} is set by --seeds and --out; use those flags")
    for seed, row in study.pairs(seeds):
        varied = dict.fromkeys(study.vary, seed)
        own = {key: _filled(value, out, seed) for key, value in study.rows[row].items()}
        keys = {**own, **overrides, **varied, "out": str(out / f"{row}-seed{seed}")}
        yield Job(row, seed, load_config(study.config, keys))


def _filled(value: Any, out: Path, seed: int) -> Any:
    return value.replace("{out}", str(out)).replace("{seed}", str(seed)) if isinstance(value, str) else value


def run_job(job: Job, train: Callable[[RunConfig], MetricsRow]) -> MetricsRow:
    """The results of one run: read if it is finished, resumed if it was interrupted, otherwise trained from the start.

    Raises UserError if the run folder contains a run with another config.
    """
    done = finished_results(job)
    if done is not None:
        return done
    return train(replace(job.config, resume=True) if checkpoint_exists(Path(job.config.out) / LAST) else job.config)


def finished_results(job: Job) -> MetricsRow | None:
    """The results of a finished run. Raises UserError if the run folder contains a run with another config."""
    out = Path(job.config.out)
    if not checkpoint_exists(out / LAST):
        return None
    if changed := run_changes(run_config(out), job.config):
        listed = ", ".join(f"{key}={old}, now {new}" for key, (old, new) in list(changed.items())[:3])
        raise UserError(f"{out} contains a run with another config ({listed}); remove it or choose another --out")
    return read_results(out)


def check_jobs(jobs: Sequence[Job]) -> None:
    """Read the data and build the model of every run that is to be trained, each once. Raises UserError naming the row.

    So a mistake in the last row is found before the first one trains.
    """
    read: dict[str, int] = {}  # by the config as text: values may be lists, which have no hash
    built: set[str] = set()
    for job in jobs:
        config = job.config
        try:
            if finished_results(job) is not None:
                continue
            if (data := repr(config.data)) not in read:
                for name in SPLITS:
                    split = load_split(config.data, name, train=name == "train", seed=config.train.seed)
                    read[data] = split.info.num_classes
            model = (config.model, read[data], config.data.size_hw)
            if repr(model) not in built:
                build_model(*model, seed=0, weights=False)
                built.add(repr(model))
        except UserError as error:
            raise UserError(f"row {job.row}, seed {job.seed}: {error}") from None


NO_EFFECT = tuple(key for key in MAY_CHANGE if not key.startswith("model."))
"""Keys that may differ from those of a finished run: resuming has its weights already, a study has not."""


def run_changes(stored: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Key -> (saved value, value now) for the keys that make it another training."""
    found = changes(stored, now, NO_EFFECT)
    return found if changes(in_one_process(stored), in_one_process(now), NO_EFFECT) else {}


def same_run(first: RunConfig, second: RunConfig) -> bool:
    """Whether two configs describe the same training."""
    return not run_changes(first, second)


def summarise(results: list[tuple[Job, MetricsRow]], diverged: Sequence[tuple[Job, str]] = ()) -> dict[str, Any]:
    """Row name to metrics: means over seeds, sample standard deviations as `std`, the single runs as `seeds`.

    `diverged`: runs without results and why, listed by seed under `diverged` of their row.
    """
    summary: dict[str, Any] = {}
    for row in dict.fromkeys(job.row for job, _ in results):
        runs = [result for job, result in results if job.row == row]
        numbers = [key for key, value in runs[0].items() if _is_number(value)]
        values = {key: [run[key] for run in runs] for key in numbers if all(_is_number(run.get(key)) for run in runs)}
        summary[row] = {
            **{key: statistics.fmean(v) for key, v in values.items()},
            "std": {key: _deviation(v) for key, v in values.items()},
            "seeds": runs,
        }
    for job, reason in diverged:
        summary.setdefault(job.row, {"std": {}, "seeds": []}).setdefault("diverged", {})[str(job.seed)] = reason
    return summary


def differences(results: list[tuple[Job, MetricsRow]], compare: dict[str, str]) -> list[dict[str, Any]]:
    """One record per row of `compare`: for each metric the difference of the means over seeds and its 95 % interval.

    Rows without finished runs, or whose runs did not write predictions, are left out. Raises UserError if two rows were
    evaluated on different images.
    """
    tables = {row: _predictions([job for job, _ in results if job.row == row]) for row in {*compare, *compare.values()}}
    records = []
    for row, other in compare.items():
        if not (tables[row] and tables[other]):
            continue
        try:
            found = compare_seeds(tables[row], tables[other])
        except ValueError as error:
            raise UserError(f"compare: {row} and {other}: {error}; compare rows with the same test split") from None
        record: dict[str, Any] = {"row": f"{row} - {other}", "runs": f"{len(tables[row])}, {len(tables[other])}"}
        for name, difference in found.items():
            record |= {name: difference.mean, f"{name}/low": difference.low, f"{name}/high": difference.high}
        records.append(record)
    return records


def _predictions(jobs: list[Job]) -> list[pd.DataFrame]:
    files = [Path(job.config.out) / PREDICTIONS_FILE for job in jobs]
    return [read_table(file).reset_index() for file in files] if all(file.is_file() for file in files) else []


def _deviation(values: list[float]) -> float:
    """Sample standard deviation; 0 for one run, nan if any value is not finite (`statistics.stdev` would raise)."""
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
