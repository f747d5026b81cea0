"""`train.compile` changes no loss, and breaks the graph only where tokens are dropped."""

import shutil
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tests.tiny import tiny_config, tiny_trainer

CASES: dict[str, tuple[dict[str, Any], int]] = {
    # Views of some of the images are a second batch size.
    "packed": ({"model.mask_resolution": "pixel", "loss.equivariance.images": 4}, 3),
    "gathered": ({"model.stage_2_path": "gathered"}, 3),
    "dense": ({"model.stage_2_path": "dense"}, 0),
    "straight_through": ({"model.mask_gradient": "straight_through", "loss.equivariance.images": 4}, 4),
    "soft": ({"model.mask_kind": "soft"}, 0),
    "vit": ({"model.name": "vit", "train.ema_decay": 0.5}, 0),
    "pdiscoformer": ({"model.name": "pdiscoformer"}, 0),
}
"""Keys of a config; the most graph breaks: a function that was compiled before has fewer."""


def losses(out: Path, keys: dict[str, Any]) -> list[float]:
    """Of two steps."""
    trainer = tiny_trainer(tiny_config(out, {**keys, "optim.lr": 1e-2}))
    trainer.model.train()
    found = []
    for batch, _ in zip(trainer.sampler.loader(0, 0, 0), range(2), strict=False):
        found.append(trainer.step(batch, 1.0, 1.0).loss.item())
        trainer.progress.batch += 1
    if trainer.state.ema:
        before = counters["stats"]["unique_graphs"]
        trainer.evaluate("val")
        assert (counters["stats"]["unique_graphs"] > before) is trainer.config.train.compile, "the average's own graph"
    return found


def compare(keys: dict[str, Any], backend: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    counters.clear()
    eager = losses(out / "eager", keys)
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    compiled = losses(out / "compiled", {**keys, "train.compile": True})
    assert counters["stats"]["unique_graphs"] > 0
    assert compiled == pytest.approx(eager, rel=1e-5) and eager[0] != eager[1]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "vit" else pytest.mark.slow) for n in CASES])
def test_compiled_training(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, breaks = CASES[name]
    compare(keys, "aot_eager", tmp_path, monkeypatch)
    assert sum(counters["graph_break"].values()) <= breaks


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")
def test_compiled_to_machine_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, which inductor draws from a generator of its own."""
    noise = ("gumbel", "part_dropout", "mask_dropout")
    quiet = {f"model.parts.{key}": False if key == "gumbel" else 0.0 for key in noise}
    compare({**quiet, "model.mask_gradient": "straight_through"}, "inductor", tmp_path, monkeypatch)
