"""How long a run will take, said once after its first steps."""

import time
from collections.abc import Callable
from datetime import timedelta

FIRST, SECONDS = 3, 5.0
"""Steps that are not measured, because they load, compile and allocate; seconds that are."""


class ExpectedTime:
    """Measures the first batches of a session, then says how long all remaining batches take."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.batches = 0
        self.began = 0.0
        self.said = False

    def after_batch(self, remaining: int) -> None:
        """Count a batch; `remaining`: batches until the end of the run."""
        self.batches += 1
        if self.said or self.batches < FIRST:
            return
        now = time.monotonic()
        if self.batches == FIRST:
            self.began = now
            return
        if now - self.began >= SECONDS and remaining:
            self.said = True
            each = (now - self.began) / (self.batches - FIRST)
            left = timedelta(seconds=round(each * remaining))
            self.say(f"about {left} for the remaining {remaining} batches ({each:.3g} s each), without validation")
