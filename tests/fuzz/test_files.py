"""Two thousand corrupted files are read or refused in one line; every valid file is read."""

from pathlib import Path

import pytest
import torch

from tests.fuzz.campaign import spoil_and_read
from tests.fuzz.kinds import KINDS

COUNTS = {
    "images": 700, "arrays": 150, "radiographs": 350, "checkpoints": 200, "weights": 150, "published weights": 50,
    "heat maps": 100, "MATLAB arrays": 40, "tube labels": 100, "boxes": 50, "part annotations": 100, "configs": 20,
}  # fmt: skip


def test_every_kind_is_tried() -> None:
    assert COUNTS.keys() == KINDS.keys() and sum(COUNTS.values()) >= 2000


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_file_is_read(name: str, tmp_path: Path) -> None:
    for suffix, content in KINDS[name].files():
        (tmp_path / f"file{suffix}").write_bytes(content)
        KINDS[name].read(tmp_path / f"file{suffix}")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_spoilt_file_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    found = spoil_and_read(KINDS[name], range(COUNTS[name]), tmp_path)
    assert found.read + found.refused == COUNTS[name] and found.refused > COUNTS[name] / 4
    assert found.memory < 200
