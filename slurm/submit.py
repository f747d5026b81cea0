"""Submit a training run to SLURM from Python, with submitit; slurm/train.sbatch does the same in bash.

    python -m slurm.submit --nodes 2 --gpus 8 --time 12:00:00 --partition gpu -- --config configs/cub.yaml
    python -m slurm.submit --cluster local -- --config configs/quickstart.yaml --out runs/tried

What follows `--` goes to train.py; mistakes in it are found at once, not after hours in the queue. The job goes on by
itself after its time limit and after preemption. Its logs are in the run folder's submitit/. Instead of SLURM,
`--cluster local` takes processes on this machine, and `--cluster debug` this very process.
"""

import argparse
import contextlib
import io
import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, exit_on_user_error
from common.flags import Parser
from engine.run.command_line import parse_config

ROOT = Path(__file__).resolve().parents[1]
WARNING = signal.SIGUSR1
WARNING_SECONDS = 180
"""How long before the time limit the run is told to save and leave."""
REQUEUES = 1000
"""submitit wants a bound on how often a job may reach its time limit."""
DURATION = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")


@dataclass(frozen=True)
class Training:
    """train.py as submitit calls it, in each process of the job."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        """Train, or go on with it; hand the job back to the queue when the time limit stops it."""
        import submitit

        sys.path.insert(0, str(ROOT))  # submitit starts python wherever sbatch was called
        from train import main

        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        sys.argv = ["train.py", *self.arguments]
        try:
            main()
        except SystemExit as ended:
            if ended.code != 128 + WARNING:
                raise
            signal.raise_signal(WARNING)  # submitit's handler, in place again, requeues the job

    def checkpoint(self) -> Any:
        """What the requeued job calls: the same, for train.py finds its checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """This script's flags, and train.py's."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--cluster", choices=("slurm", "local", "debug"), default="slurm")
    parser.add_argument("--nodes", type=_count, default=1)
    parser.add_argument("--gpus", type=int, default=1, help="of each node; 0: train on CPUs")
    parser.add_argument("--tasks", type=_count, help="processes on each node; default: one per GPU")
    parser.add_argument("--cpus", type=_count, default=8, help="of each process: data.workers and a few more")
    parser.add_argument("--time", type=_minutes, default="12:00:00", metavar="[DAYS-]HH:MM:SS")
    parser.add_argument("--partition")
    parser.add_argument("--sbatch", nargs="+", default=[], metavar="KEY=VALUE", help="its other options: qos=long")
    parser.add_argument("training", nargs="*", metavar="-- FLAG ...", help="flags of train.py")
    args = parser.parse_args()
    if not args.training:
        raise UserError("nothing to train; end with what train.py needs: -- --config configs/cub.yaml --out runs/cub")
    return args, args.training


def job_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as submitit names them; slurm_... are for SLURM alone. Raises UserError."""
    if args.cluster != "slurm" and args.nodes > 1:
        raise UserError(f"--nodes: --cluster {args.cluster} is this machine alone; leave --nodes out")
    if args.cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on this machine; submit where SLURM is, or try --cluster local")
    more = {key: value or True for key, _, value in (option.partition("=") for option in args.sbatch)}
    exports = f"OMP_NUM_THREADS={args.cpus} SRUN_CPUS_PER_TASK={args.cpus} SUBMITIT_PREEMPT_SIGNAL=USR1"
    return {
        "name": "train",
        "nodes": args.nodes,
        "gpus_per_node": args.gpus or None,
        "tasks_per_node": args.tasks or max(1, args.gpus),
        "cpus_per_task": args.cpus,
        "timeout_min": args.time,
        "stderr_to_stdout": True,
        "slurm_partition": args.partition,
        "slurm_signal_delay_s": WARNING_SECONDS,
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
        "slurm_setup": [f"export {exports}"],
        "slurm_additional_parameters": {"requeue": True, **more},
    }


@exit_on_user_error
def main() -> None:
    """Submit; on this machine also wait for the end."""
    args, flags = parse_args()
    settings, training = job_settings(args), (*flags, "--resume=auto")
    folder = Path(parse_config(training).out) / "submitit"
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # read when submitit is imported; the one train.py stops at
    try:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError
    except ImportError:
        raise UserError("submitit is not installed; pip install 'faithful-vit[slurm]', or use slurm/*.sbatch") from None
    bounds = {"slurm_max_num_timeout": REQUEUES, "local_max_num_timeout": REQUEUES}
    try:
        executor = submitit.AutoExecutor(folder, cluster=args.cluster, **bounds)
        executor.update_parameters(**settings)
        with contextlib.redirect_stderr(io.StringIO()):  # it prints what it raises
            job = executor.submit(Training(training))
    except (FailedSubmissionError, FailedJobError) as error:
        raise UserError(f"sbatch refuses the job: {' '.join(str(error).split())}") from None
    print(f"job {job.job_id}; its log: {job.paths.stdout}", flush=True)
    if args.cluster != "slurm":
        try:
            job.results()
        except UncompletedJobError:
            raise UserError(f"the job failed; {job.paths.stdout} says why") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
    return int(text)


def _minutes(text: str) -> int:
    found = DURATION.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write [DAYS-]HH:MM:SS, such as 12:00:00 or 3-00:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return max(1, (days * 24 + hours) * 60 + minutes + (seconds > 0))


if __name__ == "__main__":
    main()
