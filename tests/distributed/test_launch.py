"""Processes started by torchrun or srun: their ranks, and how all end when one fails."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from common.errors import UserError, exit_on_user_error
from common.processes import processes, totals
from engine.run import distributed
from engine.run.distributed import PeerFailed
from engine.run.launch import distributed_main, launch_environment, one_process_only

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "node3", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2", "MASTER_ADDR": "node3", "MASTER_PORT": "29500",
}  # fmt: skip
PATIENCE = 90.0
"""Seconds after which processes that have not ended are considered hung."""


def test_places_that_torchrun_gives() -> None:
    assert launch_environment(TORCHRUN) == TORCHRUN
    assert launch_environment({}) == {}
    assert launch_environment({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) == {}


def test_places_that_srun_gives() -> None:
    found = launch_environment(SRUN)
    assert found == {**TORCHRUN, "RANK": "5", "WORLD_SIZE": "8"}
    alone = {**SRUN, "SLURM_STEP_NUM_NODES": "1"}
    del alone["MASTER_ADDR"], alone["MASTER_PORT"]
    assert launch_environment(alone)["MASTER_ADDR"] == "127.0.0.1"
    ports = {launch_environment({**alone, "SLURM_STEP_ID": step})["MASTER_PORT"] for step in ("0", "1")}
    assert len(ports) == 2 and all(20000 <= int(port) < 40000 for port in ports)


@pytest.mark.parametrize(
    "environment",
    [{"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, {**SRUN, "SLURM_STEP_NUM_TASKS": "1"}],
)
def test_a_batch_script_and_a_step_of_one_task_are_lone_processes(environment: dict[str, str]) -> None:
    assert launch_environment(environment) == {}


@pytest.mark.parametrize(
    ("environment", "missing"), [({"RANK": "0"}, "WORLD_SIZE"), ({**SRUN, "MASTER_ADDR": ""}, "MASTER_ADDR")]
)
def test_a_missing_variable_is_one_line(environment: dict[str, str], missing: str) -> None:
    with pytest.raises(UserError, match=missing):
        launch_environment(environment)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("RANK", ("x", "-1", "2", "1.0")), ("WORLD_SIZE", ("x", "0", "-2", "9" * 30)), ("LOCAL_RANK", ("x", "-1", "2")),
        ("MASTER_PORT", ("x", "0", "70000")),
    ],
)  # fmt: skip
def test_a_variable_that_is_no_such_number_is_one_line(name: str, values: tuple[str, ...]) -> None:
    for value in values:
        with pytest.raises(UserError, match=f"{name}='{value}' in the environment is not a whole number"):
            launch_environment({**TORCHRUN, name: value})


@pytest.mark.parametrize("name", [name for name in SRUN if name.startswith("SLURM") and "NODES" not in name])
def test_slurm_variables_that_are_odd_or_missing_are_one_line(name: str) -> None:
    with pytest.raises(UserError):
        launch_environment({**SRUN, name: "x"})
    without = {key: value for key, value in SRUN.items() if key != name}
    if name not in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID"):  # without these there is one process, or one step
        with pytest.raises(UserError):
            launch_environment(without)


def test_a_busy_port_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1]), "RANK": "0"}
        for key, value in {**TORCHRUN, "LOCAL_RANK": "0", **place}.items():
            monkeypatch.setenv(key, value)
        with pytest.raises(UserError, match=r"process 0 of 2 cannot join .*set another MASTER_PORT") as caught:
            distributed_main(lambda: None)()
        assert "\n" not in str(caught.value)


def test_scripts_of_one_process_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    one_process_only("study.py", "")
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"study\.py runs in one process.*slurm/seeds"):
        one_process_only("study.py", "slurm/seeds.sbatch runs seeds side by side")


def all_is_well() -> None:
    assert totals(1) == [2]
    print(f"process {processes().rank} done", file=sys.stderr)


def user_error_in_one() -> None:
    if processes().rank == 1:
        raise UserError("data.root: no folder here")
    dist.barrier()


def user_error_in_the_first() -> None:
    """The first process hosts the store that the others read."""
    if processes().rank == 0:
        raise UserError("data.root: no folder here")
    dist.barrier()


def same_error_in_all() -> None:
    raise UserError("data.root: no folder here")


def one_leads_another_follows() -> None:
    totals(0)
    if processes().rank == 1:
        raise UserError("loss is not finite")
    raise PeerFailed


def crash_in_one() -> None:
    if processes().rank == 1:
        raise ZeroDivisionError("a mistake of ours")
    dist.barrier()


def crash_while_another_is_busy() -> None:
    """The other process is not in a collective, which would fail, but busy, as with a GPU."""
    if processes().rank == 1:
        raise UserError("data.root: no folder here")
    time.sleep(PATIENCE)


def killed_in_the_first() -> None:
    _killed(0)


def killed_in_the_second() -> None:
    _killed(1)


def _killed(rank: int) -> None:
    totals(0)
    if processes().rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def suspended_in_the_second() -> None:
    """A helper process lets it go on later."""
    distributed.BEAT_SECONDS, distributed.SILENT_SECONDS = 0.2, 2.0
    totals(0)
    if processes().rank == 1:
        suspended = os.getpid()
        if os.fork() == 0:
            time.sleep(8)
            os.kill(suspended, signal.SIGCONT)
            os._exit(0)
        os.kill(suspended, signal.SIGSTOP)
    dist.barrier()


def stopped_in_all() -> None:
    raise SystemExit(138)


def ended(folder: Path, main: Callable[[], None]) -> tuple[list[int | None], str]:
    """Exit codes of two processes that ran `main`, and their combined stderr in order of time."""
    context = multiprocessing.get_context("forkserver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = folder / "stderr"
    workers = [context.Process(target=_script, args=(rank, port, said, main), daemon=True) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE / 2)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    return codes, said.read_text()


def _script(rank: int, port: int, said: Path, main: Callable[[], None]) -> None:
    places = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()})
    sys.stderr = said.open("a", buffering=1)
    exit_on_user_error(distributed_main(main))()


@pytest.mark.parametrize(
    ("main", "codes", "lines"),
    [
        (all_is_well, [0, 0], ["process 0 done", "process 1 done"]),
        (user_error_in_one, [1, 2], ["error: process 1 of 2: data.root: no folder here"]),
        (user_error_in_the_first, [2, 1], ["error: process 0 of 2: data.root: no folder here"]),
        (one_leads_another_follows, [1, 2], ["error: process 1 of 2: loss is not finite"]),
        (crash_while_another_is_busy, [1, 2], ["error: process 1 of 2: data.root: no folder here"]),
        (stopped_in_all, [138, 138], []),
    ],
)  # fmt: skip
def test_processes_end_together_and_one_says_why(
    main: Callable[[], None], codes: list[int], lines: list[str], tmp_path: Path
) -> None:
    found, said = ended(tmp_path, main)
    assert (found, sorted(said.splitlines())) == (codes, lines)


def test_an_error_of_all_is_said_once(tmp_path: Path) -> None:
    codes, said = ended(tmp_path, same_error_in_all)
    assert sorted(codes) in ([1, 2], [2, 2])  # type: ignore[type-var]
    assert said.count("data.root: no folder here") == said.count("\n") == 1


def test_a_mistake_of_ours_shows_its_own_traceback_alone(tmp_path: Path) -> None:
    codes, said = ended(tmp_path, crash_in_one)
    assert codes == [1, 1]
    assert said.startswith("process 1 of 2:\nTraceback") and said.endswith("ZeroDivisionError: a mistake of ours\n")


@pytest.mark.parametrize(("main", "killed"), [(killed_in_the_first, 0), (killed_in_the_second, 1)])
def test_a_process_that_is_killed_takes_the_others_down(main: Callable[[], None], killed: int, tmp_path: Path) -> None:
    codes, said = ended(tmp_path, main)
    assert (codes[killed], codes[1 - killed]) == (-signal.SIGKILL, 1)
    assert said.startswith(f"error: process {1 - killed} of 2: another process died") and said.count("\n") == 1


@pytest.mark.slow
def test_a_suspended_process_is_named_and_ends_the_job(tmp_path: Path) -> None:
    codes, said = ended(tmp_path, suspended_in_the_second)
    assert codes == [2, 1]
    assert said.startswith("error: process 0 of 2: process 1 of 2 has not responded for 2 seconds: it is suspended")
