"""Every command with spoilt arguments and spoilt input: it works, or refuses in one line and leaves nothing behind.

    python -m tests.fuzz.command_lines --count 200 --seed 1000

Commands run in this process, in a copy of a small folder `in` with their input, and write to `out`.
"""

import argparse
import contextlib
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import evaluate
import prepare_siim_acr
import study
import train
from commands import (
    compare_evaluations,
    convert_checkpoint,
    export,
    imagenet9,
    join_methods,
    part_thresholds,
    prepare_waterbirds,
    push_to_hub,
)
from explain import __main__ as explain_main
from slurm import submit
from tests.fuzz.command_input import MEASURE, TINY, call, make_input
from tests.fuzz.corpus import FILES, VALUES
from tests.fuzz.mutations import mutate
from tests.tiny import flags

RUN = "run/config.yaml run/best/config.json run/best/model.safetensors "
DATA = "data/index.csv data/images/0.png data/masks/1.png "
COMMANDS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "train": (train.main, "--config in/run/config.yaml --out out", f"run/config.yaml {DATA}"),
    "resume": (
        train.main, "--config in/run/config.yaml --out in/run --train.epochs=2 --resume --resume.allow-change",
        "run/checkpoints/last.safetensors run/metrics.jsonl run/best/config.json run/results.json",
    ),
    "evaluate": (
        evaluate.main, "--run in/run --out out --thresholds in/thresholds.json", f"{RUN} {DATA} thresholds.json"
    ),
    "evaluate --method": (evaluate.main, f"{MEASURE} --maps in/maps.h5", f"{RUN} maps.h5 data/index.csv"),
    "study": (study.main, "in/study.yaml --out out --no-sheets", "study.yaml base.yaml"),
    "finished study": (
        study.main, "in/study.yaml --out in/runs --publish out",
        "runs/a-seed0/results.json runs/a-seed0/config.yaml runs/a-seed0/predictions.csv runs/a-seed0/metrics.jsonl",
    ),
    "prepare_siim_acr": (
        prepare_siim_acr.main, "--pkl_file_path in/siim.tubes --root_dir in/siim --out out --workers 1",
        "siim.tubes siim/train-rle.csv",
    ),
    "explain": (
        explain_main.main, "in/data/images/0.png --run in/run --method rollout --out out/a.png",
        f"{RUN} data/images/0.png",
    ),
    "explain --model": (
        explain_main.main,
        "in/data/images --model timm/vit_nano_patch8 --weights none --size 32 32 --class-names in/names.txt "
        "--method rollout --save-maps out/maps.h5 --out out/a.png",
        "names.txt data/images/1.png",
    ),
    "compare_evaluations": (
        compare_evaluations.main, "in/run/predictions.csv in/other.csv --out out --resamples 20",
        "run/predictions.csv other.csv",
    ),
    "convert_checkpoint": (
        convert_checkpoint.main, "in/published.pt --backbone vit_t_dino --to out", "published.pt"
    ),
    "export": (export.main, "in/run --format torch_export --to out/model.pt2", RUN),
    "imagenet9": (imagenet9.main, "--run in/run --data.root in/data --out out", RUN),
    "join_methods": (
        join_methods.main, "in/measured in/of_lrp --out out",
        "measured/results.json measured/per_image/rollout.csv of_lrp/results.json",
    ),
    "part_thresholds": (part_thresholds.main, "--run in/run --out out", f"{RUN} {DATA}"),
    "prepare_waterbirds": (
        prepare_waterbirds.main,
        "out --objects in/objects.csv --masks in/masks --backgrounds in/places.csv --size 32",
        "objects.csv places.csv data/images/0.png masks/data/images/1.png",
    ),
    "push_to_hub": (push_to_hub.main, "in/run --folder out", f"{RUN} run/results.json"),
    "slurm.submit": (
        submit.main, "--time 1:00:00 --gpus 0 -- --config in/run/config.yaml --out out", "run/config.yaml"
    ),
}  # fmt: skip
"""Main function, arguments that work in the folder of `make_input`, and files below `in` that are read."""
KEPT = {"resume": "in/run", "finished study": "in/runs"}
"""Where a command may change files of its input."""
EXTRA = [flag.partition("=")[0] for flag in flags(TINY)] + [
    "--out", "--overwrite", "--resume", "--limit", "--metrics", "--method", "--split", "--set", "--seeds", "--rows",
    "--job", "--size", "--target", "--stage", "--checkpoint", "--precision", "--plugin", "--config", "--data",
    "--optim", "--optim.lr", "--loss.weights", "--train.trackers", "--model.stage_2_path", "--data.mean",
    "--data.std", "--help",
]  # fmt: skip


