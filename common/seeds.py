"""One stable way from names and numbers to a seed, so that draws depend on what they are for and on nothing else."""

import hashlib


def stable_seed(*key: int | str) -> int:
    """A seed in [0, 2^32), a function of the key alone: the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
