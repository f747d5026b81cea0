"""What train.py says at the start, and how long it will take."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from commands.start_summary import _counts, data_lines, start_lines
from engine.run import tracking
from engine.training import expected_time
from engine.training.expected_time import ExpectedTime
from tests.tiny import tiny_config, tiny_splits, tiny_trainer


def test_every_line(tmp_path: Path) -> None:
    keys = {"optim.grad_accum_steps": 3, "optim.freeze_stage_1": True, "data.synthetic.correlation": 1}
    config = tiny_config(tmp_path, keys)
    trainer = tiny_trainer(config)
    lines = list(start_lines(config, tiny_splits(config), trainer.model, torch.device("cpu")))
    sizes = {trains: 0 for trains in (True, False)}
    for parameter in trainer.model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    assert min(sizes.values()) > 0
    assert lines[0].startswith("device: cpu (") and lines[0].endswith("precision fp32")
    assert lines[1:] == [
        "train: 34 images (published)",
        "val: 16 images (published)",
        "test: 16 images (published)",
        "2 classes in training: checked 17, striped 17",
        "4 groups in training: checked on forest 17, checked on water 0, striped on forest 0, striped on water 17",
        "input: 32 x 32 pixels, mean 0.485 0.456 0.406, std 0.229 0.224 0.225; "
        "evaluation: center_crop, bilinear, crop 1",
        f"model: two_stage, {sizes[True]:,} parameters trained, {sizes[False]:,} frozen",
        "24 images a step (1 process x 8 x 3 micro-batches)",
    ]


def test_several_classes_in_an_image_are_not_counted_by_one_of_them(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    splits = tiny_splits(config)
    raw = splits["train"].raw
    raw.info = replace(raw.info, multi_label=True)  # type: ignore[misc]
    assert "2 classes in training: several in an image" in list(data_lines(config, splits))


def test_many_classes_are_summarised() -> None:
    names = [f"c{i}" for i in range(30)]
    counts = dict.fromkeys(range(30), 5) | {4: 0, 7: 1200, 9: 0}
    assert _counts(names, counts) == "0 (c4) to 1,200 (c7) images, 2 without images"
    assert _counts(names[:2], {0: 1500}) == "c0 1,500, c1 0"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [0.0]
    for module in (expected_time, tracking):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    yield now


def test_the_expected_time_is_said_once_after_the_first_steps(clock: list[float]) -> None:
    said: list[str] = []
    expected = ExpectedTime(said.append)
    for batch in range(1, 9):
        clock[0] += 100 if batch == 1 else 2  # the first compiles
        expected.after_batch(1000 - batch)
    assert said == ["about 0:33:08 for the remaining 994 batches (2 s each), without validation"]


def test_a_log_file_gets_a_line_a_minute(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with tracking.progress_bar(Console(highlight=False), "epoch 1/2", 30, start=10) as advance:
        for _ in range(14):
            clock[0] += 10
            advance(8)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2: 16 of 30, 0.8 img/s, 0:02:20 left", "epoch 1/2: 22 of 30, 0.8 img/s, 0:01:20 left"
    ]  # fmt: skip
