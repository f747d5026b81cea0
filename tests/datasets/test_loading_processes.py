"""Loading processes: they live across epochs, and their death is one line."""

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from datasets import Split, loader
from datasets.loader import BatchSampler, lost_worker
from datasets.transforms import build_transform
from datasets.types import RawSample
from tests.datasets.test_loader import CONFIG, Images, epoch_of


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. "),
            r"process \(pid 71\) died, killed by Killed,",
        ),
        (RuntimeError("DataLoader worker (pid(s) 71, 72) exited unexpectedly"), r"process \(pid 71, 72\) died,"),
        (ConnectionResetError(104, "Connection reset by peer"), "a loading process died,"),
        (EOFError(), "a loading process died,"),
    ],
)
def test_the_death_of_a_worker_is_one_line(error: Exception, told: str) -> None:
    found = lost_worker(error)
    assert found and re.search(told, str(found)) and "data.workers" in str(found) and "\n" not in str(found)


def test_other_errors_are_not_blamed_on_workers() -> None:
    assert lost_worker(RuntimeError("shape '[3]' is invalid for input of size 4")) is None


@pytest.mark.parametrize(
    "error",
    [OSError(24, "Too many open files"), RuntimeError("received 0 items of ancdata")],
)
def test_too_many_open_files_are_one_line(error: Exception) -> None:
    assert "ulimit -n" in str(lost_worker(error))


class Suspended(Images):
    """Images, the last of which suspends the process that reads it."""

    def read(self, index: int) -> RawSample:
        if index == len(self) - 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().read(index)


def test_a_suspended_worker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "LOADING_SECONDS", 2.0)
    split = Split(Suspended(12), build_transform(CONFIG, True), train=True, seed=0)
    with pytest.raises(UserError, match=r"loading processes \(pid \d+\) gave no batch for 2 seconds") as caught:
        list(BatchSampler(split, 4, seed=0).loader(0, 0, 1))
    assert "\n" not in str(caught.value)


class Pids(Images):
    """Images whose path is the process that read them."""

    def read(self, index: int) -> RawSample:
        return RawSample(self.pixels[index], self.labels[index], str(os.getpid()))


def test_loading_processes_live_across_epochs_and_broken_off_epochs() -> None:
    """The same images in the same order as from new ones, also after an epoch that was left in the middle."""
    split = Split(Pids(12), build_transform(CONFIG, True), train=True, seed=0)
    sampler, pids = BatchSampler(split, 4, seed=0), set()
    for epoch, start, taken in [(0, 0, 3), (1, 0, 1), (1, 1, 2), (2, 0, 3)]:
        batches = list(itertools.islice(sampler.loader(epoch, start, 1), taken))
        pids |= {path for batch in batches for path in batch.paths}
        expected = epoch_of(split, epoch, start=start)[:taken]
        assert all(torch.equal(a.image, b.image) for a, b in zip(batches, expected, strict=True))
    assert len(pids) == 1 and str(os.getpid()) not in pids
    assert {path for batch in sampler.loader(0, 0, 0) for path in batch.paths} == {str(os.getpid())}


SCRIPT = """
import multiprocessing
import signal
import sys

from datasets import train_loader
from tests.datasets.test_loader import split_of


def child(ready):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("asked to end", flush=True)))
    ready.set()
    signal.pause()


ready = multiprocessing.Event()
multiprocessing.Process(target=child, args=(ready,), daemon=True).start()
ready.wait()
loader = train_loader(split_of(8), batch_size=4, seed=0, epoch=0, workers=1)
print(len(next(iter(loader))))
"""


@pytest.mark.slow
def test_a_script_ends_while_its_loader_exists() -> None:
    """Its loading processes are killed, and no process of its own."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\nasked to end\n", "")
