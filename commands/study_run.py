"""Run a study and compare its runs: what study.py does after its flags are read."""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from commands.study_jobs import Job, check_jobs, differences, jobs, load_study, run_job, summarise
from commands.train_run import train
from common.errors import UserError, one_line, printable
from engine.run.atomic_files import DAY, remove_leftovers
from engine.run.folder import CONFIG_FILE, METRICS_FILE, RESULTS
from engine.run.lives import count_life
from engine.run.stopping import RunStopped
from engine.run.tracking import MetricsRow, read_rows
from engine.training.finite import DivergedError
from report.files import json_text, write_atomic
from report.study import StudyRun, check_publish, publish, write_study_report


def run_study(args: argparse.Namespace) -> None:
    """Run the missing runs, then write the comparison. `args`: the flags of study.py. Raises UserError."""
    study = load_study(args.study).only(args.rows)
    overrides = read_overrides(args.set)
    todo = list(jobs(study, args.out, args.seeds, overrides))
    if args.job is not None:
        todo = [one_of(todo, args.job)]
        count_life(Path(todo[0].config.out))
    elif args.publish:
        check_publish(args.publish, ((job.row, job.seed) for job in todo))
    check_jobs(todo)
    results, diverged = [], []
    try:
        for job in todo:
            print(printable(f"--- {job.row}, seed {job.seed} ({job.config.out})"), flush=True)
            try:
                results.append((job, run_job(job, train)))
            except DivergedError as error:
                diverged.append((job, one_line(str(error))))
                print(printable(f"{job.row}, seed {job.seed} diverged: {diverged[-1][1]}"), file=sys.stderr, flush=True)
    except RunStopped as stopped:
        print(f"stopped by {stopped}; everything is saved; continue with the same command", file=sys.stderr)
        raise SystemExit(stopped.exit_code) from None
    if args.job is not None:
        return
    remove_leftovers(args.out, age=DAY)
    summary = summarise(results, diverged)
    write_atomic(args.out / RESULTS, json_text(summary))
    ended = {id(job): result for job, result in results} | {id(job): {"diverged": 1.0} for job, _ in diverged}
    runs = [finished(job, ended[id(job)]) for job in todo]
    about = [study.about, *(f"{job.row}, seed {job.seed} diverged: {reason}" for job, reason in diverged)]
    compared = differences(results, study.compare)
    report = write_study_report(args.out, study.title, "\n".join(about), runs, compared)
    if args.publish:
        publish(args.out, runs, args.publish, sheets=not args.no_sheets)
    print(f"results: {args.out / RESULTS}; report: {report}")


def one_of(todo: list[Job], number: int) -> Job:
    """The run of `--job`. Raises UserError naming the range."""
    if not 0 <= number < len(todo):
        raise UserError(f"--job: the study has {len(todo)} runs; submit it with --array=0-{len(todo) - 1}")
    return todo[number]


def finished(job: Job, results: MetricsRow) -> StudyRun:
    """What the report needs of a finished run."""
    out = Path(job.config.out)
    sheets = sorted((out / "sheets").glob("*.png"))
    return StudyRun(
        row=job.row,
        seed=job.seed,
        results=results,
        history=read_rows(out / METRICS_FILE),
        sheet=sheets[-1] if sheets else None,
        config=(out / CONFIG_FILE).read_text() if (out / CONFIG_FILE).is_file() else "",
    )


def read_overrides(items: list[str]) -> dict[str, Any]:
    """KEY=VALUE items as a dict. Raises UserError for a value that is not valid YAML."""
    try:
        return {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in items)}
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--set: {' '.join(str(error).split())}") from None
