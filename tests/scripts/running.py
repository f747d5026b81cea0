"""Scripts run as a user runs them: in a process of their own, from any folder."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / script), *arguments]


def run_script(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(script, *arguments), cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
