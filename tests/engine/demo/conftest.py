"""Three untrained runs on the same drawn birds: two-stage, two-stage with masks of pixels, plain."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from engine.demo.encoded import Encoded, encode
from engine.demo.subject import Subject, open_run
from tests.tiny import untrained_run

KEYS = {"model.backbone": "vit_nano_patch8"}
"""Its class token depends on the patches even before training."""
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("demo")
    keys = {"patch": KEYS, "pixel": KEYS | {"model.mask_resolution": "pixel"}, "plain": KEYS | {"model.name": "vit"}}
    return {name: untrained_run(folder / name, kind) for name, kind in keys.items()}


@pytest.fixture(scope="session")
def subjects(runs: dict[str, Path]) -> dict[str, Subject]:
    return {name: open_run(run, CPU) for name, run in runs.items()}


@pytest.fixture(scope="session")
def encoded(subjects: dict[str, Subject]) -> dict[str, Encoded]:
    """Image 1 of the test split in every model."""
    found = {}
    for name, subject in subjects.items():
        assert subject.split is not None
        sample = subject.split[1]
        found[name] = encode(subject, sample.image, sample)
    return found


def write_predictions(run: Path, labels: list[int], predicted: list[int]) -> None:
    table = pd.DataFrame({"path": [""] * len(labels), "label": labels, "predicted": predicted})
    table.to_csv(run / "predictions.csv", index=False)
