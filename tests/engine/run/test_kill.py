"""Runs killed repeatedly with SIGKILL, also while writing, end like an uninterrupted run."""

import itertools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from engine.run import checkpointing
from engine.run.checkpointing import checkpoint_exists, previous_of, read_checkpoint, write_checkpoint
from engine.run.folder import BEST, LAST
from tests.processes import start_server
from tests.tiny import Session, assert_same_run, assert_same_tensors, resumed, tiny_config

KILLS = 50
MOMENTS = 150
"""About half of a run's moments: before, during and after every operation that changes a file."""
KEYS = {
    "data.augmentation": "flip", "train.ema_decay": 0.9, "train.epochs": 3, "train.save_every_steps": 1,
    "train.eval_every_steps": 3, "train.keep_every": 1,
}  # fmt: skip
PROCESSES = multiprocessing.get_context("forkserver")


def session(out: Path, seed: int, moment: int | None) -> None:
    """Start or resume the run in this process; with a `moment`, kill it there."""
    torch.set_num_threads(1)
    for generator in (random.seed, numpy.random.seed, torch.manual_seed):
        generator(seed)  # whatever a process starts with
    if moment is not None:
        die_at(moment, out)
    config = tiny_config(out, KEYS)
    Session(resumed(config) if checkpoint_exists(out / LAST) else config).go()


def die_at(moment: int, out: Path) -> None:
    """Count the moments before and after every operation that changes files, and die at number `moment`."""
    countdown = iter(range(moment, 0, -1))

    def tick(name: str) -> None:
        if next(countdown) == 1:
            with (out.parent / "moments.txt").open("a") as file:
                file.write(name + "\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(function: Callable[..., Any], target: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            file = os.readlink(f"/proc/self/fd/{args[0]}") if function is real_fsync else args[target]
            name = f"{function.__name__} {Path(file).name}"
            tick(f"before {name}")
            result = function(*args, **kwargs)
            tick(f"after {name}")
            return result

        return call

    real_fsync, real_save = os.fsync, checkpointing.save_file

    def save_file(tensors: Any, path: Path, metadata: Any) -> None:
        real_save(tensors, path, metadata)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        tick(f"in save_file {path.name}")
        path.write_bytes(whole)

    checkpointing.save_file = watched(save_file, 1)
    os.fsync, os.link, os.replace = watched(os.fsync, 0), watched(os.link, 1), watched(os.replace, 1)


def start(what: Callable[..., None], *args: Any) -> BaseProcess:
    """Start a process with everything imported already."""
    start_server()
    process = PROCESSES.Process(target=what, args=args)
    process.start()
    return process


def third_write(folder: Path, moment: int) -> None:
    for step in (1, 2, 3):
        if step == 3:
            die_at(moment, folder)
        write_checkpoint(folder / "last.safetensors", {"a": torch.full((500,), step)}, {"epoch": step, "batch": 0})


@pytest.mark.slow
def test_killed_at_every_moment_of_a_write_in_turn(tmp_path: Path) -> None:
    """At each moment there are two complete checkpoints, and the next process resumes from the newer one."""
    for moment in itertools.count(1):
        folder = tmp_path / str(moment)
        folder.mkdir()
        process = start(third_write, folder, moment)
        process.join(60)
        last = folder / "last.safetensors"
        epochs = [read_checkpoint(path).progress["epoch"] for path in (previous_of(last), last)]
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL and epochs in ([1, 2], [2, 2], [2, 3])
        write_checkpoint(last, {}, {"epoch": 9})
        assert read_checkpoint(previous_of(last)).progress["epoch"] == epochs[1]
        assert sorted(os.listdir(folder)) == ["last.safetensors", "previous.safetensors"]
    assert epochs == [2, 3] and moment == 20


@dataclass
class Killer:
    """Start sessions of one run folder and kill them, half at random times, half at random moments of writing."""

    out: Path
    seconds: float
    """Duration of an uninterrupted run."""
    dice: random.Random
    kills: int = 0
    step: int = 0
    """Of the last checkpoint."""

    def strike(self) -> bool:
        """Run one session and kill it; False if it finished first."""
        timed = self.kills % 2 == 0
        moment, delay = self.dice.randrange(1, MOMENTS), self.dice.uniform(0, self.seconds)
        process = start(session, self.out, self.dice.randrange(2**32), None if timed else moment)
        if timed:
            time.sleep(delay)
            process.kill()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
        self.kills += process.exitcode != 0
        self.look()
        return process.exitcode != 0

    def look(self) -> None:
        """Check that the last checkpoint is complete and not older than at the last look."""
        if self.step or checkpoint_exists(self.out / LAST):
            step = read_checkpoint(self.out / LAST).progress["step"]
            assert step >= self.step
            self.step = step


def finished_like(whole: Path, out: Path) -> None:
    """Assert that the run in `out` ended like that in `whole` and left no temporary files."""
    assert_same_run(whole, out)
    for folder in (LAST.parent, BEST):
        assert sorted(os.listdir(out / folder)) == sorted(os.listdir(whole / folder))
    for name in os.listdir(whole / LAST.parent):
        ours, theirs = (read_checkpoint(run / LAST.parent / name) for run in (out, whole))
        assert_same_tensors(ours.tensors, theirs.tensors)


@pytest.mark.slow
def test_killed_fifty_times(tmp_path: Path) -> None:
    """Every finished run is compared bitwise, and a new one is started."""
    start(session, tmp_path / "first", 1, None).join(120)
    started = time.perf_counter()
    start(session, whole := tmp_path / "whole", 2, None).join(120)
    seconds, dice, killed, runs = time.perf_counter() - started, random.Random(6), 0, 0
    finished_like(whole, tmp_path / "first")
    while killed < KILLS:
        killer = Killer(tmp_path / f"run {runs}", seconds, dice)
        while killer.strike():
            pass
        finished_like(whole, killer.out)
        killed, runs = killed + killer.kills, runs + 1
    moments = (tmp_path / "moments.txt").read_text().splitlines()
    print(f"{killed} kills in {runs} runs, {len(moments)} of them at a chosen moment: {sorted(set(moments))}")
    assert len(moments) >= KILLS // 10
