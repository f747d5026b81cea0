"""Single steps of the trainer: accumulation, clipping, averaging, precision, and what stops them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from datasets import Batch, train_loader
from engine.run.checkpointing import read_checkpoint
from engine.run.folder import BEST, LAST
from engine.training.trainer import Trainer
from tests.tiny import Remains, Session, assert_same_run, assert_same_tensors, copied, tiny_config, tiny_trainer

PLAIN = {"model.name": "vit", "train.epochs": 1}


def first_batches(trainer: Trainer, count: int, size: int) -> list[Batch]:
    loader = train_loader(trainer.splits["train"], batch_size=size, seed=0, epoch=0, workers=0)
    return [batch for _, batch in zip(range(count), loader, strict=False)]


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def hold_step(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the gradients of a whole step instead of applying them."""
    monkeypatch.setattr(trainer.step, "_update", lambda lr_factor, added_lr: None)


def test_two_micro_batches_give_the_gradient_of_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny_trainer(tiny_config(tmp_path, PLAIN | {"data.batch_size": 16}))
    halves = tiny_trainer(tiny_config(tmp_path, PLAIN | {"data.batch_size": 8, "optim.grad_accum_steps": 2}))
    for trainer in (whole, halves):
        hold_step(trainer, monkeypatch)
    whole._train_batch(first_batches(whole, 1, 16)[0])
    assert [halves._train_batch(batch) for batch in first_batches(halves, 2, 8)] == [False, True]
    expected, found = gradients(whole), gradients(halves)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3


def test_last_accumulation_window_is_divided_like_the_others(tmp_path: Path) -> None:
    """Four batches in windows of three: two steps; the loss of the last, single batch is divided by three too."""
    session = Session(tiny_config(tmp_path, PLAIN | {"optim.grad_accum_steps": 3, "optim.clip": 0}))
    trainer, norms = session.trainer, []
    update = trainer.step._update

    def watched(lr_factor: float, added_lr: float) -> None:
        norms.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm())
        update(lr_factor, added_lr)

    trainer.step._update = watched  # type: ignore[method-assign]
    session.go()
    assert trainer.progress.step == 2
    alone = tiny_trainer(tiny_config(tmp_path, PLAIN))
    # Replay the first step to get the weights before the last one.
    replay = tiny_trainer(tiny_config(tmp_path, PLAIN | {"optim.grad_accum_steps": 3, "optim.clip": 0}))
    batches = first_batches(replay, 4, 8)
    for batch in batches[:3]:
        replay._train_batch(batch)
    alone.model.load_state_dict(replay.model.state_dict())
    alone.step.objective(alone.model, batches[3]).loss.backward()
    norm = torch.cat([p.grad.flatten() for p in alone.model.parameters()]).norm()
    assert norms[1].item() == pytest.approx(norm.item() / 3, rel=1e-4)


@pytest.mark.parametrize(("clip", "precision"), [(0.0, "fp32"), (0.01, "fp32"), (1e6, "fp32"), (1e6, "fp16")])
def test_clipping_bounds_the_global_norm(clip: float, precision: str, tmp_path: Path) -> None:
    """Under fp16 gradients are scaled, but clipping and the step use unscaled ones."""
    trainer = tiny_trainer(tiny_config(tmp_path, PLAIN | {"optim.clip": clip, "train.precision": precision}))
    seen: list[float] = []
    step = trainer.state.scaler.step

    def watched(optimizer: torch.optim.Optimizer) -> Any:
        seen.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm().item())
        return step(optimizer)

    trainer.state.scaler.step = watched
    batch = first_batches(trainer, 1, 8)[0]
    trainer.step.objective(trainer.model, batch).loss.backward()
    free = torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm().item()
    trainer.state.optimizer.zero_grad()
    trainer._train_batch(batch)
    assert seen[0] == pytest.approx(0.01 if clip == 0.01 else free, rel=1e-3 if precision == "fp32" else 0.1)


