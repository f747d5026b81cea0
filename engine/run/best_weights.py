"""Make a run's best weights again where their file is damaged, before hours are spent on the rest of the run."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

from common.errors import UserError
from common.processes import processes
from engine.run.checkpointing import previous_of, read_checkpoint, saved_progress, write_safetensors
from engine.run.folder import BEST, LAST
from engine.run.resume import ALLOW


def restore_best(run: Path, epoch: float, steps: int, part: str, log: Callable[[str], None], allowed: bool) -> bool:
    """Write best/model.safetensors again if it is missing or damaged, from a checkpoint of the moment it was saved.

    `epoch`: that moment, as a fraction; `steps`: micro-batches per epoch; `part` of a checkpoint: model or ema. Without
    such a checkpoint returns False if that is `allowed`, otherwise raises UserError. The main process does it.
    """
    if not processes().is_main:
        return True
    best, last = run / BEST / "model.safetensors", run / LAST
    try:
        read_checkpoint(best)
    except UserError as error:
        problem = error
    else:
        return True
    for path in (last, previous_of(last), *sorted(last.parent.glob("epoch_*.safetensors"))):
        progress = saved_progress(path)
        if math.isclose(progress.get("epoch", math.nan) + progress.get("batch", 0) / steps, epoch):
            with contextlib.suppress(UserError):
                tensors = read_checkpoint(path).part(part)
                best.parent.mkdir(exist_ok=True)
                write_safetensors(best, tensors, {"epoch": epoch})
                log(f"{problem}; written again from {path}")
                return True
    lost = f"{problem}, and there is no checkpoint of its epoch, {epoch:g}"
    if not allowed:
        raise UserError(f"{lost}; put a copy of it back, or pass {ALLOW} to choose among the epochs to come")
    log(f"{lost}; the next validation is the best")
    return False
