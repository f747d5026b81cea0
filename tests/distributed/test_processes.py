"""The runner of these tests, and the collectives of common.processes."""

import os
import time

import pytest
import torch
import torch.distributed as dist

import tests.processes
from common.errors import UserError
from common.processes import Processes, all_rows, gather, gather_blocks, largest, own_rows, processes, totals
from tests.processes import on_processes


def told() -> dict[str, object]:
    here = processes()
    return {
        "here": here,
        "gathered": gather({"rank": here.rank}),
        "blocks": gather_blocks(list(here.block(5))),
        "totals": totals(here.rank, 10),
        "largest": largest(here.rank, -here.rank),
    }


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_processes_tell_each_other(world_size: int) -> None:
    ranks = range(world_size)
    for rank, answer in enumerate(on_processes(world_size, told)):
        assert answer == {
            "here": Processes(rank, world_size),
            "gathered": [{"rank": other} for other in ranks],
            "blocks": [0, 1, 2, 3, 4],
            "totals": [sum(ranks), 10 * world_size],
            "largest": [world_size - 1, 0],
        }


def drawn_and_shared() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = own_rows(lambda count: torch.randn(count, generator=generator), 6 // processes().world_size)
    return rows, all_rows(rows)


def test_rows_are_dealt_and_brought_together() -> None:
    ((whole, same),) = on_processes(1, drawn_and_shared)
    assert torch.equal(whole, same)
    answers = on_processes(2, drawn_and_shared)
    for rank, (own, together) in enumerate(answers):
        assert torch.equal(own, whole[rank::2])
        assert torch.equal(together, torch.cat([whole[0::2], whole[1::2]]))


def fails_in_one(rank: int) -> None:
    if processes().rank == rank:
        raise UserError("--data.root: no folder here")
    dist.barrier()


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_failure_is_raised(rank: int) -> None:
    with pytest.raises(UserError, match="--data.root: no folder here") as caught:
        on_processes(2, fails_in_one, rank)
    assert f"in process {rank}" in caught.value.__notes__[0]


def dies_in_one() -> None:
    if processes().rank == 1:
        os._exit(3)
    time.sleep(60)


def test_a_process_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests.processes, "GRACE_SECONDS", 0.1)
    with pytest.raises(RuntimeError, match="process 1 died without an answer"):
        on_processes(2, dies_in_one)


def test_a_process_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests.processes, "SECONDS", 0.5)
    with pytest.raises(pytest.fail.Exception, match="no answer from process 0 of 1"):
        on_processes(1, time.sleep, 60)
