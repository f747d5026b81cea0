"""Run a script in its own process, from any folder."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(script: str, *arguments: str) -> list[str]:
    """`script`: train.py, or a module like commands.imagenet9 (found by PYTHONPATH: see `environment`)."""
    target = [str(ROOT / script)] if script.endswith(".py") else ["-m", script]
    return [sys.executable, *target, *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run_script(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(script, *arguments),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment(),
    )
