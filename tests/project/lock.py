"""Write requirements.lock: the versions in constraints.txt with the SHA-256 of their wheels.

    python -m tests.project.lock

The checksums are those that pip's package index states (its JSON form, PEP 691) for every wheel that CPython 3.11 or
newer can install, on any platform. Source distributions are left out: building one runs its code, with build tools
that nothing pins.
"""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).parents[2]
CONSTRAINTS, LOCK = ROOT / "constraints.txt", ROOT / "requirements.lock"
HEADER = """\
# The packages of constraints.txt with the checksums of their wheels, which pip verifies. Written by
#     python -m tests.project.lock
--only-binary :all:
"""


def pins(text: str) -> list[Requirement]:
    """The requirements of constraints.txt."""
    return [Requirement(line) for line in text.splitlines()]


def locked(pin: Requirement, files: Sequence[Mapping[str, Any]]) -> str:
    """The entry of a pin, given the `files` of its project in the index. Raises ValueError if no wheel is there.

    Packages without a wheel for macOS (CUDA) get a marker: other platforms do not need them.
    """
    (specifier,) = pin.specifier
    wheels = []
    for file in files:
        try:
            _, version, _, tags = parse_wheel_filename(file["filename"])
        except InvalidWheelFilename:  # no wheel, or one that pip ignores
            continue
        if version == Version(specifier.version) and any(map(_installable, tags)):
            wheels.append((file["hashes"]["sha256"], {tag.platform for tag in tags}))
    if not wheels:
        raise ValueError(f"{pin}: the index has no wheel for CPython 3.11 or newer")
    everywhere = any(p == "any" or p.startswith("macosx") for _, platforms in wheels for p in platforms)
    marker = str(pin.marker or "") or ("" if everywhere else 'sys_platform == "linux"')
    lines = [f"{pin.name}=={specifier.version}" + (f" ; {marker}" if marker else "")]
    lines += sorted(f"--hash=sha256:{digest}" for digest, _ in wheels)
    return " \\\n    ".join(lines) + "\n"


def _installable(tag: Tag) -> bool:
    if tag.interpreter.startswith("py3"):
        return True
    minor = tag.interpreter.removeprefix("cp3")
    return tag.interpreter.startswith("cp3") and minor.isdigit() and (tag.abi == "abi3" or int(minor) >= 11)


def files_of(project: str, index: str) -> list[dict[str, Any]]:
    """The files of a project in a package index."""
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    request = urllib.request.Request(f"{index.rstrip('/')}/{canonicalize_name(project)}/", headers=accept)
    with urllib.request.urlopen(request, timeout=180) as answer:
        files: list[dict[str, Any]] = json.load(answer)["files"]
    return files


def pip_index() -> str:
    """The package index that pip uses."""
    asked = _printed("-m", "pip", "config", "get", "global.index-url")
    # Not imported here: pip changes how this process finds distutils.
    default = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    return os.environ.get("PIP_INDEX_URL") or asked or _printed("-c", default)


def _printed(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    """Command line."""
    index, wanted = pip_index(), pins(CONSTRAINTS.read_text())
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda pin: locked(pin, files_of(pin.name, index)), wanted)
        LOCK.write_text(HEADER + "".join(found))


if __name__ == "__main__":
    main()
