"""The job scripts and slurm.submit on a real SLURM: jobs train, stop, resume and end."""

import json
import re
import sys
from pathlib import Path

import pytest

from engine.run.checkpointing import read_checkpoint
from engine.run.folder import LAST, RESULTS, run_config
from slurm import submit
from tests.scripts.test_train_cli import LONG, SCRIPT
from tests.slurm.cluster import Cluster, Job, wait_for
from tests.tiny import assert_same_run, flags

pytestmark = pytest.mark.slow
ONE = ("--gpus-per-node=1", "--cpus-per-task=1")
TWO = ("--nodes=2", *ONE, "--ntasks-per-node=1")
KEYS = {**LONG, "data.workers": 1}
"""With loading processes, which receive the signal too."""


def train(cluster: Cluster, folder: Path) -> Job:
    """Submit training in two processes on two nodes, to folder/run."""
    words = flags({**KEYS, "out": str(folder / "run")})
    return cluster.sbatch(*TWO, f"--output={folder}/log", "slurm/train.sbatch", *words)


def warn_after_first_epoch(job: Job, run: Path, log: Path) -> str:
    """Send the time-limit signal and wait until the requeued job has ended; return the log of both."""
    metrics = run / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and bool(metrics.read_text()), job.cluster.logs)
    job.warn()
    assert job.finish() == ["COMPLETED"], log.read_text()
    assert job.facts("Restarts") == ["1"]
    return log.read_text()


@pytest.fixture(scope="session")
def whole(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long run, uninterrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(cluster, folder).finish() == ["COMPLETED"], (folder / "log").read_text()
    return folder / "run"


@pytest.fixture(scope="session")
def seeds(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the runs run-seed3 and run-seed5, an array."""
    folder = tmp_path_factory.mktemp("seeds")
    words = (*ONE, "--array=3,5", f"--output={folder}/%a.log", "slurm/seeds.sbatch", str(folder / "run"))
    job = cluster.sbatch(*words, *flags({**SCRIPT, "train.epochs": 1, "data.synthetic.test_images": 12}))
    assert job.finish() == ["COMPLETED"] * 2, [log.read_text() for log in folder.glob("*.log")]
    return folder


def test_warned_of_its_time_limit_a_job_goes_on_and_ends_as_if_never_stopped(
    cluster: Cluster, tmp_path: Path, whole: Path
) -> None:
    log = warn_after_first_epoch(train(cluster, tmp_path), tmp_path / "run", tmp_path / "log")
    assert log.count("stopped by SIGUSR1") == log.count("is requeued") == log.count("test accuracy") == 1
    assert_same_run(tmp_path / "run", whole)


def test_slurm_submit_does_the_same_on_one_node(cluster: Cluster, tmp_path: Path, whole: Path) -> None:
    asked = ("--gpus", "2", "--cpus", "1", "--time", "01:00:00", "--partition", "all", "--sbatch", "comment=tiny")
    words = flags({**KEYS, "out": str(tmp_path / "run")})
    said = cluster.call(sys.executable, "-m", "slurm.submit", *asked, "--", *words)
    found = re.fullmatch(r"job (\d+); log: (.+)", said)
    assert found, said
    job, log = Job(cluster, int(found[1])), Path(found[2])
    assert job.facts("TimeLimit") == ["01:00:00"] and job.facts("Comment") == ["tiny"]
    assert log.parent == tmp_path / "run" / "submitit"
    warn_after_first_epoch(job, tmp_path / "run", log)
    assert_same_run(tmp_path / "run", whole)


def test_what_sbatch_refuses_is_one_line(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**cluster.environment, "SUBMITIT_PREEMPT_SIGNAL": "USR1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["slurm.submit", "--partition", "none", "--", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit):
        submit.main()
    error = capfd.readouterr().err
    assert re.fullmatch(r"error: sbatch rejected the job: .*invalid partition.*\n", error)


def test_an_array_of_seeds(seeds: Path) -> None:
    runs = {seed: seeds / f"run-seed{seed}" for seed in (3, 5)}
    assert {seed: run_config(run).train.seed for seed, run in runs.items()} == {3: 3, 5: 5}
    first, second = (read_checkpoint(run / LAST).tensors for run in runs.values())
    assert any(not first[name].equal(second[name]) for name in first)


def test_an_array_of_evaluations(cluster: Cluster, seeds: Path, tmp_path: Path) -> None:
    """Two of the eight combinations, whose numbers differ in model, method and data set."""
    runs, methods = [seeds / "run-seed3", seeds / "run-seed5"], ["rollout", "gradient"]
    lists = {"MODELS": f"{runs[0]} {runs[1]}", "METHODS": " ".join(methods), "OUT": str(tmp_path / "metrics")}
    lists["DATA"] = "own synthetic="
    words = (*ONE, "--array=0,7", f"--output={tmp_path}/%a.log", "slurm/eval_array.sbatch", "--metrics", "pointing")
    job = cluster.sbatch(*words, **lists)
    assert job.finish() == ["COMPLETED"] * 2, [log.read_text() for log in tmp_path.glob("*.log")]
    scores = tmp_path / "metrics"
    places = [f"{scores}/{runs[0]}/{methods[0]}", f"{scores}/{runs[1]}/synthetic/{methods[1]}"]  # runs' whole paths
    results = [Path(place) / RESULTS for place in places]
    assert [json.loads(path.read_text())["rows"][0]["row"] for path in results] == methods
    assert len(list(scores.rglob("results.json"))) == 2


BAD = {
    "no flags": ["slurm/train.sbatch"],
    "another folder": ["--chdir=/", "slurm/train.sbatch", "--out", "run"],
    "no name": ["--array=0", "slurm/seeds.sbatch", "--config", "configs/cub.yaml"],
    "no seeds": ["slurm/seeds.sbatch", "runs/cub", "--config", "configs/cub.yaml"],
    "no models": ["--export=ALL,MODELS=", "--array=0", "slurm/eval_array.sbatch", "--limit", "3"],
    "no array": ["slurm/eval_array.sbatch"],
    "beyond the pairs": ["--array=2", "slurm/eval_array.sbatch"],
    "no such model": ["--export=ALL,MODELS=torchvision/nobody", "--array=0", "slurm/eval_array.sbatch"],
    "a key that is none": ["--ntasks-per-node=1", "slurm/train.sbatch", "--bogus=1"],
}
LISTED = {"MODELS": "a b", "METHODS": "rollout"}


def test_mistakes_are_one_line_and_not_requeued(cluster: Cluster, tmp_path: Path) -> None:
    logs = {name: tmp_path / f"{name}.log" for name in BAD}
    jobs = {name: cluster.sbatch(*ONE, f"--output={logs[name]}", *words, **LISTED) for name, words in BAD.items()}
    for name, job in jobs.items():
        assert (job.finish(), job.facts("ExitCode"), job.facts("Restarts")) == (["FAILED"], ["2:0"], ["0"]), name
        said = [line for line in logs[name].read_text().splitlines() if not line.startswith(("srun: ", "job "))]
        assert len(said) == 1 and said[0].startswith("error: "), name
    assert "torchvision has no classifier 'nobody'" in logs["no such model"].read_text()
