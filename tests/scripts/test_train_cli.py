"""train.py on the command line: from a config file to results, stopped by a signal, resumed."""

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from engine.run.folder import BEST, LAST, run_config
from models import PlainViT, TwoStageModel
from tests.scripts.running import command, run_script
from tests.tiny import KEYS, assert_same_run, flags

pytestmark = pytest.mark.slow
SCRIPT = {**KEYS, "model.backbone": "vit_nano_patch8", "model.stage_1_backbone": "vit_pico_patch8"}
"""Scripts run in their own process do not know the backbones registered by the tests."""
LONG = {**SCRIPT, "data.synthetic.train_images": 240, "train.save_every_steps": 4, "train.ema_decay": 0.9}
"""30 steps an epoch: long enough to be stopped in the middle of one."""


def test_from_a_config_file_to_results(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"train": {"sheet_every": 1}, "model": {"weights": "none"}}))
    done = run_script(tmp_path, "train.py", "--config", "mine.yaml", *flags({**SCRIPT, "out": "runs/a run"}))
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "a run"
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written == {
        "config.yaml", "metrics.jsonl", "results.json", "predictions.csv", "curves.png", "sheets/epoch_001.png",
        "sheets/epoch_002.png", "checkpoints/last.safetensors", "checkpoints/previous.safetensors",
        "best/model.safetensors", "best/config.json",
    }  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    rows = (out / "predictions.csv").read_text().splitlines()[1:]
    right = [label == predicted for _, label, predicted, *_ in (row.split(",") for row in rows)]
    assert len(rows) == 16 and sum(right) / len(rows) == results["test/accuracy"]
    assert {"test/accuracy", "val/accuracy", "best_epoch", "train_seconds", "wall_seconds", "seed"} <= results.keys()
    assert results["provenance"]["command"].startswith("train.py --config mine.yaml")
    assert f"test accuracy {results['test/accuracy']:.1%}" in done.stdout
    assert run_config(out).train.sheet_every == 1
    model = TwoStageModel.from_pretrained(str(out / BEST))
    assert model(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 2)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("runs", "mine.yaml")] == []


def test_a_plain_vit(tmp_path: Path) -> None:
    keys = {**SCRIPT, "model.name": "vit", "train.epochs": 1, "out": "run"}
    done = run_script(tmp_path, "train.py", *flags(keys))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "sheets" / "epoch_001.png").is_file()
    model = PlainViT.from_pretrained(str(tmp_path / "run" / BEST))
    assert model(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long run, uninterrupted."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_script(folder, "train.py", *flags({**LONG, "out": "run"}))
    assert done.returncode == 0, done.stderr
    return folder / "run"


def interrupted(folder: Path, keys: dict[str, Any], number: signal.Signals, group: bool = False) -> tuple[int, str]:
    """Start the run, send it a signal when its first checkpoint is there; returns its exit code and stderr."""
    with subprocess.Popen(
        command("train.py", *flags(keys)), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 240
            while not (folder / keys["out"] / LAST).exists():
                assert process.poll() is None and time.monotonic() < deadline, process.communicate()
                time.sleep(0.01)
            if group:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            _, error = process.communicate(timeout=120)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, error


def resume(folder: Path, error: str, number: signal.Signals) -> None:
    """Run the command that the message prints."""
    assert error.count("\n") == 1 and number.name in error and "Traceback" not in error
    words = shlex.split(error.split("continue with: ")[1])
    assert words[:2] == ["python", "train.py"]
    assert not (folder / "run" / "results.json").exists()
    done = run_script(folder, *words[1:])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_stopped_by_a_signal_and_resumed_by_the_printed_command(
    number: signal.Signals, code: int, tmp_path: Path, whole: Path
) -> None:
    """Also when the run was started with --overwrite."""
    returned, error = interrupted(tmp_path, {**LONG, "out": "run", "overwrite": True}, number)
    assert returned == code, error
    resume(tmp_path, error, number)
    assert (tmp_path / "run" / "results.json").is_file()
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_to_the_loading_processes_too(number: signal.Signals, tmp_path: Path, whole: Path) -> None:
    """Every process of the job gets the signal, as with Ctrl-C in a terminal, or SIGTERM from SLURM or `timeout`."""
    returned, error = interrupted(tmp_path, {**LONG, "out": "run", "data.workers": 2}, number, group=True)
    assert returned == 128 + number, error
    resume(tmp_path, error, number)
    assert_same_run(tmp_path / "run", whole)


def test_a_folder_with_a_space_can_be_resumed_by_the_printed_command(tmp_path: Path) -> None:
    returned, error = interrupted(tmp_path, {**LONG, "out": "a run", "train.epochs": 1}, signal.SIGTERM)
    assert returned == 143, error
    words = shlex.split(error.split("continue with: ")[1])
    assert words[words.index("--config") + 1] == "a run/config.yaml"
