"""What the commands that measure a run share: opening it, and writing what was measured."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from commands.run_context import RunContext
from common.errors import UserError
from engine.run.checkpointing import write_safetensors
from engine.run.folder import BEST, open_run
from models.interface import ImageClassifier
from tests.tiny import assert_same_tensors, tiny_config, tiny_model, tiny_splits


@pytest.fixture
def model(tmp_path: Path) -> ImageClassifier:
    """The best weights of the run in tmp_path/run."""
    config = tiny_config(tmp_path / "run", {"train.precision": "bf16"})
    model = tiny_model(config)
    open_run(config, model)
    write_safetensors(tmp_path / "run" / BEST / "model.safetensors", model.state_dict(), {})
    return model


def opened(folder: Path, *overrides: str, out: Path | None = None) -> RunContext:
    args = argparse.Namespace(run=folder / "run", checkpoint="best", out=out)
    return RunContext.open(args, list(overrides), "evaluation/test")


def test_a_run_is_opened_with_overrides_and_its_weights(model: ImageClassifier, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    run = opened(tmp_path, "--data.eval_batch_size=3")
    assert (run.out, run.config.data.eval_batch_size) == (tmp_path / "run" / "evaluation" / "test", 3)
    assert (run.precision, run.device) == (torch.bfloat16, torch.device("cpu"))
    assert "eval_batch_size: 16" in run.config_text
    loaded = run.load_model(tiny_splits(run.config)["test"].info)
    assert_same_tensors(loaded.state_dict(), model.state_dict())
    assert sorted(tmp_path.rglob("*")) == before


def test_results_go_to_the_output_folder(model: ImageClassifier, tmp_path: Path) -> None:
    run = opened(tmp_path, out=tmp_path / "mine")
    run.write_results({"accuracy": 0.5, **run.details(split="test")})
    written = json.loads((tmp_path / "mine" / "results.json").read_text())
    assert list(written) == ["accuracy", "run", "checkpoint", "split", "provenance"]
    assert (written["run"], written["checkpoint"]) == (str(tmp_path / "run"), "best")
    assert {"command", "packages", "commit"} <= written["provenance"].keys()


def test_an_output_folder_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out: cannot write to .*file is a file"):
        opened(tmp_path, out=tmp_path / "file")
    with pytest.raises(UserError, match=r"run is not a run folder"):
        opened(tmp_path)
