"""Learning rates over a run: the published schedules, and the phase of stage 1 alone."""

import math

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from engine.run.config import OptimConfig
from engine.training.schedule import added_lr, lr_factor
from tests.tiny import Session, tiny_config


def factors(config: OptimConfig, epochs: int, steps: int = 1) -> list[float]:
    """The factor at every step and at the end of a run."""
    return [lr_factor(config, epochs, i / steps) for i in range(epochs * steps + 1)]


def test_published_cosine_moves_after_each_epoch() -> None:
    found = factors(OptimConfig(), epochs=90, steps=4)
    for i, factor in enumerate(found):
        assert factor == pytest.approx(0.5 * (1 + math.cos(math.pi * (i // 4) / 90)), abs=1e-12)
    assert found[:4] == [1.0] * 4  # the whole first epoch at the full rate
    assert found[-1] == pytest.approx(0.0, abs=1e-12)


def test_cosine_ends_at_the_minimum_rate() -> None:
    found = factors(OptimConfig(min_lr_ratio=0.1), epochs=8)
    assert found[0] == 1.0 and found[4] == pytest.approx(0.55) and found[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in zip(found, found[1:], strict=False))


@pytest.mark.parametrize("base", [1e-3, 2.0])
def test_restarts_and_the_first_rate_of_a_warmup_are_those_of_timm(base: float) -> None:
    """timm counts a cycle's epochs, we those of the run: 3 cycles of 4 are 12 epochs with 2 restarts."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    options = {"warmup_t": 2, "warmup_lr_init": 1e-5, "cycle_limit": 3, "cycle_decay": 0.5}
    theirs = CosineLRScheduler(optimizer, t_initial=4, lr_min=0.1 * base, **options)
    ours = OptimConfig(warmup_epochs=2, warmup_lr=1e-5, restarts=2, restart_decay=0.5, min_lr_ratio=0.1)
    for epoch in range(12):
        theirs.step(epoch)
        rate = base * lr_factor(ours, 12, float(epoch)) + added_lr(ours, 12, float(epoch))
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
    assert added_lr(ours, 12, 0.5) == pytest.approx(0.75e-5) and added_lr(OptimConfig(warmup_epochs=2), 9, 0.5) == 0


def test_rounding_does_not_move_the_schedule_within_an_epoch() -> None:
    config, steps = OptimConfig(), 49
    for epoch in range(90):
        within = {lr_factor(config, 90, epoch + batch / steps) for batch in range(steps)}
        assert len(within) == 1


def test_by_step_the_cosine_moves_within_an_epoch() -> None:
    found = factors(OptimConfig(schedule_unit="step"), epochs=2, steps=5)
    expected = [0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(11)]
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step"])
@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_warmup_climbs_linearly_and_shifts_no_schedule(unit: str, schedule: str) -> None:
    config = OptimConfig(warmup_epochs=2, schedule_unit=unit, schedule=schedule, step_epochs=3)
    found = factors(config, epochs=10, steps=4)
    assert 0 < found[0] <= 1e-2
    assert found[1:8] == pytest.approx([i / 8 for i in range(1, 8)])
    plain = factors(OptimConfig(schedule_unit=unit, schedule=schedule, step_epochs=3), epochs=10, steps=4)
    assert found[8:] == plain[8:]


def test_a_warmup_longer_than_the_run_never_passes_the_full_rate() -> None:
    assert max(factors(OptimConfig(warmup_epochs=50), epochs=3, steps=4)[:-1]) < 1


def test_step_schedule() -> None:
    found = factors(OptimConfig(schedule="step", step_epochs=10, step_decay=0.1), epochs=28)
    expected = [1.0] * 10 + [0.1] * 10 + [0.01] * 9
    assert found == pytest.approx(expected)
    pdiscoformer = factors(OptimConfig(schedule="step", step_epochs=4, step_decay=0.5), epochs=28)
    assert pdiscoformer[27] == pytest.approx(0.5**6)


def test_linear_schedule_ends_at_one_percent() -> None:
    found = factors(OptimConfig(schedule="linear"), epochs=10)
    assert found == pytest.approx([1 - 0.099 * epoch for epoch in range(11)])
    assert found[-1] == pytest.approx(0.01)


def test_constant() -> None:
    assert set(factors(OptimConfig(schedule="constant"), epochs=5, steps=3)) == {1.0}


def test_stage_1_epochs_are_a_phase_of_their_own() -> None:
    config = OptimConfig(stage_1_epochs=4, stage_1_lr_mult=2.0, schedule_unit="step", warmup_epochs=1.0)
    found = factors(config, epochs=10, steps=5)
    alone = factors(OptimConfig(schedule_unit="step", warmup_epochs=1.0), epochs=4, steps=5)
    joint = factors(OptimConfig(schedule_unit="step", warmup_epochs=1.0), epochs=6, steps=5)
    assert found[:20] == pytest.approx([2 * factor for factor in alone[:20]])
    assert found[20:] == pytest.approx(joint)  # a warm-up and a schedule of its own


def test_the_trainer_multiplies_every_groups_own_rate(tmp_path) -> None:
    keys = {
        "optim.schedule_unit": "step", "optim.warmup_epochs": 1.0, "optim.stage_1_epochs": 1, "train.epochs": 3,
        "optim.stage_1_lr_mult": 2.0, "optim.head_lr_mult": 10.0, "optim.lr": 1e-5, "optim.warmup_lr": 1e-6,
    }  # fmt: skip
    session, seen = Session(tiny_config(tmp_path, keys)), []
    step = session.trainer.state.scaler.step

    def watched(optimizer):
        seen.append([group["lr"] for group in optimizer.param_groups])
        return step(optimizer)

    session.trainer.state.scaler.step = watched
    session.go()
    config = session.config.optim
    bases = [group["base_lr"] for group in session.trainer.state.optimizer.param_groups]
    assert {round(base / 1e-5) for base in bases} == {1, 10}
    expected = [[base * lr_factor(config, 3, i / 4) + added_lr(config, 3, i / 4) for base in bases] for i in range(12)]
    assert seen == [pytest.approx(rates) for rates in expected]
    assert [row["lr_factor"] for row in session.tracker.rows()] == [lr_factor(config, 3, float(i)) for i in range(3)]
