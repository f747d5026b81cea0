"""Corrupt files as disks, networks and attackers do; a function of the seed."""

import random
from collections.abc import Callable, Sequence

EXTREMES = (
    b"\x00",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80\x00\x00\x00",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
)
HEAD = 256
"""Bytes of a file's header, where half of all changes are made."""


def mutate(data: bytes, others: Sequence[bytes], seed: int) -> bytes:
    """Apply one to four changes to `data`; the start of one of `others` may replace its own."""
    rng = random.Random(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        change = rng.choice(CHANGES)
        data = change(data, rng, others) if data else rng.randbytes(8)
    return data


def _place(data: bytes, rng: random.Random) -> int:
    return rng.randrange(min(HEAD, len(data)) if rng.random() < 0.5 else len(data))


def _flip(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        spoilt[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def _truncate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return data[: _place(data, rng)]


def _insert(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 40))) + data[at:]


def _delete(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + rng.choice((1, 2, 4, 40)) :]


def _repeat(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at : at + rng.choice((4, 40, 400))] * rng.choice((2, 3, 9)) + data[at:]


def _extreme(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    at, value = _place(data, rng), rng.choice(EXTREMES)
    return data[:at] + value + data[at + len(value) :]


def _zeros(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    at, length = _place(data, rng), rng.choice((4, 64, 4096))
    return data[:at] + bytes(min(length, len(data) - at)) + data[at + length :]


def _splice(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    other, length = rng.choice(others), rng.choice((4, 16, 64, HEAD))
    return other[:length] + data[length:]


CHANGES: tuple[Callable[[bytes, random.Random, Sequence[bytes]], bytes], ...] = (
    _flip, _flip, _truncate, _insert, _delete, _repeat, _extreme, _zeros, _splice,
)  # fmt: skip
