"""How much of the machine a process may use."""

import os


def own_cores() -> int:
    """CPU cores of this process: those it may run on, divided among the processes that torchrun started on the machine.

    SLURM binds the cores of each process, so there they are its own.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    together = os.environ.get("LOCAL_WORLD_SIZE", "1") if "TORCHELASTIC_RUN_ID" in os.environ else "1"
    return max(1, cores // int(together)) if together.isdecimal() and int(together) else cores
