"""Train and compare the rows of a study: several models or settings, several seeds, one table and one report.

    python study.py studies/quickstart.yaml --out runs/quickstart
    python study.py studies/real_birds.yaml --out runs/real_birds --seeds 0 1 2 --rows vit two_stage

Every row and seed is an ordinary run in OUT/ROW-seedN. All are checked before the first trains. Finished runs are
read and interrupted runs resumed, so an interrupted study continues with the same command. A run that diverges is a
row of the table; the others are still trained. slurm/study.sbatch trains the runs as a job array.

Writes OUT/results.json (row -> metrics, means over seeds), table.{json,csv,md}, differences.{json,csv,md} (rows of the
study file's `compare`, with 95 % intervals over images and seeds), curves and a self-contained report.html; with
train.log_test also worst-group accuracy over epochs and seconds. The format of the study file: docs/training.md.
--plugin FILE.py imports a file of yours that registers a data set, model or metric.
"""

import argparse
from pathlib import Path

from common.errors import exit_on_user_error
from common.flags import Parser
from common.plugins import with_plugins
from engine.run.launch import one_process_only


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="YAML file with title, config and rows (docs/training.md)")
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


@exit_on_user_error
@with_plugins
def main() -> None:
    """Command line."""
    args = parse_args()
    one_process_only("study.py", "slurm/seeds.sbatch runs seeds side by side")
    from commands.study_run import run_study  # slow to import, and not needed for --help or a wrong flag

    run_study(args)


if __name__ == "__main__":
    main()
