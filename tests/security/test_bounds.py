"""What is opened is a regular file, and costs bounded time and memory; nothing that it names is opened in turn."""

import os
import pickle
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

from commands.compare_evaluations import read_table
from commands.study_jobs import load_study
from common.archives import unpack_member
from common.errors import UserError
from common.files import parse_json, read_file
from common.isolation import IsolatedError, in_child
from common.plain_yaml import read_yaml
from datasets.formats import tube_labels
from datasets.formats.box_xml import read_box_file
from datasets.formats.coco import read_coco
from datasets.formats.dicom import read_dicom
from datasets.formats.images import read_image, read_mask
from datasets.formats.matlab import read_mat
from datasets.formats.tables import read_csv, read_text
from datasets.formats.tube_labels import read_tube_labels
from datasets.readers.imagenet9 import read_mapping
from engine.explanation.map_store import MapReader
from engine.run.checkpointing import read_checkpoint
from engine.run.command_line import load_config, parse_config
from explain.__main__ import read_names
from models.weights import checkpoints
from models.weights.checkpoints import read_state
from tests.datasets.test_tube_labels import asked, by_hand, text
from tests.engine.explanation.test_map_store import SOURCE, write

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "an image": ("a.png", read_image),
    "a mask": ("a.npy", read_mask),
    "a radiograph": ("a.dcm", read_dicom),
    "an index file": ("images.txt", read_text),
    "boxes": ("a.xml", read_box_file),
    "part annotations": ("train.json", read_coco),
    "a MATLAB file": ("a.mat", lambda path: read_mat(path, "X")),
    "a table of tubes, pickle": ("a.pkl", read_tube_labels),
    "a table of tubes, JSON": ("a.json", read_tube_labels),
    "a table of tubes, CSV": ("a.csv", read_tube_labels),
    "a class mapping": ("a.json", lambda path: read_mapping(path, 1000)),
    "class names": ("a.txt", read_names),
    "any YAML": ("a.yaml", read_yaml),
    "a study": ("a.yaml", load_study),
    "a config": ("a.yaml", lambda path: parse_config([f"--config={path}"])),
    "a config, as two words": ("a.yaml", lambda path: parse_config(["--config", str(path)])),
    "a run's config": ("config.yaml", load_config),
    "weights": ("a.pth", read_state),
    "weights, safetensors": ("a.safetensors", read_state),
    "a checkpoint": ("last.safetensors", read_checkpoint),
    "heat maps": ("maps.h5", lambda path: MapReader(path, SOURCE)),
    "predictions": ("predictions.csv", read_table),
    "an archive": ("a.zip", lambda path: unpack_member(path, "x", path.parent)),
}


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """End a reader that waits for a pipe."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("case", READERS)
def test_pipes_devices_and_folders_are_not_read(case: str, tmp_path: Path) -> None:
    name, read = READERS[case]
    makers: tuple[Callable[[Path], object], ...] = (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir)
    for number, make in enumerate(makers):
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        make(path)
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_file(tmp_path / "a", 4)
    os.truncate(tmp_path / "a", 1 << 40)  # takes no space
    for case in ("an index file", "boxes", "part annotations", "a table of tubes, pickle", "any YAML", "a config"):
        with pytest.raises(UserError, match="larger than"):
            READERS[case][1](tmp_path / "a")


def nested_keys() -> bytes:
    """Two to the power of 60 steps to compute a hash."""
    return by_hand(b"}", text("a"), b"\x85q\0000", b"h\0h\0\x86q\0000" * 60, b"h\0K\x01s.")


def long_numbers() -> bytes:
    """Six megabytes: 750,000 copies of a text of 4 kB each, more than a test process has unused in its heap."""
    make = by_hand(asked("numpy", "dtype"), text("U999"), b"\x89\x88\x87Rq\0")[2:]
    return (
        b"\x80\x04]"
        + make
        + b"0"
        + b"B"
        + (3996).to_bytes(4, "little")
        + "\U0001f600".encode("utf-32-le") * 999
        + b"q\x01"
        + b"0"
        + (asked("numpy._core.multiarray", "scalar") + b"q\x020" + b"(" + b"h\x02h\0h\x01\x86R" * 750_000 + b"e.")
    )


@pytest.mark.parametrize(
    ("make", "seconds", "reason"), [(nested_keys, 2, "SIGALRM"), (long_numbers, 60, "MemoryError")]
)
def test_a_table_of_tubes_that_never_ends(
    tmp_path: Path, make: Callable[[], bytes], seconds: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tube_labels, "SECONDS", seconds)
    monkeypatch.setattr(tube_labels, "MEMORY", 1 << 27)
    (tmp_path / "a.pkl").write_bytes(make())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=reason):
        read_tube_labels(tmp_path / "a.pkl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 17


def test_memory_of_a_child() -> None:
    assert in_child(lambda: np.zeros(1 << 20), memory=1 << 28).sum() == 0
    with pytest.raises(IsolatedError) as caught:
        in_child(lambda: np.zeros(1 << 30), memory=1 << 28)
    assert "MemoryError" in caught.value.kind


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["builtins bytearray", "torch.storage UntypedStorage", "torch FloatTensor"])
def test_weights_that_ask_for_memory(tmp_path: Path, name: str, zipped: bool) -> None:
    """A number in the file makes 2 GiB, whatever the file's size; torch's safe unpickler allows it."""
    path, marker = tmp_path / "w.pth", complex(1, 2)
    torch.save({"a": torch.zeros(2), "b": marker}, path, _use_new_zipfile_serialization=zipped)
    assert torch.load(path, weights_only=True)["b"] == marker
    data = path.read_bytes()
    called = b"c" + name.replace(" ", "\n").encode() + b"\nJ" + (1 << 31 - 1).to_bytes(4, "little") + b"\x85R"
    if zipped:
        path.write_bytes(data)
        _replace_in_archive(path, b"u.", b"X\1\0\0\0c" + called + b"u.")
    else:
        path.write_bytes(data.replace(b"u.", b"X\1\0\0\0c" + called + b"u.", 1))
    with pytest.raises(UserError, match=f"it asks for {name}, which no state dict needs"):
        read_state(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_take_for_ever(tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, a tuple of tuples, whose hash takes 2^60 steps in native code."""
    path = tmp_path / "w.pth"
    monkeypatch.setattr(checkpoints, "SECONDS", 1)
    torch.save({"a": torch.zeros(2), "b": complex(1, 2)}, path, _use_new_zipfile_serialization=zipped)
    key = b")" + b"q\xfah\xfa\x86" * 60
    if zipped:
        _replace_in_archive(path, b"u.", key + b"K\1u.")
    else:
        path.write_bytes(path.read_bytes().replace(b"u.", key + b"K\1u.", 1))
    with pytest.raises(UserError, match=r"not a readable weights file \(it takes longer than 1 seconds\)"):
        read_state(path)


