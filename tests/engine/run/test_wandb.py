"""The mirror of a run in Weights & Biases: every row, learning rates, and W&B out of reach."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.run.checkpointing import read_checkpoint
from engine.run.folder import LAST
from engine.run.tracking import Tracker
from tests.tiny import Session, resumed, tiny_config


class Run:
    """As W&B: rows of one step are merged, and a row of an earlier step is dropped."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.rows: dict[int, dict[str, Any]] = {}
        self.axes: dict[str, str] = {}

    def log(self, row: dict[str, Any], step: int) -> None:
        if step >= max(self.rows, default=0):
            self.rows[step] = self.rows.get(step, {}) | row

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric


class Service:
    """The module wandb, reachable or not."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        self.errors = SimpleNamespace(Error=self.Error)
        self.asked: list[dict[str, Any]] = []
        self.runs: list[Run] = []
        self.problem: Exception | None = None

    def init(self, **how: Any) -> Run:
        self.asked.append(how)
        if self.problem and how["mode"] == "online":
            raise self.problem
        self.runs.append(Run(how["id"] or "abc"))
        return self.runs[-1]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    yield service


def test_a_resumed_run_goes_on_under_its_id(tmp_path: Path, service: Service) -> None:
    """Its id is in the checkpoint, and the resumed run passes that id."""
    config = tiny_config(tmp_path, {"train.epochs": 1, "wandb.mode": "offline"})
    Session(config).go()
    assert Session(resumed(config)).trainer.progress.wandb_id == "abc"
    Tracker(tmp_path, config, read_checkpoint(tmp_path / LAST).progress["wandb_id"])
    assert (service.asked[0]["id"], service.asked[-1]["id"], service.asked[-1]["resume"]) == (None, "abc", "allow")


def test_it_gets_every_row_with_the_learning_rates(tmp_path: Path, service: Service) -> None:
    """Two epochs of four steps, validated every third step too; the rates are those of the last step."""
    keys = {"wandb.mode": "online", "train.eval_every_steps": 3, "optim.head_lr_mult": 10.0, "optim.schedule": "step"}
    keys |= {"optim.step_epochs": 1, "optim.step_decay": 0.5, "optim.freeze_stage_1": True}
    session = Session(tiny_config(tmp_path, keys)).go()
    (run,) = service.runs
    assert list(run.rows) == [3, 4, 6, 8] and repr([*run.rows.values()]) == repr(session.tracker.rows())
    assert [row["epoch"] for row in run.rows.values()] == [0.75, 1, 1.5, 2] and run.axes == {"*": "epoch"}
    assert all("val/accuracy" in row for row in run.rows.values())
    rates = {name: [run.rows[step][f"lr/{name}"] for step in (4, 8)] for name in ("head", "stage_1", "stage_2")}
    assert rates == {"head": [1e-2, 5e-3], "stage_1": [1e-3, 5e-4], "stage_2": [1e-3, 5e-4]}
    assert run.rows[4]["lr/prototypes"] == run.rows[4]["lr/modulation"] == 1e-3


@pytest.mark.parametrize(
    "problem", [Service.Error("No API key configured.\n Use `wandb login`"), ConnectionError("no such host")]
)
def test_a_run_goes_on_offline(
    problem: Exception, tmp_path: Path, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.problem = problem
    session = Session(tiny_config(tmp_path, {"train.epochs": 1, "model.name": "vit", "wandb.mode": "online"})).go()
    assert [how["mode"] for how in service.asked] == ["online", "offline"]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wandb.mode=online")]
    assert len(said) == 1 and str(problem).split()[0] in said[0] and "wandb sync" in said[0]
    assert repr([*service.runs[0].rows.values()]) == repr(session.tracker.rows())
