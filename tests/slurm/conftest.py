"""One cluster for the tests of this folder (of each worker that runs some of them)."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, missing, started


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(f"no SLURM here: {reason}")
    with started(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