def _replace_in_archive(path: Path, old: bytes, new: bytes) -> None:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data.replace(old, new) if name.endswith(".pkl") else data)


@pytest.mark.parametrize("zipped", [True, False])
def test_ordinary_weights_are_read(tmp_path: Path, zipped: bool) -> None:
    state = {"a": torch.arange(3.0), "b": torch.nn.Parameter(torch.ones(2)), "c": torch.zeros(1, dtype=torch.int64)}
    torch.save({"model": state}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert all(torch.equal(read_state(tmp_path / "w.pth")[name], tensor) for name, tensor in state.items())


def test_a_large_config_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("".join(f"key{i}: [1, 2, 3]\n" for i in range(50_000)))
    started = time.process_time()
    for read in (read_yaml, load_config):
        with pytest.raises(UserError, match="it has more than 131072 characters|larger than 524288 bytes"):
            read(tmp_path / "a.yaml")
    assert time.process_time() - started < 20, "the parser takes minutes"


def elsewhere(kind: str, file: h5py.File, folder: Path) -> None:
    """Move the maps of a file to another one."""
    name, dataset = "agcam/maps/predicted", file["agcam/maps/predicted"]
    shape, dtype, values = dataset.shape, dataset.dtype, dataset[()]
    del file[name]
    if kind == "external storage":
        values.tofile(folder / "secret")
        file.create_dataset(name, shape, dtype, external=[(str(folder / "secret"), 0, h5py.h5f.UNLIMITED)])
        return
    with h5py.File(folder / "other.h5", "w") as other:
        other.create_dataset("maps", data=values, chunks=(1, *shape[1:]))
    if kind == "an external link":
        file[name] = h5py.ExternalLink(str(folder / "other.h5"), "maps")
    elif kind == "a soft link":
        file[name] = h5py.SoftLink("/agcam/maps/label")
    else:
        layout = h5py.VirtualLayout(shape, dtype)
        layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "maps", shape)
        file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("kind", ["external storage", "an external link", "a soft link", "a virtual data set"])
