"""Unpack untrusted archives: only regular files, and only below the given folder."""

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from common.errors import UserError
from common.files import check_regular

LARGEST = 1 << 31
"""Default limit on the unpacked size, bytes."""


def unpack_member(archive: Path, name: str, folder: Path, largest: int = LARGEST) -> Path:
    """Write one regular file of a zip archive into `folder`; return its path. Raises UserError naming the archive."""
    try:
        check_regular(archive)
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


def _broken(source: str, error: Exception) -> UserError:
    return UserError(f"{source} cannot be unpacked ({type(error).__name__}: {error}); download it again")
