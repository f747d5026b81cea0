"""The training step: seeds and the finite check; one-line errors for out of memory and killed workers."""

import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.seeds import stable_seed
from datasets import Batch
from engine.evaluation.loop import evaluate, split_loader
from engine.run.checkpointing import read_checkpoint
from engine.run.folder import LAST
from engine.run.machine import machine_errors
from engine.training import finite
from engine.training.finite import DivergedError, FiniteCheck, MicroBatch
from metrics.registry import build_metrics
from metrics.types import Prediction
from tests.tiny import CPU, Session, assert_same_tensors, copied, tiny_config, tiny_splits, tiny_trainer


def test_cpu_out_of_memory(tmp_path: Path) -> None:
    """A real allocation in the third step: the error has the sizes, and the checkpoint of the second step stays."""
    session = Session(tiny_config(tmp_path, {"train.save_every_steps": 1, "optim.grad_accum_steps": 1}))

    def greedy(count: int) -> None:
        if count == 2:
            torch.empty(2**50)

    session.before_batch = greedy
    with pytest.raises(UserError) as caught:
        session.go()
    message = str(caught.value)
    assert "out of memory on the CPU (asked for 4503599627370496 bytes)" in message and "\n" not in message
    assert "8 images of 32 x 32" in message and "data.batch_size=4 with optim.grad_accum_steps=2" in message
    kept = read_checkpoint(tmp_path / LAST)
    assert kept.progress["step"] == 2
    assert_same_tensors(kept.part("model"), copied(session.trainer.model.state_dict()))


def test_evaluation_out_of_memory(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, {"model.name": "vit"})
    trainer, splits = tiny_trainer(config), tiny_splits(config)
    metrics = build_metrics(("accuracy",), splits["val"].info)

    def greedy(batch: Batch, prediction: Prediction) -> None:
        torch.empty(2**50)

    with pytest.raises(UserError, match=r"out of memory on the CPU .*data\.eval_batch_size"):
        evaluate(trainer.model, split_loader(splits["val"], config.data), metrics, CPU, observers=[greedy])


def test_gpu_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 75 * 2**30)
    message = r"cuda:0 \(asked for 2\.00 GiB\): 80\.0 GiB, 1\.0 free, .*peak 75\.0; less"
    with pytest.raises(UserError, match=message), machine_errors("less", torch.device("cuda:0")):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ...")


