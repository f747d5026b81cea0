"""Valid files of weights, heat maps and MATLAB arrays, and their readers."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.io import savemat
from torch import Tensor, nn

from datasets.formats.matlab import read_mat, read_numbers
from engine.explanation.map_store import MapProvenance, MapReader, MapWriter, Target
from engine.run.checkpointing import load_weights, read_checkpoint, write_safetensors
from models.backbone import load_backbone_weights
from models.published import load_published
from models.weights.checkpoints import read_state
from tests.fuzz.kind import File, content
from tests.models.published_states import published_state
from tests.models.small import backbone, config

MAPS = MapProvenance({"weights": "abc", "image size": (32, 48)}, {"rollout": {"ratio": 0.9}})
CLASSES: dict[Target, torch.Tensor] = {"predicted": torch.tensor([0, 1]), "label": torch.tensor([1, 0])}


def _small() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def checkpoints() -> list[File]:
    state = {f"model/{name}": tensor for name, tensor in _small().state_dict().items()}
    state |= {"optimizer/0/exp_avg": torch.ones(4, 3), "optimizer/0/step": torch.tensor(3.0)}
    return [content(lambda path: write_safetensors(path, state, {"epoch": 1, "rng": [1, 2, 3]}), ".safetensors")]


def read_run(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    assert isinstance(checkpoint.progress, dict)
    model = _small()
    load_weights(model, checkpoint.part("model"), path)


def weights() -> list[File]:
    state = backbone("vit_t_dino").state_dict()
    return [
        content(lambda path: save_file(state, path), ".safetensors"),
        content(lambda path: torch.save({"model_state": state, "epoch": 3}, path), ".pth"),
        content(lambda path: torch.save(state, path, _use_new_zipfile_serialization=False), ".pth"),
    ]


def read_weights(path: Path) -> None:
    state = read_state(path)
    assert all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items())
    load_backbone_weights(backbone("vit_t_dino"), "vit_t_dino", str(path))


def published() -> list[File]:
    states = [published_state(form) for form in ("ifam", "ifam-hf", "pdiscoformer")]
    return [
        *(content(lambda path, state=state: torch.save({"model_state": state}, path), ".pt") for state in states),
        content(lambda path: save_file(states[0], path), ".safetensors"),
    ]


def read_published(path: Path) -> None:
    model, layout = load_published(read_state(path), str(path), config(), "vit_t_dino")
    assert layout.num_classes == 5 and isinstance(model, nn.Module)


def maps() -> list[File]:
    def write(path: Path) -> None:
        with MapWriter(path, MAPS) as writer:
            writer.add_images(["a.jpg", "b.jpg"], CLASSES)
            writer.add("rollout", "predicted", torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(0)))

    return [content(write, ".h5")]


def read_maps(path: Path) -> None:
    reader = MapReader(path, MAPS)
    try:
        reader.check(0, ["a.jpg", "b.jpg"], CLASSES)
        assert reader.read("rollout", "predicted", 0, 2).shape[0] == 2
    finally:
        reader.file.close()


def matlab() -> list[File]:
    arrays = {"X": np.zeros((8, 8, 3, 2), np.uint8), "y": np.array([[1], [2]], np.uint8), "labels": np.ones((1, 9))}
    return [
        content(lambda path, packed=packed: savemat(path, arrays, do_compression=packed), ".mat")
        for packed in (False, True)
    ]


def read_matlab(path: Path) -> None:
    assert isinstance(read_mat(path, "X"), np.ndarray)
    assert set(read_numbers(path, "y", 10)) <= set(range(1, 11))
