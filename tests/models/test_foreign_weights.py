"""Backbones inside the files of other projects: containers, prefixes, training snapshots, and our own runs."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import UserError
from engine.run.folder import open_run
from models import build_model
from models.backbone import create_backbone, load_backbone_weights
from models.weights.checkpoints import read_state
from models.weights.foreign import CONTAINERS
from tests.models.small import backbone
from tests.tiny import tiny_config

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return backbone("vit_t_dino").state_dict()


def prefixed(state: State, prefix: str, **more: Tensor) -> State:
    return {**{prefix + name: tensor for name, tensor in state.items()}, **more}


def others(state: State) -> State:
    """The same names with other values."""
    return {name: tensor + 1 for name, tensor in state.items()}


def assert_loads(content: Any, state: State, folder: Path) -> None:
    path = folder / "weights.pth"
    torch.save(content, path)
    vit = create_backbone("vit_t_dino", (32, 32))
    load_backbone_weights(vit, "vit_t_dino", str(path))
    loaded = vit.state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "module._orig_mod.model.backbone."]
)
def test_prefixes(prefix: str, state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = prefixed(state, prefix, **{"projector.weight": torch.zeros(2)})
    assert_loads({"state_dict": content}, state, tmp_path)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f" {prefix}*" in said and "not the 1 others (projector.weight" in said


@pytest.mark.parametrize("key", CONTAINERS)
def test_containers(key: str, state: State, tmp_path: Path) -> None:
    assert_loads({key: state, "epoch": 3, "optimizer": {"lr": [1e-3]}}, state, tmp_path)


@pytest.mark.parametrize(
    ("plain", "average"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("student", "teacher")]
)
def test_the_moving_average_is_meant(
    plain: str, average: str, state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_loads({plain: others(state), average: state}, state, tmp_path)
    assert plain == "student" or f"{average} is used, not {plain}" in capsys.readouterr().out
    assert_loads({plain: others(state), average: {"module": state, "decay": 0.99}}, state, tmp_path)
    assert plain == "student" or list(read_state(tmp_path / "weights.pth")) == list(state)
    torch.save({plain: state, average: None}, tmp_path / "off.pth")
    if plain != "student":
        assert read_state(tmp_path / "off.pth").keys() == state.keys()


def test_training_snapshots_of_other_projects(state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = {"head.weight": torch.zeros(1000, 32), "head.bias": torch.zeros(1000)}
    timm = {"arch": "vit", "args": argparse.Namespace(lr=0.1, data=Path("x")), "metric": np.float64(81.2), "version": 2}
    assert_loads(timm | {"state_dict": state | head}, state, tmp_path)
    assert "head.weight (1000, 32), a classifier, is left out" in capsys.readouterr().out
    lightning = {
        "hyper_parameters": {"lr": 1.0},
        "pytorch-lightning_version": "2.5",
        "callbacks": {},
        "loops": {"n": 1},
    }
    assert_loads(
        lightning | {"state_dict": prefixed(state, "model.", **{"loss.weight": torch.ones(9)})}, state, tmp_path
    )
    decoder = {"decoder_pos_embed": torch.zeros(1, 5, 8), "decoder_blocks.0.norm1.weight": torch.zeros(8)}
    assert_loads({"model": state | decoder | {"mask_token": torch.zeros(1, 1, 8)}}, state, tmp_path)
    dino = prefixed(state, "module.backbone.", **{"module.head.mlp.0.weight": torch.zeros(3, 3)})
    assert_loads({"student": others(state), "teacher": dino, "epoch": 9}, state, tmp_path)
    chunked = {name.replace("blocks.", "blocks.0.", 1): tensor for name, tensor in state.items()}
    assert_loads({"teacher": prefixed(chunked, "backbone.", **{"dino_head.x": torch.zeros(2)})}, state, tmp_path)
    assert_loads(prefixed(others(state), "student.backbone.") | prefixed(state, "teacher.backbone."), state, tmp_path)


def test_what_is_unclear_or_does_not_fit_is_one_line(state: State, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"several backbones \(a\., b\.\); save the one to use"):
        assert_loads(prefixed(state, "a.") | prefixed(state, "b."), state, tmp_path)
    with pytest.raises(UserError, match=r"unexpected: projector\.weight"):
        assert_loads(state | {"projector.weight": torch.zeros(2)}, state, tmp_path)


def saved_run(folder: Path, name: str) -> tuple[Path, State]:
    """A run folder with a best model of random weights, as training leaves it."""
    config = tiny_config(folder / name, {"model.name": name})
    model = build_model(config.model, 2, (32, 32), seed=5)
    open_run(config, model)
    model.save_pretrained(folder / name / "best")
    return folder / name, model.state_dict()


@pytest.mark.parametrize("trained", ["vit", "two_stage", "pdiscoformer"])
@pytest.mark.parametrize("wanted", ["vit", "two_stage", "pdiscoformer"])
def test_a_run_gives_its_backbones(trained: str, wanted: str, tmp_path: Path) -> None:
    run, saved = saved_run(tmp_path, trained)
    config = tiny_config(tmp_path / "new", {"model.name": wanted, "model.weights": str(run)})
    state = build_model(config.model, 3, (32, 32), seed=0).state_dict()
    for name, tensor in state.items():
        stage, found, inner = name.rpartition("backbone.")
        if not found:
            continue
        sources = {"vit": "", "pdiscoformer": "stage_1.", "two_stage": stage or "stage_2."}
        assert torch.equal(tensor, saved[f"{sources[trained]}backbone.{inner}"]), name


def test_a_cnn_takes_prefixed_weights(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, {"model.name": "cnn", "model.backbone": "test_resnet"}).model
    network = build_model(config, 2, (32, 32), seed=1).backbone.state_dict()
    torch.save(
        {"state_dict": prefixed(network, "module.", **{"module.fc.weight": torch.zeros(9, 9)})}, tmp_path / "w.pth"
    )
    keys = {"model.name": "cnn", "model.backbone": "test_resnet", "model.weights": str(tmp_path / "w.pth")}
    loaded = build_model(tiny_config(tmp_path, keys).model, 3, (32, 32), seed=0).backbone.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.items())
