from pathlib import Path

import pytest

from benchmarks.estimates import ViTSize, estimates, hours, step_flops
from benchmarks.harness import table
from engine.run.command_line import load_config


def test_the_page_shows_the_estimates() -> None:
    assert table(estimates()) in Path("docs/performance.md").read_text()


def test_flops_of_a_forward_pass() -> None:
    """303 GFLOP for ViT-B/14 at 518 px, counted layer by layer."""
    size = ViTSize(width=768, depth=12, prefix=5, patches=1369)
    tokens, width = 1374, 768
    linear = 2 * tokens * width * (3 * width + width + 4 * width + 4 * width)
    attention = 2 * 2 * tokens * tokens * width
    assert size.forward() == 12 * (linear + attention) == pytest.approx(303e9, rel=0.01)


def test_flops_of_a_step() -> None:
    cub = load_config(Path("configs/cub.yaml"), {})
    size = ViTSize(768, 12, 5, 1369)
    assert step_flops(cub) == pytest.approx(4 * size.forward() + 3 * size.forward(0.3))
    frozen = load_config(Path("configs/cub.yaml"), {"optim.freeze_stage_1_tokens": True})
    assert step_flops(cub) - step_flops(frozen) == pytest.approx(2 * size.forward())
    assert hours(67e12 * 0.6 * 3600, "fp32") == 1
