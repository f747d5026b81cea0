"""Read corrupted files of every kind, each kind in its own process, and print a table of the outcomes.

    python -m tests.fuzz.campaign --count 20000 --seed 100000

A process that dies or takes over `--limit` seconds is named with the seed of its last file.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from tests.fuzz.kind import Kind
from tests.fuzz.kinds import KINDS
from tests.fuzz.mutations import mutate


@dataclass
class ObjectiveOutput:
    """Of many files of a kind."""

    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    """Seconds."""
    memory: float = 0.0
    """The most that one file added to the process, MiB."""


def spoil_and_read(kind: Kind, seeds: Iterable[int], folder: Path) -> ObjectiveOutput:
    """Every file is read or refused in one line. Raises AssertionError, naming the seed, where it is not."""
    files, outcome = kind.files(), ObjectiveOutput()
    contents = [data for _, data in files]
    for seed in seeds:
        suffix, data = files[seed % len(files)]
        path = folder / f"file{suffix}"
        path.write_bytes(mutate(data, contents, seed))
        (folder / "seed").write_text(str(seed))
        started, before = time.perf_counter(), _memory()
        try:
            kind.read(path)
            outcome.read += 1
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000, f"seed {seed}: {str(error)!r}"
            outcome.refused += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        outcome.slowest = max(outcome.slowest, time.perf_counter() - started)
        outcome.memory = max(outcome.memory, _memory() - before)
    return outcome


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--limit", type=int, default=3600, metavar="SECONDS")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        found = spoil_and_read(KINDS[args.kinds[0]], range(args.seed, args.seed + args.count), args.folder)
        cells = (args.kinds[0], args.count, found.read, found.refused, f"{found.slowest:.2f}", f"{found.memory:.0f}")
        print("|", " | ".join(map(str, cells)), "|", flush=True)
        return
    print("| Kind | Files | Read | Refused | Slowest (s) | Most memory (MiB) |\n|---|--:|--:|--:|--:|--:|", flush=True)
    for kind in args.kinds:
        with tempfile.TemporaryDirectory() as folder:
            _apart(kind, args, Path(folder))


def _apart(kind: str, args: argparse.Namespace, folder: Path) -> None:
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.campaign", "--folder", str(folder)]
    command += ["--kinds", kind, "--count", str(args.count), "--seed", str(args.seed)]
    try:
        with (folder / "said").open("w+b") as said:
            done = subprocess.run(command, timeout=args.limit, stderr=said, env=os.environ | {"OMP_NUM_THREADS": "1"})
        end = f"ended with {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        end = f"took over {args.limit} s"
    if end:
        last = (folder / "said").read_text(errors="replace").strip().splitlines()[-3:]
        print(f"{kind}: {end} at seed {(folder / 'seed').read_text()}: {' / '.join(last)}", flush=True)


if __name__ == "__main__":
    main()
