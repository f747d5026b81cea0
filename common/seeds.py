"""Derive seeds from names and numbers, so that random draws depend on their purpose alone."""

import hashlib


def stable_seed(*key: int | str) -> int:
    """A seed in [0, 2^32): the first 4 bytes of BLAKE2b of the key, equal on every machine and in every process."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
