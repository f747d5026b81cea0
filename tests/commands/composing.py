"""Calls of commands.prepare_waterbirds."""

from pathlib import Path

from commands import prepare_waterbirds


def compose(out: Path, *flags: object) -> Path:
    prepare_waterbirds.main([str(out), *map(str, flags)])
    return out


def listed(sources: Path, *flags: object) -> tuple[object, ...]:
    return ("--objects", sources / "objects.csv", "--backgrounds", sources / "backgrounds.csv", "--size", 32, *flags)


def in_folders(folders: Path, *flags: object) -> tuple[object, ...]:
    given = ("--objects", "objects", "--labels", "labels.txt", "--land", "land", "--water", "water")
    return (*(each if each.startswith("--") else folders / each for each in given), "--size", 32, *flags)
