"""Train and compare the rows of a study: several models or settings, several seeds, one table and one report.

    python study.py studies/quickstart.yaml --out runs/quickstart
    python study.py studies/real_birds.yaml --out runs/real_birds --seeds 0 1 2 --rows vit two_stage

--plugin FILE.py imports a file of yours that registers a data set, model or metric.

Every row and seed is an ordinary run in OUT/ROW-seedN. All are checked before the first trains. Finished runs are
read and interrupted runs resumed, so an interrupted study continues with the same command; a run that diverges is
listed as such and the others go on. slurm/study.sbatch trains the runs as an array. Writes OUT/results.json (row ->
metrics, means over seeds), table.{json,csv,md}, differences.{json,csv,md} (rows of the study file's `compare`, with
95 % intervals over images and seeds), curves and a self-contained report.html; with train.log_test also worst-group
accuracy over epochs and seconds. The format of the study file: docs/training.md.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from commands.study_jobs import Job, check_jobs, differences, jobs, load_study, run_job, summarise
from common.errors import UserError, exit_on_user_error, one_line, printable
from common.flags import Parser
from common.plugins import with_plugins
from engine.run.distributed import one_process_only
from engine.run.folder import CONFIG_FILE, METRICS_FILE, RESULTS
from engine.run.lives import count_life
from engine.run.stopping import RunStopped
from engine.run.tracking import MetricsRow, read_rows
from engine.training.step import DivergedError
from report.files import json_text, write_atomic
from report.study import StudyRun, publish, write_study_report
from train import train


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="YAML file: title, about, config, seeds, rows")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the seeds of the study file")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="run only these rows")
    parser.add_argument("--publish", type=Path, metavar="DIR", help="also copy tables and images to this folder")
    parser.add_argument(
        "--no-sheets", action="store_true", help="--publish without sheets, for images not to be shared"
    )
    parser.add_argument(
        "--job", type=int, metavar="N", help="train the N-th run alone (from 0, in the printed order), without a report"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="config overrides for every row")
    return parser.parse_args()


def read_overrides(items: list[str]) -> dict[str, Any]:
    """KEY=VALUE items as a dict. Raises UserError for a value that is not valid YAML."""
    try:
        return {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in items)}
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--set: {' '.join(str(error).split())}") from None


@exit_on_user_error
@with_plugins
def main() -> None:
    """Run the missing runs, then write the comparison."""
    args = parse_args()
    one_process_only("study.py", "slurm/seeds.sbatch runs seeds side by side")
    study = load_study(args.study).only(args.rows)
    overrides = read_overrides(args.set)
    todo = list(jobs(study, args.out, args.seeds, overrides))
    if args.job is not None:
        todo = [one_of(todo, args.job)]
        count_life(Path(todo[0].config.out))
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


if __name__ == "__main__":
    main()