def test_weight_average_follows_the_published_decay(tmp_path: Path) -> None:
    session = Session(tiny_config(tmp_path, PLAIN | {"train.ema_decay": 0.6}))
    trainer = session.trainer
    assert trainer.state.ema is not None
    name = "head.weight"
    expected = trainer.model.state_dict()[name].double()
    update = trainer.state.ema.update

    def watched(model: nn.Module, step: int) -> None:
        nonlocal expected
        decay = min(0.6, 1 - step ** (-2 / 3))
        expected = decay * expected + (1 - decay) * model.state_dict()[name].double()
        update(model, step=step)
        torch.testing.assert_close(trainer.state.ema.module.state_dict()[name].double(), expected, rtol=0, atol=1e-6)

    trainer.state.ema.update = watched
    session.go()
    assert trainer.progress.step == 4
    assert not torch.equal(trainer.state.ema.module.state_dict()[name], trainer.model.state_dict()[name])
    assert trainer.evaluated_model() is trainer.state.ema.module
    best = read_checkpoint(tmp_path / BEST / "model.safetensors").tensors
    assert_same_tensors(best, copied(trainer.state.ema.module.state_dict()))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_non_finite_loss_stops_before_the_step(
    accumulation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(tiny_config(tmp_path, {"optim.grad_accum_steps": accumulation, "train.save_every_steps": 1}))
    trainer, objective = session.trainer, session.trainer.step.objective
    seen: list[tuple[str, ...]] = []

    def spoilt(model: nn.Module, batch: Batch, **options: Any) -> Any:
        output = objective(model, batch, **options)
        seen.append(batch.paths)
        if len(seen) < 3:
            return output
        terms = {**output.terms, "presence": torch.tensor(math.inf)}
        return replace(output, loss=output.loss * math.nan, terms=terms)

    trainer.step.objective = spoilt
    with pytest.raises(UserError) as caught:
        session.go()
    message = str(caught.value)
    assert "epoch 1, batch 3" in message and "presence=inf" in message and "entropy=" in message
    assert all(path in message for path in seen[2]) and "\n" not in message
    kept = read_checkpoint(tmp_path / LAST)
    assert kept.progress["step"] == trainer.progress.step == 2 // accumulation
    assert_same_tensors(kept.part("model"), copied(trainer.model.state_dict()))


def test_rows_are_means_over_the_epochs_images(tmp_path: Path) -> None:
    session = Session(tiny_config(tmp_path, {"train.epochs": 1}))
    objective, seen = session.trainer.step.objective, []

    def watched(model: nn.Module, batch: Batch, **options: Any) -> Any:
        output = objective(model, batch, **options)
        right = (output.prediction.logits.argmax(1) == batch.label).float().mean().item()
        seen.append((output.loss.item(), output.terms["entropy"].item(), right))
        return output

    session.trainer.step.objective = watched
    row = session.go().tracker.rows()[0]
    loss, entropy, right = (sum(values) / 4 for values in zip(*seen, strict=True))
    assert row["train/loss"] == pytest.approx(loss) and row["train/entropy"] == pytest.approx(entropy)
    assert row["train/accuracy"] == pytest.approx(right) and row["step"] == 4
    assert 0 <= row["train/keep_ratio"] <= 1 and row["train/images_per_second"] > 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_runs_and_part_maps_stay_in_full(precision: str, tmp_path: Path) -> None:
    session = Session(tiny_config(tmp_path, {"train.precision": precision, "train.epochs": 1}))
    kinds: dict[str, set[torch.dtype]] = {"maps": set(), "stage 2": set()}
    model = session.trainer.model

    def note(_: nn.Module, args: Any, output: Any) -> None:
        assert output.selection.maps.dtype == output.selection.logits.dtype == torch.float32
        assert output.part_features.dtype == output.part_logits.dtype == torch.float32
        kinds["maps"].add(output.selection.maps.dtype)

    model.stage_1.register_forward_hook(note)
    model.stage_2.head.register_forward_hook(lambda module, args, output: kinds["stage 2"].add(output.dtype))
    session.go()
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    assert kinds == {"maps": {torch.float32}, "stage 2": {half}}
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    assert math.isfinite(session.tracker.rows()[0]["train/loss"])


def test_two_runs_are_equal_and_another_seed_is_not(tmp_path: Path) -> None:
    keys = {"data.augmentation": "cub_original", "train.epochs": 1}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        Session(tiny_config(tmp_path / name, {**keys, "train.seed": seed})).go()
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert Remains.of(tmp_path / "a").rows != Remains.of(tmp_path / "c").rows