def test_maps_that_are_stored_elsewhere(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "maps.h5")
    with h5py.File(path, "r+") as file:
        elsewhere(kind, file, tmp_path)
        assert file["agcam/maps/predicted"][()].any(), "HDF5 would read them"
    with pytest.raises(UserError, match=r"--maps: cannot read .*maps\.h5 \(agcam/maps/predicted is "):
        MapReader(path, SOURCE).read("agcam", "predicted", 0, 7)


@pytest.mark.parametrize("key", ["train", "data", "data.synthetic", "loss.weights", "config"])
def test_a_config_never_reads_another_file(tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("{train: {epochs: 77}}" if key == "config" else "{epochs: 77}")
    nested: Any = str(other)
    for name in reversed(key.split(".")):
        nested = {name: nested}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(nested))
    (tmp_path / "b.yaml").write_text(f"{key}: {other}")
    inline = (tmp_path / "b.yaml").read_text()
    flags = [[f"--config={tmp_path / name}"] for name in ("a.yaml", "b.yaml")] + [[f"--config={inline}"]]
    if key != "config":
        flags += [[f"--{key}={other}"], [f"--{key}", str(other)]]
    for given in flags:
        with pytest.raises(UserError, match=f"{key} is a group of keys|config: a config file cannot name another one"):
            parse_config(given)


def test_keys_that_stand_twice(tmp_path: Path) -> None:
    """Parsers take the last; a reader of the file may see the first."""
    with pytest.raises(ValueError, match="the key 'a' appears twice"):
        parse_json('{"b": {"a": 1, "c": 2, "a": 3}}')
    assert parse_json('{"a": {"a": 1}, "b": [{"a": 1}, {"a": 1}]}')["a"] == {"a": 1}
    tables: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "a.json": ('{"x": 1, "x": 0}', read_tube_labels),
        "b.json": ('{"0": 1, "0": 2}', lambda path: read_mapping(path, 1)),
        "c.json": ('{"images": [], "images": []}', read_coco),
        "d.yaml": ("title: a\ntitle: b", load_study),
        "e.yaml": ("train: {epochs: 3, epochs: 5}", lambda path: parse_config([f"--config={path}"])),
        "f.csv": ("a,b,a\n1,2,3\n", lambda path: list(read_csv(path, ("a", "b")))),
    }
    for name, (content, read) in tables.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=f"{name}.*appears twice|appears twice.*{name}"):
            read(tmp_path / name)


@pytest.mark.parametrize("seeds", ["'12'", "[1.5]", "[true]", "['1']", "3", "{1: 2}"])
def test_seeds_are_a_list_of_integers(tmp_path: Path, seeds: str) -> None:
    path, text = tmp_path / "s.yaml", "{title: a, config: c.yaml, rows: {r: {}}, "
    for key, name in ((f"seeds: {seeds}", "seeds"), (f"more_seeds: {{r: {seeds}}}", "more_seeds of r")):
        path.write_text(text + key + "}")
        with pytest.raises(UserError, match=f"{name} is not a list of int"):
            load_study(path)
    path.write_text(text + "vary: train.seed}")
    with pytest.raises(UserError, match="vary is not a list of str"):
        load_study(path)
    path.write_text(text + "seeds: [1, 2]}")
    assert load_study(path).seeds == (1, 2)


def test_pickles_of_tubes_are_still_read(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({f"id {i}": i % 2 for i in range(20_000)}))
    assert sum(read_tube_labels(tmp_path / "a.pkl").values()) == 10_000
