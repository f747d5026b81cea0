"""The checksum inside a safetensors file detects every change, and other readers accept the file."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from common.sealing import PLACE, check_seal, seal
from tests.tiny import assert_same_tensors

TENSORS = {"a": torch.arange(40.0).reshape(8, 5), "b": torch.tensor(7), "c": torch.zeros(0, 3)}
PROGRESS = json.dumps({"epoch": 3, "seal_sha256": "0" * 64, "name": "ü"})


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, metadata={**PLACE, "progress": PROGRESS})
    seal(path)
    return path


def test_other_readers_take_the_file(sealed: Path) -> None:
    check_seal(sealed)
    assert_same_tensors(load_file(sealed), TENSORS)
    with safe_open(sealed, framework="pt") as file:
        assert file.metadata()["progress"] == PROGRESS


def test_equal_contents_are_equal_files(sealed: Path) -> None:
    before = sealed.read_bytes()
    for _ in range(8):  # the library writes the two keys in either order
        save_file(TENSORS, sealed, metadata={**PLACE, "progress": PROGRESS})
        seal(sealed)
        assert sealed.read_bytes() == before


def is_noticed(path: Path) -> bool:
    """By the checksum alone."""
    try:
        check_seal(path)
    except ValueError:
        return True
    return False


def test_every_flipped_bit_is_noticed(sealed: Path) -> None:
    whole, dice = sealed.read_bytes(), random.Random(0)
    for position in range(len(whole)):
        sealed.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << dice.randrange(8)]) + whole[position + 1 :])
        assert is_noticed(sealed), position


def test_every_other_length_is_noticed(sealed: Path) -> None:
    whole = sealed.read_bytes()
    start = whole.index(b'","progress"')
    for length in range(start, len(whole)):
        sealed.write_bytes(whole[:length])
        assert is_noticed(sealed), length
    sealed.write_bytes(whole + b"\0")
    assert is_noticed(sealed)


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"progress": "{}"}, {"sha256": "0" * 64}, {"sha256": "0" * 64, "a": "b"}]
)
def test_files_that_never_were_sealed_pass(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata=metadata)
    check_seal(tmp_path / "x.safetensors")
    (tmp_path / "empty").touch()
    check_seal(tmp_path / "empty")
