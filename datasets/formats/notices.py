"""Messages about data that is read in an unusual way: one line on stderr, once per run."""

import logging
import mmap

from common.processes import processes
from common.seeds import stable_seed

_SAID = mmap.mmap(-1, 1 << 12)
"""A byte per message, at the hash of its text; shared with the loading processes that are forked from this one."""


def say_once(message: str) -> None:
    """Log one line as a warning, unless it has been logged; of several training processes only the first logs."""
    place = stable_seed(message) % len(_SAID)
    if processes().is_main and not _SAID[place]:
        _SAID[place] = 1
        logging.getLogger("datasets").warning(message)
