"""Submit a training run to SLURM from Python, with submitit; slurm/train.sbatch does the same in bash.

    python -m slurm.submit --nodes 2 --gpus 8 --time 12:00:00 --partition gpu -- --config configs/cub.yaml
    python -m slurm.submit --cluster local -- --config configs/quickstart.yaml --out runs/test

Arguments after `--` go to train.py and are checked before submission. The job is requeued and resumes after its
time limit and after preemption. Its logs are in the run folder under submitit/. Instead of submitting to SLURM,
`--cluster local` starts processes on this machine, and `--cluster debug` trains in this process.
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
from common.plugins import load_plugins
from engine.run.command_line import parse_config

ROOT = Path(__file__).resolve().parents[1]
WARNING = signal.SIGUSR1
WARNING_SECONDS = 180
"""How long before the time limit the run is signalled to save and exit."""
REQUEUES = 1000
"""submitit requires a limit on how often a job may reach its time limit."""
DURATION = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")


@dataclass(frozen=True)
class Training:
    """Calls train.py in each process of a job; submitit pickles it."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        """Start or resume training; requeue the job if the time limit stops it."""
        import submitit

        sys.path.insert(0, str(ROOT))  # submitit starts python in the folder where sbatch was called
        from train import main

        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        sys.argv = ["train.py", *self.arguments]
        try:
            main()
        except SystemExit as ended:
            if ended.code != 128 + WARNING:
                raise
            signal.raise_signal(WARNING)  # submitit's handler, which is restored by now, requeues the job

    def checkpoint(self) -> Any:
        """Called by submitit for the requeued job: the same call, because train.py finds its checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """The flags of this script, and those of train.py. Raises UserError."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--cluster", choices=("slurm", "local", "debug"), default="slurm", help="default: slurm")
    parser.add_argument("--nodes", type=_count, default=1, help="default: 1")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs per node; 0 trains on CPUs; default: 1")
    parser.add_argument("--tasks", type=_count, help="processes per node; default: one per GPU")
    parser.add_argument(
        "--cpus", type=_count, default=8, help="CPUs per process, one of them not for loading; default: 8"
    )
    parser.add_argument(
        "--time", type=_minutes, default="12:00:00", metavar="[DAYS-]HH:MM:SS", help="time limit; default: 12:00:00"
    )
    parser.add_argument("--partition")
    parser.add_argument(
        "--sbatch", nargs="+", default=[], metavar="KEY=VALUE", help="further options of sbatch, such as qos=long"
    )
    parser.add_argument("training", nargs="*", metavar="-- FLAG ...", help="flags of train.py")
    args = parser.parse_args()
    if not args.training:
        raise UserError("nothing to train; end with flags of train.py: -- --config configs/cub.yaml --out runs/cub")
    return args, args.training


def job_settings(args: argparse.Namespace) -> dict[str, Any]:
    """submitit's parameters; those named slurm_... are ignored by other clusters. Raises UserError."""
    if args.cluster != "slurm" and args.nodes > 1:
        raise UserError(f"--nodes: --cluster {args.cluster} uses this machine only; omit --nodes")
    if args.cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError("no sbatch on this machine; run this on a machine with SLURM, or use --cluster local")
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
    """Submit the job; on this machine, also wait until it ends."""
    args, flags = parse_args()
    settings, training = job_settings(args), (*flags, "--resume=auto")
    folder = Path(parse_config(load_plugins([*training])).out) / "submitit"
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # read when submitit is imported; train.py stops on this signal
    try:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError
    except ImportError:
        raise UserError("submitit is not installed; pip install '.[slurm]', or use slurm/train.sbatch") from None
    bounds = {"slurm_max_num_timeout": REQUEUES, "local_max_num_timeout": REQUEUES}
    try:
        executor = submitit.AutoExecutor(folder, cluster=args.cluster, **bounds)
        executor.update_parameters(**settings)
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints the error it raises
            job = executor.submit(Training(training))
    except (FailedSubmissionError, FailedJobError) as error:
        raise UserError(f"sbatch rejected the job: {' '.join(str(error).split())}") from None
    print(f"job {job.job_id}; log: {job.paths.stdout}", flush=True)
    if args.cluster != "slurm":
        try:
            job.results()
        except UncompletedJobError:
            raise UserError(f"the job failed; see {job.paths.stdout}") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _minutes(text: str) -> int:
    found = DURATION.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not [DAYS-]HH:MM:SS, such as 12:00:00 or 3-00:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return max(1, (days * 24 + hours) * 60 + minutes + (seconds > 0))


if __name__ == "__main__":
    main()
