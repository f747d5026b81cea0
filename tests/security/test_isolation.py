"""Work in a child process: the array it returns, or the reason it ended; the parent survives."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import JPEG2000, JPEGBaseline8Bit, JPEGExtended12Bit
from scipy.io import savemat

from common import isolation
from common.errors import UserError
from common.isolation import IsolatedError, in_child
from datasets.formats import dicom, matlab
from datasets.formats.dicom import read_dicom
from tests.datasets.radiographs import encoded, smooth, write_dicom
from tests.fuzz.mutations import mutate


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.ones((3, 4), np.uint8)), np.array([])]
)
def test_the_array_comes_back(array: np.ndarray) -> None:
    found = in_child(lambda: array)
    assert found.dtype == array.dtype and np.array_equal(found, array)


def test_a_large_array_comes_back() -> None:
    assert in_child(lambda: np.full(10**7, 7, np.uint8)).sum() == 7 * 10**7


def fail() -> np.ndarray:
    raise KeyError("no such\nthing")


def objects() -> np.ndarray:
    return np.array([{"a": 1}], object)


def hang() -> np.ndarray:
    time.sleep(60)
    return np.ones(1)


@pytest.mark.parametrize(
    ("work", "kind"), [(os.abort, "SIGABRT"), (fail, "KeyError"), (objects, "ValueError"), (hang, "SIGALRM")]
)
def test_what_ends_it_is_named(work: Callable[[], np.ndarray], kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(IsolatedError) as caught:
        in_child(work, seconds=1)
    assert caught.value.kind == kind
    assert capfd.readouterr() == ("", "")


def test_nothing_is_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is reaped; the test process may have other children."""
    fork, children = os.fork, []
    monkeypatch.setattr(os, "fork", lambda: children.append(fork()) or children[-1])
    with pytest.raises(IsolatedError):
        in_child(fail)
    (child,) = children
    with pytest.raises(ChildProcessError):
        os.waitpid(child, os.WNOHANG)


@pytest.mark.parametrize("seed", [8, 18])
def test_a_radiograph_that_crashes_gdcm(seed: int, tmp_path: Path) -> None:
    """Found by mutation: here GDCM 3.2.6 ends its process with SIGABRT and SIGSEGV."""
    grey = smooth(0, 24, 24)
    jpeg = encoded(grey, "JPEG")
    path = write_dicom(tmp_path / "a.dcm", grey, frame=mutate(jpeg, [jpeg], seed), syntax=JPEGExtended12Bit)
    with pytest.raises(UserError, match="its pixels are truncated or cannot be decoded"):
        read_dicom(path)


def test_a_common_radiograph_does_not_need_gdcm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, "in_child", pytest.fail)
    for syntax, kind in ((JPEGBaseline8Bit, "JPEG"), (JPEG2000, "JPEG2000")):
        frame = encoded(smooth(0), kind, **({"no_jp2": True} if kind == "JPEG2000" else {}))
        assert read_dicom(write_dicom(tmp_path / "a.dcm", smooth(0), frame=frame, syntax=syntax)).shape == (48, 48)


def test_a_matlab_file_that_crashes_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SciPy 1.17 ends with SIGSEGV on one that was found by mutation; any end is one line."""
    savemat(tmp_path / "a.mat", {"X": np.ones(3)})
    monkeypatch.setattr(matlab, "loadmat", lambda *_, **__: os.abort())
    with pytest.raises(UserError, match=r"cannot read .*a\.mat \(SIGABRT\)"):
        matlab.read_mat(tmp_path / "a.mat", "X")


def test_a_child_that_ends_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does whose memory is so short that it cannot even write its error."""
    monkeypatch.setattr(isolation, "_send_result", lambda *_: os._exit(0))
    with pytest.raises(IsolatedError) as caught:
        in_child(lambda: np.zeros(3))
    assert caught.value.kind == "MemoryError"