@pytest.mark.parametrize("error", [RuntimeError("shape '[3]' is invalid"), ValueError("x"), UserError("data.root: y")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, machine_errors("less", CPU):
        raise error
    assert caught.value is error


def train_with_a_deadly_image(out: str) -> None:
    """Reading it kills the worker, as the kernel does when memory runs out."""
    config = tiny_config(Path(out), {"data.workers": 1})
    splits = tiny_splits(config)
    read = splits["train"].raw.read

    def deadly(index: int) -> Any:
        if index == 33:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(index)

    session = Session(config, splits)
    order = [path for batch in session.trainer.sampler.loader(0, 0, 0) for path in batch.paths]
    assert "synthetic/train/00033" in order
    splits["train"].raw.read = deadly  # type: ignore[method-assign]
    with pytest.raises(UserError) as caught:
        session.go()
    print(caught.value)


@pytest.mark.slow
def test_killed_loader_worker(tmp_path: Path) -> None:
    """In a separate process, because torch may report the dead worker again at any later time."""
    code = f"from tests.engine.training.test_step import *; train_with_a_deadly_image({str(tmp_path)!r})"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert re.fullmatch(r"a loading process.* died.*data\.workers.*\n", done.stdout), done.stdout + done.stderr


@pytest.mark.parametrize("clip", [0.0, 2.0])
def test_non_finite_gradient_stops_before_the_step(clip: float, tmp_path: Path) -> None:
    session = Session(tiny_config(tmp_path, {"model.name": "vit", "optim.clip": clip}))
    trainer, objective = session.trainer, session.trainer.step.objective
    before: list[dict[str, torch.Tensor]] = []

    def spoilt(model: nn.Module, batch: Batch, **options: Any) -> Any:
        output = objective(model, batch, **options)
        if trainer.progress.batch < 2:
            return output
        before.append(copied(model.state_dict()))
        weight = model.get_parameter("head.weight")
        weight.register_hook(lambda gradient: gradient / 0)
        return output

    trainer.step.objective = spoilt
    with pytest.raises(UserError, match=r"the gradient is not finite at epoch 1, batch 3 \(head\.weight\)") as caught:
        session.go()
    assert "synthetic/train/" in str(caught.value)
    assert_same_tensors(copied(trainer.model.state_dict()), before[0])


class Copying:
    """`start_copy_to_host` of a device that is done only when the host waits for it; counts what is not read yet."""

    def __init__(self) -> None:
        self.unread = 0

    def __call__(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        self.unread += 1

        def wait() -> torch.Tensor:
            self.unread -= 1
            return tensor

        return wait


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize(("accumulation", "ends"), [(1, "next step"), (2, "next step"), (1, "save"), (1, "epoch")])
def test_a_fused_optimizer_skips_the_step_and_the_error_follows(
    what: str, accumulation: int, ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the weights stay; the error names the batch before the next step, a save or the epoch's end."""
    copying = Copying()
    monkeypatch.setattr(finite, "start_copy_to_host", copying)
    keys = {"optim.grad_accum_steps": accumulation, "train.save_every_steps": 2 if ends == "save" else 0}
    session = Session(tiny_config(tmp_path, {"model.name": "vit", "train.ema_decay": 0.9, **keys}))
    trainer, objective = session.trainer, session.trainer.step.objective
    for options in (trainer.state.optimizer.defaults, *trainer.state.optimizer.param_groups):
        options["fused"] = True
    trainer.step.check = FiniteCheck(trainer.model, trainer.state.optimizer, fp16=False)
    weights: list[dict[str, torch.Tensor]] = []
    bad = trainer.steps if ends == "epoch" else 2  # micro-batch, from 1

    def spoilt(model: nn.Module, batch: Batch, **options: Any) -> Any:
        output = objective(model, batch, **options)
        weights.append(copied(model.state_dict()))
        if len(weights) != bad:
            return output
        if what == "loss":
            return replace(output, loss=output.loss * math.nan)
        handle = model.get_parameter("head.weight").register_hook(lambda g: [handle.remove(), g / 0][1])
        return output

    trainer.step.objective = spoilt
    about = "loss is" if what == "loss" else r"the gradient is"
    with pytest.raises(DivergedError, match=rf"{about} not finite at epoch 1, batch {bad}") as caught:
        session.go()
    assert what == "loss" or "(head.weight)" in str(caught.value)
    assert len(weights) == {"next step": bad + accumulation, "save": bad, "epoch": bad}[ends] and copying.unread <= 1
    assert_same_tensors(copied(trainer.model.state_dict()), weights[bad - 1])
    steps = {int(state["step"]) for state in trainer.state.optimizer.state.values()}
    assert steps == {(bad - 1) // accumulation}
    assert not (tmp_path / LAST).exists()


def test_the_norm_is_that_of_torch(tmp_path: Path) -> None:
    trainer = Session(tiny_config(tmp_path, {"model.name": "vit"})).trainer
    batch = next(iter(trainer.sampler.loader(0, 0, 0)))
    loss = trainer.step.objective(trainer.model, batch, stage_1_only=False).loss
    loss.backward()
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    norm = trainer.step.check([MicroBatch("", loss.detach(), {}, ())])
    assert norm > 0 and torch.equal(norm, nn.utils.get_total_norm(gradients))


def test_fp16_scaler_skips_overflowing_gradients(tmp_path: Path) -> None:
    """The norm is not checked: the step is skipped, the scale is halved, and training continues."""
    session = Session(tiny_config(tmp_path, {"model.name": "vit", "train.precision": "fp16", "train.epochs": 1}))
    trainer, objective = session.trainer, session.trainer.step.objective
    weights: list[dict[str, torch.Tensor]] = []
    scales: list[float] = []

    def overflowing(model: nn.Module, batch: Batch, **options: Any) -> Any:
        output = objective(model, batch, **options)
        weights.append(copied(model.state_dict()))
        scales.append(trainer.state.scaler.get_scale())
        if trainer.progress.batch == 1:
            model.get_parameter("head.weight").register_hook(lambda gradient: gradient * torch.inf)
        return output

    trainer.step.objective = overflowing
    session.go()
    assert len(weights) == 4 and scales[2] == scales[1] / 2
    assert_same_tensors(weights[2], weights[1])
    assert not torch.equal(weights[1]["head.weight"], weights[0]["head.weight"])


def test_every_micro_batch_has_its_own_seed(tmp_path: Path) -> None:
    """It depends on the run's seed, the epoch and the batch."""
    session = Session(tiny_config(tmp_path, {"model.name": "vit", "train.epochs": 2}))
    trainer, objective = session.trainer, session.trainer.step.objective
    seeds: dict[tuple[int, int], int] = {}

    def noted(model: nn.Module, batch: Batch, **options: Any) -> Any:
        seeds[trainer.progress.epoch, trainer.progress.batch] = torch.initial_seed()
        return objective(model, batch, **options)

    trainer.step.objective = noted
    session.go()
    assert seeds == {(epoch, batch): stable_seed("step", 0, epoch, batch) for epoch in range(2) for batch in range(4)}
    assert len(set(seeds.values())) == 8