def spoilt_arguments(arguments: Sequence[str], rng: random.Random) -> list[str]:
    """The arguments with one to three of them replaced, left out, repeated or added."""
    words = list(arguments)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, kind = (
            rng.randrange(len(words) + 1),
            rng.choice(("value", "value", "drop", "repeat", "flag", "flag", "joined")),
        )
        if kind == "value":
            words[at : at + 1] = [rng.choice(VALUES)]
        elif kind == "drop":
            words[at : at + 1] = []
        elif kind == "repeat":
            words[at:at] = words[at : at + 1]
        elif kind == "flag":
            words += [rng.choice(EXTRA), rng.choice(VALUES)]
        else:
            words.append(f"{rng.choice(EXTRA)}={rng.choice(VALUES)}")
    return words


TEXT = (".yaml", ".json", ".jsonl", ".csv", ".txt")


def spoil_file(path: Path, rng: random.Random) -> None:
    """Change bytes of the file, or a value in it, or replace it by another, a folder, nothing or a link to itself."""
    kinds = ["bytes", "bytes", "bytes", "corpus", "corpus", "folder", "nothing", "link"]
    kind = rng.choice(kinds + ["value"] * 8 * (path.suffix in TEXT))
    content = path.read_bytes()
    path.unlink()
    if kind == "value":
        at = rng.choice([*re.finditer(rb"[^\s,:{}\[\]\"]+", content)])
        value = rng.choice(VALUES).encode(errors="surrogateescape")
        path.write_bytes(content[: at.start()] + value + content[at.end() :])
    elif kind == "bytes":
        path.write_bytes(mutate(content, [*FILES.values()][1:], rng.randrange(2**32)))
    elif kind == "corpus":
        path.write_bytes(rng.choice([*FILES.values()]))
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(path.name)


def attempt(name: str, source: Path, seed: int) -> int:
    """Run a command with spoilt arguments (even seeds) or a spoilt file; returns its exit code, 0 or 2.

    Raises AssertionError for anything else.
    """
    (_, line, reads), rng = COMMANDS[name], random.Random(f"{name} {seed}")
    arguments, what = line.split(), "arguments"
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "box" / "box"
        shutil.copytree(source, folder)
        if seed % 2 == 0:
            arguments = spoilt_arguments(arguments, rng)
        else:
            what = rng.choice(reads.split())
            spoil_file(folder / "in" / what, rng)
        return run(name, arguments, folder, f"{name}, seed {seed}, {what}: {arguments}")


def run(name: str, arguments: list[str], folder: Path, told: str) -> int:
    """Run a command in `folder`; returns its exit code, 0 or 2. Raises AssertionError with `told` for anything else."""
    before = contents(folder)
    with contextlib.chdir(folder):
        code, error, said = call(COMMANDS[name][0], arguments)
    assert error is None, f"{told}\n{error}"
    assert code in (0, 2), f"{told}\nexit code {code}: {said}"
    if code == 2:
        lines = said.splitlines()
        assert lines and lines[-1].startswith("error: ") and said.count("error: ") >= 1, f"{told}\n{said}"
        assert "Traceback" not in said, f"{told}\n{said}"
    after = contents(folder)
    kept = KEPT.get(name, "-")
    changed = [path for path, content in before.items() if not path.startswith(kept) and after.get(path) != content]
    assert not changed, f"{told}\nchanged: {changed}"
    left = [path for path in after.keys() - before.keys() if path.endswith((".tmp", ".partial"))]
    assert not left, f"{told}\nleft behind: {left}"
    return code


def contents(folder: Path) -> dict[str, bytes]:
    """Of every regular file below a folder, by its relative path."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_input(Path(folder))
        for name in args.commands:
            codes = [attempt_told(name, Path(folder), seed) for seed in range(args.seed, args.seed + args.count)]
            print(f"{name}: {codes.count(0)} worked, {codes.count(2)} refused, {codes.count(1)} failed", flush=True)


def attempt_told(name: str, source: Path, seed: int) -> int:
    """As `attempt`, but prints what failed and returns 1."""
    try:
        return attempt(name, source, seed)
    except AssertionError as error:
        print(str(error)[-3000:], flush=True)
        return 1


if __name__ == "__main__":
    main()
