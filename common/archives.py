"""Unpack untrusted archives: only regular files, and only below the given folder."""

import shutil
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

from common.errors import UserError

LARGEST = 1 << 31
"""Default limit on the unpacked size, bytes."""


def unpack_tar(stream: IO[bytes], folder: Path, source: str, largest: int = LARGEST) -> None:
    """Write the regular files of an uncompressed tar stream below `folder`; links are skipped.

    Raises UserError naming `source` for a path outside the folder, a device or pipe, a broken archive, or more than
    `largest` bytes in total; the files before that point have been written.
    """
    left = largest
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                target = _inside(folder, member.name, source)
                left -= member.size
                if left < 0:
                    raise UserError(f"{source} unpacks to more than {largest} bytes; get it from its publisher")
                content = archive.extractfile(member) if member.isreg() else None
                if content is not None:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with content, target.open("wb") as file:
                        shutil.copyfileobj(content, file)
                elif not (member.isdir() or member.islnk() or member.issym()):
                    raise UserError(f"{source} contains {member.name!r}, a device or pipe; get it from its publisher")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise error if isinstance(error, UserError) else _broken(source, error) from None


def unpack_member(archive: Path, name: str, folder: Path, largest: int = LARGEST) -> Path:
    """Write one regular file of a zip archive into `folder`; return its path. Raises UserError naming the archive."""
    try:
        with zipfile.ZipFile(archive) as content:
            if name not in content.namelist():
                raise UserError(f"{archive.name} has no {name}: not the release this script supports")
            member = content.getinfo(name)
            if stat.S_ISLNK(member.external_attr >> 16) or member.file_size > largest:
                problem = f"{name} is a link, or larger than {largest} bytes"
                raise UserError(f"{archive.name}: {problem}; get it from its publisher")
            target = folder / PurePosixPath(name).name
            with content.open(member) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
            return target
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise error if isinstance(error, UserError) else _broken(archive.name, error) from None


def _inside(folder: Path, name: str, source: str) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{source} contains {name!r}, which leaves its folder; get it from its publisher")
    return folder / path


def _broken(source: str, error: Exception) -> UserError:
    return UserError(f"{source} cannot be unpacked ({type(error).__name__}: {error}); download it again")
