"""Derive seeds from names and numbers, so that random draws depend on their purpose alone."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stable_seed(*key: int | str) -> int:
    """A seed in [0, 2^32): the first 4 bytes of BLAKE2b of the key, equal on every machine and in every process."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed `random`, NumPy and torch (CPU) for a block of code and restore their states afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
