"""Maps on disk: exact to float16, no partial files, no foreign files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch
from torch import Tensor

from common.errors import UserError
from engine.explanation.map_store import MapProvenance, MapReader, MapWriter, Target

SOURCE = MapProvenance({"weights": "abc", "stage": 2, "image size": (32, 48)}, {"rollout": {"ratio": 0.9}, "agcam": {}})
PATHS = [f"bird {i}.jpg" for i in range(7)]
PREDICTED = torch.tensor([0, 1, 2, 1, 0, 2, 1])
LABELS = torch.tensor([0, 1, 2, 2, 0, 2, 1])
TARGETS: tuple[Target, ...] = ("predicted", "label")
EACH = [(name, target) for name in SOURCE.methods for target in TARGETS]


def classes(rows: slice = slice(None)) -> dict[Target, Tensor]:
    return {"predicted": PREDICTED[rows], "label": LABELS[rows]}


def maps_of(method: str, target: Target, size: tuple[int, int] = (4, 6)) -> Tensor:
    """[7, h, w] of very different scales, both signs."""
    generator = torch.Generator().manual_seed(len(method) + len(target))
    return torch.randn(7, *size, generator=generator) * 10.0 ** torch.arange(-20, 15, 5)[:, None, None]


def write(path: Path, batch: int = 3, source: MapProvenance = SOURCE, make: Callable[..., Tensor] = maps_of) -> Path:
    with MapWriter(path, source) as writer:
        for start in range(0, 7, batch):
            rows = slice(start, start + batch)
            writer.add_images(PATHS[rows], classes(rows))
            for name, target in EACH:
                writer.add(name, target, make(name, target)[rows])
    return path


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_maps_survive_a_round_trip(batch: int, tmp_path: Path) -> None:
    reader = MapReader(write(tmp_path / "new" / "folder" / "maps.h5", batch), SOURCE)
    for name, target in EACH:
        maps, scale = maps_of(name, target), maps_of(name, target).abs().amax((1, 2))[:, None, None]
        read = torch.cat([reader.read(name, target, start, 2) for start in range(0, 7, 2)])
        assert read.dtype == torch.float32 and read.shape == maps.shape
        assert ((read - maps).abs() / scale).max() <= 2**-11  # half a unit in float16's last place below 1
    reader.check(0, PATHS[:4], classes(slice(4)))
    reader.check(4, PATHS[4:], classes(slice(4, 7)))
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["maps.h5"]


def test_maps_at_pixels_and_of_other_types(tmp_path: Path) -> None:
    def make(name: str, target: Target) -> Tensor:
        return maps_of(name, target, (200, 160)).to(torch.float64 if name == "agcam" else torch.float32)

    reader = MapReader(write(tmp_path / "maps.h5", make=make), SOURCE)
    for name, target in EACH:
        scale = make(name, target).abs().amax((1, 2), keepdim=True)
        assert ((reader.read(name, target, 0, 7) - make(name, target)).abs() / scale).max() <= 2**-11


def test_size_of_a_map_on_disk(tmp_path: Path) -> None:
    with MapWriter(tmp_path / "maps.h5", SOURCE) as writer:
        for start in range(0, 2000, 50):
            writer.add("rollout", "predicted", torch.rand(50, 14, 14, generator=torch.Generator().manual_seed(start)))
    assert (tmp_path / "maps.h5").stat().st_size < 2000 * 500


def test_nan_constant_and_zero_maps_are_kept(tmp_path: Path) -> None:
    odd = torch.rand(7, 4, 6)
    odd[0, 1, 2], odd[1], odd[2], odd[3], odd[4, 0, 0] = torch.nan, 0.3, 0.0, -1e-30, torch.inf
    reader = MapReader(write(tmp_path / "maps.h5", make=lambda *_: odd), SOURCE)
    read = reader.read("agcam", "label", 0, 7)
    assert not read[[0, 4]].flatten(1).isfinite().all(1).any()
    assert torch.equal(read[1:4], odd[1:4])
    assert read[5:].isfinite().all()


@pytest.mark.parametrize("stop", [ValueError("a metric failed"), KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize("old", [None, b"an older file"])
def test_failed_writer_leaves_only_existing_files(stop: BaseException, old: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "maps.h5"
    if old:
        path.write_bytes(old)
    with pytest.raises(type(stop)), MapWriter(path, SOURCE) as writer:
        writer.add("rollout", "label", torch.rand(3, 4, 6))
        raise stop
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == ([("maps.h5", old)] if old else [])


def test_a_new_file_replaces_an_old_one(tmp_path: Path) -> None:
    (tmp_path / "maps.h5").write_bytes(b"an older file")
    MapReader(write(tmp_path / "maps.h5"), SOURCE).check(0, PATHS, classes())


def test_write_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for path, why in ((tmp_path / "file" / "maps.h5", "cannot write"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=f"--save-maps: .*{why}"), MapWriter(path, SOURCE):
            pytest.fail("opened")
    with (
        pytest.raises(UserError, match="--save-maps: cannot write .*No space left"),
        MapWriter(tmp_path / "maps.h5", SOURCE) as writer,
    ):
        monkeypatch.setattr(h5py.Group, "create_dataset", full_disk)
        writer.add("rollout", "label", torch.rand(3, 4, 6))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (replace(SOURCE, inputs={**SOURCE.inputs, "weights": "def"}), "weights abc, not def"),
        (replace(SOURCE, inputs={**SOURCE.inputs, "stage": 1}), "stage 2, not 1"),
        (
            replace(SOURCE, inputs={**SOURCE.inputs, "image size": (32, 32)}),
            r"image size \[32, 48\], not \[32, 32\]",
        ),
        (replace(SOURCE, inputs={**SOURCE.inputs, "split": "val"}), "split None, not val"),
        (replace(SOURCE, methods={"lrp": {}}), "holds rollout, agcam, not lrp"),
        (replace(SOURCE, methods={"rollout": {"ratio": 0.5}}), "rollout with the options .*0.9.* not .*0.5"),
    ],
)
def test_maps_with_another_provenance_are_refused(source: MapProvenance, named: str, tmp_path: Path) -> None:
    path = write(tmp_path / "maps.h5")
    with pytest.raises(UserError, match=named) as refused:
        MapReader(path, source)
    assert str(refused.value).startswith(f"--maps: {path}") and "\n" not in str(refused.value)
    MapReader(path, replace(SOURCE, methods={"agcam": {}}))  # a subset of its methods is enough


@pytest.mark.parametrize(
    ("start", "paths", "changed", "named"),
    [
        (0, ["other.jpg", *PATHS[1:3]], {}, "other images"),
        (1, PATHS[:3], {}, "other images"),
        (5, [*PATHS[5:], "one more.jpg"], {}, "other images"),
        (0, PATHS[:3], {"predicted": torch.tensor([0, 1, 1])}, "other predicted classes"),
        (0, PATHS[:3], {"label": torch.tensor([0, 1, 1])}, "other labels"),
    ],
)
def test_other_images_predictions_and_labels_are_refused(
    start: int, paths: list[str], changed: dict[Target, Tensor], named: str, tmp_path: Path
) -> None:
    path, now = write(tmp_path / "maps.h5"), classes(slice(start, start + 3)) | changed
    reader = MapReader(path, SOURCE)
    with pytest.raises(UserError, match=f"--maps: .*{named}") as refused:
        reader.check(start, paths, now)
    assert "\n" not in str(refused.value)
    if "label" in changed:  # of which files of earlier versions know nothing
        reader.file.close()
        with h5py.File(path, "a") as file:
            del file["label"]
        MapReader(path, SOURCE).check(start, paths, now)


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["maps"] = [1.0]


def cut_short(path: Path) -> None:
    content = write(path).read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda path: None, "cannot read"),
        (Path.mkdir, "cannot read"),
        (lambda path: path.write_text("no HDF5"), "cannot read"),
        (lambda path: path.write_text(""), "cannot read"),
        (foreign, "was not written by --save-maps"),
        (cut_short, "cannot read"),
    ],
    ids=["missing", "folder", "text", "empty", "foreign", "cut short"],
)
def test_invalid_files(make: Callable[[Path], object], named: str, tmp_path: Path) -> None:
    make(tmp_path / "maps.h5")
    with pytest.raises(UserError, match=f"--maps: .*{named}") as refused:
        MapReader(tmp_path / "maps.h5", SOURCE)
    assert "\n" not in str(refused.value)


def test_damaged_chunks_are_detected(tmp_path: Path) -> None:
    path = write(tmp_path / "maps.h5")
    with h5py.File(path) as file:
        chunk = file["agcam/maps/label"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    with pytest.raises(UserError, match="--maps: cannot read"):
        MapReader(path, SOURCE).read("agcam", "label", 0, 7)
