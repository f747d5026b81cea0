"""All engine tests run on one thread: these models are too small for two."""

from collections.abc import Iterator

import pytest
import torch

from datasets import Split
from engine.run.config import RunConfig
from tests.tiny import tiny_config, tiny_splits


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A temperature at which random weights give every part some patches."""
    return tiny_config(tmp_path_factory.mktemp("run"), {"model.parts.temperature": 20.0})


@pytest.fixture(scope="module")
def split(config: RunConfig) -> Split:
    return tiny_splits(config)["test"]
