"""The commands of docs/: their scripts, configs and flags exist. (Those of the README are run: test_readme.py.)"""

import re
import shlex
import sys
from pathlib import Path

import pytest

import backgrounds
import compare_evaluations
import evaluate
import part_thresholds
import submit
from engine.config import parse_config

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(?:bash|sh)\n(.*?)```", re.DOTALL)
JOBS = {
    "train": "train.py",
    "seeds": "train.py --out",
    "eval_array": "evaluate.py --run runs/cub --method rollout",
}
"""What a job script runs with the words that follow it."""


def run_by(line: str) -> str:
    """A line that calls python, or what the job runs that it submits."""
    job = re.search(r"slurm/(\w+)\.sbatch(.*)", line)
    return f"python {JOBS[job[1]]}{job[2]}" if job else line


COMMANDS = sorted(
    {
        run_by(line)
        for page in (ROOT / "docs").glob("*.md")
        for block in BLOCK.findall(page.read_text())
        for line in block.replace("\\\n", " ").splitlines()
        if re.match(r"python [\w/]+\.py |(?:[A-Z]+=.* )?sbatch ", line)
    }
)
PARSERS = {f"{script.__name__}.py": script.parse_args for script in (evaluate, backgrounds, part_thresholds, submit)}


@pytest.mark.parametrize("command", COMMANDS)
def test_it_can_be_typed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, *arguments = shlex.split(command, comments=True)[1:]
    assert (ROOT / script).is_file()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    if script in PARSERS:
        _, arguments = PARSERS[script]()
    elif script == "compare_evaluations.py":
        compare_evaluations.parse_args()
        return
    elif script != "train.py":
        return
    if not any("runs/" in word and word.endswith(".yaml") for word in arguments):  # the config of a finished run
        parse_config(arguments)


def test_there_are_some() -> None:
    scripts = {command.split()[1] for command in COMMANDS}
    assert len(COMMANDS) > 30 and {"train.py", *PARSERS} <= scripts
