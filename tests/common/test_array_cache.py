"""Stored arrays: what is read is what was written, and the folder stays within its size."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common import array_cache
from common.array_cache import ArrayCache

VALUES = np.arange(600, dtype=np.float32).reshape(20, 30)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npy"))


def keys() -> Iterator[str]:
    yield from (f"{number:040x}"[::-1] for number in range(1_000_000))


@pytest.mark.parametrize("damage", ["zeros at the end", "one bit", "cut", "nothing"])
def test_a_damaged_file_is_not_read(damage: str, tmp_path: Path) -> None:
    cache = ArrayCache("setting", tmp_path, 1e9)
    cache.write("ab", VALUES)
    read = cache.read("ab")
    assert read is not None and np.array_equal(read, VALUES)
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    if damage == "zeros at the end":  # as after a power cut, where a block was not written
        content[-1000:] = bytes(1000)
    elif damage == "one bit":
        content[len(content) // 2] ^= 1
    else:
        content = content[: 500 if damage == "cut" else 0]
    file.write_bytes(content)
    assert cache.read("ab") is None
    cache.write("ab", VALUES)
    assert np.array_equal(read, cache.read("ab"))  # type: ignore[arg-type]


@pytest.mark.parametrize("writers", [1, 4])
def test_many_processes_keep_to_the_size_and_seldom_list_the_folder(
    writers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_cache, "LEAST", 5)
    listed, listing = [0], Path.rglob

    def counted(folder: Path, pattern: str) -> Iterator[Path]:
        listed[0] += 1
        return listing(folder, pattern)

    monkeypatch.setattr(Path, "rglob", counted)
    first = ArrayCache("setting", tmp_path, 1e9)
    first.write("ab", VALUES)
    size, most = files(tmp_path)[0].stat().st_size, 120
    caches = [ArrayCache("setting", tmp_path, most * size) for _ in range(writers)]
    key = keys()
    for _ in range(2 * most // writers):
        for cache in caches:
            cache.write(next(key), VALUES)
    assert most - 5 <= len(list(listing(tmp_path, "*.npy"))) <= most + 5 * (writers - 1)
    assert all(cache.full for cache in caches) and listed[0] <= 2 + 10 * writers
