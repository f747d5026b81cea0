"""Files that contain code: no reader runs it, although each would run in a reader that trusts it."""

import importlib
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from commands import convert_checkpoint
from commands.study_jobs import load_study
from common.errors import UserError
from common.plain_yaml import read_yaml
from datasets.formats.images import read_image, read_mask
from datasets.formats.matlab import read_mat
from datasets.formats.tube_labels import read_tube_labels
from engine.evaluation.loading import warm_start
from engine.explanation.map_store import MapProvenance, MapReader
from engine.run.checkpointing import read_checkpoint
from engine.run.command_line import parse_config
from explain.loading import load_any, load_run
from models.two_stage import TwoStageModel
from models.weights.checkpoints import read_state
from tests.bomb import Bomb

Write = Callable[[Path, Path], None]
"""Writes a file to the first path; a reader that trusts it would create the second path."""


def bare(path: Path, trace: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(trace)))


def packed(path: Path, trace: Path) -> None:
    torch.save({"model_state": Bomb(trace)}, path)


def legacy(path: Path, trace: Path) -> None:
    torch.save({"model_state": Bomb(trace)}, path, _use_new_zipfile_serialization=False)


def array(path: Path, trace: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([[Bomb(trace)]], object), allow_pickle=True)


def arrays(path: Path, trace: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=True, mask=np.array([[Bomb(trace)]], object))


def tagged(path: Path, trace: Path) -> None:
    path.write_text(f"title: !!python/object/apply:os.system [\"touch '{trace}'\"]\n")


def trusted_pickle(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def trusted_torch(path: Path) -> Any:
    with path.open("rb") as file:  # by its name, torch would take it for a safetensors file
        return torch.load(file, weights_only=False)


def trusted_array(path: Path) -> Any:
    found = np.load(path, allow_pickle=True)
    return found["mask"] if path.suffix == ".npz" else found


def trusted_yaml(path: Path) -> Any:
    return yaml.unsafe_load(path.read_text())


def init_from(path: Path) -> None:
    warm_start(nn.Linear(2, 2), str(path))


def conversion(path: Path) -> None:
    convert_checkpoint.import_checkpoint(convert_checkpoint.parse_args([str(path), "--to", str(path.with_name("run"))]))


def explained(path: Path) -> None:
    load_run(path.parent)


MALICIOUS: dict[str, tuple[str, Write, Callable[[Path], Any], Callable[[Path], Any]]] = {
    "weights, zip": ("w.pth", packed, read_state, trusted_torch),
    "weights, legacy": ("w.pth", legacy, read_state, trusted_torch),
    "weights, bare": ("w.bin", bare, read_state, trusted_pickle),
    "weights named safetensors": ("w.safetensors", packed, read_state, trusted_torch),
    "a run's checkpoint": ("last.safetensors", packed, read_checkpoint, trusted_torch),
    "model.init_from": ("model.safetensors", bare, init_from, trusted_pickle),
    "commands.convert_checkpoint": ("w.pt", packed, conversion, trusted_torch),
    "--weights": ("w.pt", packed, lambda path: load_any("timm/vit_nano_patch8", str(path)), trusted_torch),
    "tube labels": ("tubes.pkl", bare, read_tube_labels, trusted_pickle),
    "tube labels named json": ("tubes.json", bare, read_tube_labels, trusted_pickle),
    "a mask": ("mask.npy", array, read_mask, trusted_array),
    "masks": ("mask.npy", arrays, read_mask, lambda path: np.load(path, allow_pickle=True)["mask"]),
    "an image": ("a.png", bare, read_image, trusted_pickle),
    "a MATLAB file": ("a.mat", bare, lambda path: read_mat(path, "X"), trusted_pickle),
    "heat maps": ("maps.h5", bare, lambda path: MapReader(path, MapProvenance({}, {})), trusted_pickle),
    "a config": ("c.yaml", tagged, lambda path: parse_config([f"--config={path}"]), trusted_yaml),
    "a study": ("s.yaml", tagged, load_study, trusted_yaml),
    "a run's config": ("config.yaml", tagged, explained, trusted_yaml),
    "any YAML": ("c.yaml", tagged, read_yaml, trusted_yaml),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("case", MALICIOUS)
def test_a_malicious_file_is_one_line_and_never_acts(case: str, tmp_path: Path) -> None:
    name, write, read, trusting = MALICIOUS[case]
    trace, path = tmp_path / "trace", tmp_path / name
    write(path, trace)
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value) and not trace.exists()
    assert [found.name for found in tmp_path.iterdir()] == [name], "nothing is written"
    trusting(path)
    assert trace.exists(), "the file is a program"


def test_a_pickle_from_the_hub(tmp_path: Path) -> None:
    """For a hub model without safetensors, huggingface_hub downloads pytorch_model.bin."""
    trace, path = tmp_path / "trace", tmp_path / "pytorch_model.bin"
    packed(path, trace)
    model = nn.Linear(2, 2)
    with pytest.raises(UserError, match="refused by the safe loader"):
        TwoStageModel._load_as_pickle(model, str(path), "cpu", True)
    assert not trace.exists()
    trusted_torch(path)
    assert trace.exists()


def test_the_refusal_does_not_say_how_to_trust_the_file(tmp_path: Path) -> None:
    packed(tmp_path / "w.pth", tmp_path / "trace")
    with pytest.raises(
        UserError, match=r"Unsupported global: GLOBAL getattr was not an allowed global by default"
    ) as caught:
        read_state(tmp_path / "w.pth")
    assert "weights_only" not in str(caught.value) and "trust" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "model: {{class_path: {module}.Evil}}",
        "model: {module}.Evil",
        "class_path: {module}.Evil",
        "model.parts: {{class_path: {module}.Evil}}",
        "config: inner.yaml",
        "train: {{device: {{class_path: {module}.Evil}}}}",
    ],
)
def test_a_config_imports_nothing(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module beside the config, or in the working directory, would run code on import."""
    module, trace = "module_that_acts", tmp_path / "trace"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{module}.py").write_text(f"open({str(trace)!r}, 'w')\nclass Evil: pass\n")
    (tmp_path / "inner.yaml").write_text(f"model: {{class_path: {module}.Evil}}\n")
    (tmp_path / "c.yaml").write_text(text.format(module=module))
    with pytest.raises(UserError) as caught:
        parse_config(["--config=c.yaml"])
    assert "\n" not in str(caught.value) and not trace.exists() and module not in sys.modules
    importlib.import_module(module)
    assert trace.exists()
    del sys.modules[module]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(2**40),
        torch.zeros(2**20, device="meta"),
        torch.ones(1).to_sparse(),
        torch.zeros(4, dtype=torch.complex64),
    ],
    ids=["repeated", "meta", "sparse", "complex"],
)
def test_a_tensor_that_is_no_weight(tensor: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"a": tensor}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="w.pth: ('a' is not a dense tensor|refused|not a readable)"):
        read_state(tmp_path / "w.pth")


def test_names_that_are_no_names(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="w.pth: 1 is not a dense tensor"):
        read_state(tmp_path / "w.pth")


def test_weights_packed_to_expand(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "w.pth")
    read_state(tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as whole,
        zipfile.ZipFile(tmp_path / "p.pth", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
    assert (tmp_path / "p.pth").stat().st_size < 2**16
    with pytest.raises(UserError, match="p.pth: not a readable weights file .it is compressed"):
        read_state(tmp_path / "p.pth")
