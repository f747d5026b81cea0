"""The scripts, configs and flags in the commands of docs/ exist. (test_readme.py runs those of the README.)"""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import evaluate
from commands import (
    compare_evaluations,
    demo,
    export,
    imagenet9,
    join_methods,
    part_thresholds,
    prepare_waterbirds,
    push_to_hub,
)
from engine.run.command_line import parse_config
from explain import __main__ as explain_images
from slurm import submit

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(?:bash|sh)\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"python (?:-m (?:explain|(?:commands|slurm|benchmarks)\.\w+)|[\w/]+\.py) |(?:[A-Z]+=.* )?sbatch ")
JOBS = {
    "train": "train.py",
    "seeds": "train.py --out",
    "study": "study.py",
    "eval_array": "evaluate.py --run runs/cub --method rollout",
}
"""Job script to the command that it passes its arguments to."""


def run_by(line: str) -> str:
    """The line itself, or the command that the submitted job runs."""
    job = re.search(r"slurm/(\w+)\.sbatch(.*)", line)
    return f"python {JOBS[job[1]]}{job[2]}" if job else line


COMMANDS = sorted(
    {
        run_by(line)
        for page in (ROOT / "docs").glob("*.md")
        for block in BLOCK.findall(page.read_text())
        for line in block.replace("\\\n", " ").splitlines()
        if re.match(
            r"python (?:-m (?:explain|(?:commands|slurm|benchmarks)\.\w+)|[\w/]+\.py) |(?:[A-Z]+=.* )?sbatch ", line
        )
    }
)
PARSERS = {"evaluate.py": evaluate.parse_args} | {
    f"-m {script.__name__}": script.parse_args for script in (imagenet9, part_thresholds, submit)
}
ONLY_PARSED: dict[str, Callable[[], object]] = {
    "-m explain": lambda: explain_images.parse_args(None),
    "-m commands.compare_evaluations": compare_evaluations.parse_args,
    "-m commands.demo": lambda: demo.parse_args(None),
    "-m commands.export": export.parse_args,
    "-m commands.join_methods": join_methods.parse_args,
    "-m commands.push_to_hub": push_to_hub.parse_args,
    "-m commands.prepare_waterbirds": prepare_waterbirds.parse_args,
}
"""Commands without a config."""


def split_command(line: str) -> tuple[str, list[str]]:
    """("train.py" or "-m commands.NAME", its arguments)."""
    words = shlex.split(line, comments=True)[1:]
    count = 2 if words[0] == "-m" else 1
    return " ".join(words[:count]), words[count:]


def file_of(script: str) -> str:
    if script == "-m explain":
        return "explain/__main__.py"
    return script.removeprefix("-m ").replace(".", "/") + ".py" if script.startswith("-m ") else script


@pytest.mark.parametrize("command", COMMANDS)
def test_it_can_be_typed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, arguments = split_command(re.sub(r"--plugin my_\w+\.py", "", command))  # a file of the reader's own
    assert (ROOT / file_of(script)).is_file()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    if script in PARSERS:
        _, arguments = PARSERS[script]()
    elif script in ONLY_PARSED:
        ONLY_PARSED[script]()
        return
    elif script != "train.py":
        return
    if not any("runs/" in word and word.endswith(".yaml") for word in arguments):  # the config of a finished run
        parse_config(arguments)


def test_there_are_some() -> None:
    scripts = {split_command(command)[0] for command in COMMANDS}
    assert len(COMMANDS) > 30 and {"train.py", *PARSERS} <= scripts
