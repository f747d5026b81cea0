"""Which images show a tube: the same table from every kind of file, and malicious pickles."""

import collections
import os
import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from datasets.formats.tube_labels import read_tube_labels
from tests.datasets.radiographs import write_tubes

TABLE = {"1.2.3": 1, "1.2.4": 0, "abc": 1}
WANTED = {"1.2.3": True, "1.2.4": False, "abc": True}


@pytest.mark.parametrize("ending", ["pkl", "json", "csv", "CSV"])
def test_every_kind_of_file(tmp_path: Path, ending: str) -> None:
    assert read_tube_labels(write_tubes(tmp_path / f"tubes.{ending}", TABLE)) == WANTED


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "kind", [int, bool, float, np.int64, np.int8, np.uint32, np.bool_, np.float32, np.dtype(">i4").type]
)
def test_numbers_of_every_kind_and_protocol(tmp_path: Path, protocol: int, kind: Any) -> None:
    path = tmp_path / "tubes.pkl"
    path.write_bytes(pickle.dumps({np.str_(name): kind(tube) for name, tube in TABLE.items()}, protocol))
    assert read_tube_labels(path) == WANTED
    path.write_bytes(pickle.dumps({name: kind(tube) for name, tube in TABLE.items()}, protocol))
    assert read_tube_labels(path) == WANTED


def test_the_old_name_of_numpys_scalars(tmp_path: Path) -> None:
    path = tmp_path / "tubes.pkl"
    data = pickle.dumps({"a": np.int64(1)}, 2)
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_tube_labels(path) == {"a": True}


class Acts:
    """Unpickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def by_hand(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def asked(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def test_a_pickle_never_acts(tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    command = f"touch '{trace}'"
    malicious = [
        pickle.dumps({"a": Acts(os.system, command)}),
        pickle.dumps(Acts(eval, f"__import__('os').system({command!r})")),
        pickle.dumps({Acts(open, str(trace), "w"): 1}, 0),
        by_hand(b"cos\nsystem\n", text(command), b"\x85R."),
        by_hand(text("x"), asked("numpy", "f2py.os.system"), text(command), b"\x85R."),
        by_hand(asked("numpy._core.multiarray", "scalar.__globals__"), b"."),
        by_hand(asked("builtins", "getattr"), b"."),
        by_hand(asked("numpy", "dtype.__class__"), b"."),
        b"I1\n(S'" + command.encode() + b"'\nios\nsystem\n.",
        b"Pevil\n.",
        b"\x80\x02\x82\x01.",
    ]
    path = tmp_path / "tubes.pkl"
    for data in malicious:
        path.write_bytes(data)
        with pytest.raises(UserError, match="refused to unpickle|is not a pickle, or a broken one") as caught:
            read_tube_labels(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        assert not trace.exists()


def test_what_is_allowed_cannot_be_changed(tmp_path: Path) -> None:
    """BUILD sets attributes; on a function it would change the code for every later pickle."""
    path = tmp_path / "tubes.pkl"
    for name in (("numpy._core.multiarray", "scalar"), ("numpy", "dtype"), ("_codecs", "encode")):
        state = b"N}" + text("__defaults__") + b")s\x86b"
        path.write_bytes(by_hand(asked(*name), state, b"."))
        with pytest.raises(UserError):
            read_tube_labels(path)
    assert read_tube_labels(write_tubes(path, {"a": np.int64(1)})) == {"a": True}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (collections.OrderedDict(a=1), r"refused to unpickle \(it asks for 'collections', 'OrderedDict'\)"),
        ({"a": np.array([1])}, "refused to unpickle"),
        ({"a": np.complex64(1)}, r"refused to unpickle \(a NumPy type that is not a number or string\)"),
        ({"a": np.datetime64("2020-01-01")}, "refused to unpickle"),
        ({"a": Path("x")}, "refused to unpickle"),
        ([1, 2], "has no table"),
        ({}, "has no table"),
        ({1: 1}, "an image id is int, not a string"),
        ({"a": 2}, "image 'a' has a label that is not 0 or 1"),
        ({"a": "1"}, "image 'a' has a label that is not 0 or 1"),
        ({"a": None}, "image 'a' has a label that is not 0 or 1"),
        ({"a": float("nan")}, "image 'a' has a label that is not 0 or 1"),
    ],
)
def test_a_pickle_of_something_else(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "tubes.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        read_tube_labels(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_memo_that_would_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "tubes.pkl"
    path.write_bytes(by_hand(b"}r\xff\xff\xff\x7f."))
    assert [op.name for op, _, _ in pickletools.genops(path.read_bytes())][2] == "LONG_BINPUT"
    with pytest.raises(UserError, match="a memo index out of bounds"):
        read_tube_labels(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pkl", b"", "is not a pickle, or a broken one"),
        ("a.pkl", pickle.dumps({"a": 1})[:-3], "is not a pickle, or a broken one"),
        ("a.pkl", b"ImageId,tube\na,1\n", "is not a pickle, or a broken one"),
        ("a.json", b"{", "is not valid JSON"),
        ("a.json", b"[" * 100_000, "is not valid JSON"),
        ("a.json", b"[]", "has no table"),
        ("a.json", b'{"a": 3}', "image 'a' has a label that is not 0 or 1"),
        ("a.csv", b"ImageId,chest\na,1\n", "no column tube; its header must have ImageId, tube"),
        ("a.csv", b"ImageId,tube\na,3\n", "line 2: column tube is 3; it must be 0, 1"),
        ("a.csv", b"ImageId,tube\na,1\na,0\n", "line 3: ImageId a is already in line 2"),
        ("a.csv", b"ImageId,tube\n", "has no lines after its header"),
        ("a.csv", b"ImageId,tube\n" + b"x" * 200_000 + b",1\n", "is not valid CSV after line 1"),
        ("a.csv", None, "a.csv is missing"),
        ("a.pkl", None, "--pkl_file_path: cannot read .*a.pkl: No such file"),
    ],
)
def test_one_line_for_a_wrong_file(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_tube_labels(path)
    assert "\n" not in str(caught.value)
