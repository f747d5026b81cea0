"""The files that a run consists of, which alone `--overwrite` deletes; none may lead out of the run folder."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from common.errors import UserError
from engine.run.atomic_files import LEFTOVERS
from engine.run.lock import LOCK

OWN = (
    LOCK, "config.yaml", "metrics.jsonl", "curves.png", "results.json", "predictions.csv", "lives.json",
    "checkpoints/last.safetensors", "checkpoints/previous.safetensors", "checkpoints/broken.safetensors",
    "checkpoints/epoch_*.safetensors", "best/config.json", "best/model.safetensors", "sheets/epoch_*.png",
    "evaluation/*/results.json", "evaluation/*/predictions.csv", "evaluation/*/report.html", "evaluation/*/*sheet.png",
    "evaluation/*/failures.png", "evaluation/*/curves.png", "evaluation/*/metrics.*", "evaluation/*/table.*",
    "evaluation/*/methods.*", "evaluation/*/per_image/*.csv", "part_thresholds/*.json",
    "export/model.*", "tensorboard/events.out.tfevents.*",
)  # fmt: skip
"""Patterns of the files that training and the commands with a default folder in the run write."""
OWN_FOLDERS = ("checkpoints", "best", "sheets", "evaluation", "part_thresholds", "export", "tensorboard")
LOGS = ("wandb", "submitit")
"""Folders of other programs, which keep the logs of former runs too: neither deleted nor a reason to refuse."""
PROJECT = Path(__file__).parents[2]


def delete_run(out: Path) -> None:
    """Delete a run's files, but its lock. Raises UserError, and deletes nothing, if the folder holds any other file.

    Also for the root, the home, the project and the current folder, and those that contain one of them.
    """
    here = out.resolve()
    for place in (Path.home(), PROJECT, Path.cwd()):
        if here == place.resolve() or here in place.resolve().parents:
            raise UserError(f"--overwrite: {here} is or contains {place}; choose another --out")
    files, folders = [], []
    for path in _below(out, LOGS):
        name = path.relative_to(out)
        if path.is_dir() and not path.is_symlink():
            folders.append(path)
        elif not _is_own(name):
            raise UserError(
                f"--overwrite: {out} also holds {name}, which no run writes; move it away, or choose another --out"
            )
        elif name != Path(LOCK):
            files.append(path)
    for path in files:
        path.unlink()
    for path in reversed(folders):
        path.rmdir()


def check_links(run: Path) -> None:
    """Raise UserError for a link in place of a folder of the run: its files would be written elsewhere."""
    for name in OWN_FOLDERS:
        for path in (run / name, *sorted(run.glob(f"{name}/*"))):
            if path.is_symlink() and (path == run / name or path.is_dir()):
                raise UserError(f"{path} is a link to another folder; a run writes into its own folder only, remove it")


def _below(folder: Path, but: Sequence[str] = ()) -> Iterator[Path]:
    """Everything below a folder `but` these names in it, a folder before its content; links are not followed."""
    for path in sorted(folder.iterdir()):
        if path.name not in but:
            yield path
            if path.is_dir() and not path.is_symlink():
                yield from _below(path)


def _is_own(name: Path) -> bool:
    """Each part of the path matches: `*` is one name."""
    if any(fnmatchcase(name.name, pattern) for pattern in LEFTOVERS):
        return True
    return any(
        len(parts) == len(name.parts) and all(map(fnmatchcase, name.parts, parts))
        for parts in (pattern.split("/") for pattern in OWN)
    )
