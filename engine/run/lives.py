"""Stop a SLURM job that is requeued again and again without getting anywhere."""

import json
import os
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.processes import processes
from engine.run.atomic_files import replacing
from engine.run.checkpointing import saved_progress
from engine.run.folder import LAST, RESULTS

LIVES_FILE = "lives.json"
MOST_LIVES = 3
"""Starts of a job from the same state of the run."""


def count_life(out: Path) -> None:
    """Record the start of a SLURM job in the run folder. Nothing outside SLURM, or for a run with results.

    Raises UserError if the job has started `MOST_LIVES` times already from the same checkpoint (or none): its time is
    over, or the warning comes, before anything is saved.
    """
    job, path = os.environ.get("SLURM_JOB_ID", ""), out / LIVES_FILE
    if not job or not processes().is_main or (out / RESULTS).is_file():
        return
    now = {"job": job, "saved": _saved(out / LAST)}
    before = _read(path)
    lives = before.pop("lives", 0) if before.keys() == {"job", "saved", "lives"} else 0
    lives = lives + 1 if before == now and isinstance(lives, int) else 1
    if lives > MOST_LIVES:
        path.unlink(missing_ok=True)
        raise UserError(
            f"{out}: SLURM job {job} has started {MOST_LIVES} times without saving anything new, so it is not requeued "
            "again; give it more time (sbatch --time), a later warning (--signal=USR1@SECONDS), or save within epochs "
            "(train.save_every_steps)"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write_text(json.dumps({**now, "lives": lives}))
    except OSError as error:
        raise UserError(f"--out: cannot write to {out} ({error.strerror or error})") from None


def _saved(last: Path) -> list[Any] | None:
    """How far the last checkpoint is, from its header alone; None if there is none."""
    progress = saved_progress(last)
    return [progress.get(unit) for unit in ("epoch", "batch", "step")] if progress else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
