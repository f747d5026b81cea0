"""Run one job in several processes: join those that torchrun or srun started."""

import functools
import os
import re
import signal
from collections.abc import Callable, Mapping

from common.errors import UserError


def launch_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from torchrun's or srun's variables; {} if alone.

    Raises UserError if one of them is missing and cannot be inferred.
    """
    if "RANK" in environment:
        found = {name: environment.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
        found["LOCAL_RANK"] = environment.get("LOCAL_RANK", "0")
    elif _number(environment, "SLURM_STEP_NUM_TASKS", "1") > 1:  # a batch script outside of srun has no step
        job, step = _number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID", "0")
        one_node = environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES")) == "1"
        found = {
            "RANK": environment.get("SLURM_PROCID", ""),
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": environment.get("SLURM_LOCALID", ""),
            "MASTER_ADDR": environment.get("MASTER_ADDR", "127.0.0.1" if one_node else ""),
            "MASTER_PORT": environment.get("MASTER_PORT", str(20000 + (7 * job + step) % 20000)),
        }
    else:
        return {}
    if unset := [name for name, value in found.items() if not value]:
        problem = f"{unset[0]} is not set, but several processes were started"
        raise UserError(f"{problem}; start them as slurm/train.sbatch does")
    size = _number(found, "WORLD_SIZE", least=1)
    if size == 1:
        return {}
    _number(found, "RANK", most=size - 1)
    _number(found, "LOCAL_RANK", most=size - 1)
    _number(found, "MASTER_PORT", least=1, most=65535)
    return found


def _number(environment: Mapping[str, str], name: str, default: str = "", least: int = 0, most: int = 2**31) -> int:
    """A whole number from a launcher's variable. Raises UserError that names it for anything else."""
    text = environment.get(name, default)
    if not re.fullmatch(r"[0-9]{1,10}", text, re.ASCII) or not least <= int(text) <= most:
        raise UserError(
            f"{name}={text!r} in the environment is not a whole number from {least} to {most}; start the processes "
            "with torchrun or srun, or one process without these variables"
        )
    return int(text)


def distributed_main(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a script's `main` to join the job's other processes if torchrun or srun started several.

    If `main` fails in one process, that process reports why and all end within seconds, with exit code 2 for a
    UserError and 1 otherwise. SystemExit with a code of 128 or more (a stopped run) must be raised by all processes.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        environment = launch_environment(os.environ)
        if not environment:
            return main()
        os.environ.update(environment)
        from engine.run.distributed import ProcessGroupWatchdog  # torch is slow to import

        watchdog = ProcessGroupWatchdog()
        try:
            main()
            watchdog.leave()
        except SystemExit as ending:
            if ending.code and not (isinstance(ending.code, int) and ending.code >= 128):
                watchdog.abort(ending)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # srun sends it to the others once one process has ended
            watchdog.leave()
            raise
        except BaseException as error:
            watchdog.abort(error)

    return wrapped


def one_process_only(script: str, instead: str) -> None:
    """Raise UserError if torchrun or srun started several processes of a script that supports only one."""
    if launch_environment(os.environ):
        raise UserError(f"{script} runs in one process: start it with python; {instead}")
