"""Every command with spoilt arguments and files works, or refuses in one line and leaves nothing behind."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fuzz.command_input import make_input
from tests.fuzz.command_lines import COMMANDS, attempt, run
from tests.project.lock import ROOT

LEFT_OUT = {"commands.prepare_dinov2_small", "commands.demo", "hubconf"}
"""The first downloads, the second serves pages until it is ended."""
SEEDS = {name: 6 for name in COMMANDS} | {
    "train": 2, "resume": 1, "evaluate": 4, "evaluate --method": 4, "explain --model": 4, "study": 2,
    "finished study": 1, "export": 1, "imagenet9": 2, "part_thresholds": 2,
}  # fmt: skip
"""Tries of each command; those that work take seconds."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    make_input(folder := tmp_path_factory.mktemp("source"))
    yield folder
    torch.set_num_threads(threads)


def test_every_command_is_tried() -> None:
    files = [
        path for name in ("*.py", "commands/*.py", "explain/__main__.py", "slurm/*.py") for path in ROOT.glob(name)
    ]
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if "\ndef main(" in path.read_text()
    }
    assert {main.__module__ for main, _, _ in COMMANDS.values()} == names - LEFT_OUT


@pytest.mark.parametrize("name", COMMANDS)
def test_spoilt_arguments_and_files(name: str, source: Path) -> None:
    for seed in range(SEEDS[name]):
        attempt(name, source, seed)


WHOLE = (
    "compare_evaluations", "convert_checkpoint", "explain", "join_methods", "prepare_siim_acr", "prepare_waterbirds",
    "push_to_hub",
)  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_input_works(name: str, source: Path, tmp_path: Path) -> None:
    """What the tries above spoil; `make_input` runs study.py and evaluate.py."""
    folder = tmp_path / "box"
    shutil.copytree(source, folder)
    assert run(name, COMMANDS[name][1].split(), folder, name) == 0
