"""`python -m explain` as a user runs it: what it prints, what it draws, and every mistake in one line."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from datasets.config import DataConfig, SyntheticConfig
from datasets.formats.images import read_image
from datasets.synthetic.dataset import SyntheticBirds
from engine.run.folder import open_run
from explain import __main__ as cli
from explain import explain
from explain import sheet as drawing
from explain.loading import load_any, load_run
from tests.tiny import tiny_config, tiny_model

ROOT = Path(__file__).parents[2]
NANO = "--model=timm/vit_nano_patch8"
FAST = (NANO, "--weights=none", "--size", "32", "48", "--method", "rollout")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two birds, one of them lying on its side with an EXIF tag that says so, and a text file."""
    folder = tmp_path_factory.mktemp("photos")
    birds = SyntheticBirds(DataConfig(image_size=64, synthetic=SyntheticConfig(test_images=2)), "test")
    for index, pixels in enumerate(birds.images):
        image = Image.fromarray(pixels)
        image.save(folder / f"bird{index}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90).save(folder / "turned.png", exif=exif)
    (folder / "note.jpg").write_text("no image")
    (folder / "names.txt").write_text("\n".join(["Golden retriever", "tabby cat", "", *map(str, range(3, 1000))]))
    (folder / "few.txt").write_text("one\ntwo")
    (folder / "old.npy").write_bytes(b"old")
    (folder / "empty").mkdir()
    (folder / "link.png").symlink_to(folder / "bird0.png")
    return folder


@pytest.fixture(scope="module", params=["two_stage", "vit"])
def run(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as train.py leaves it, untrained, of a 32 px model with an unusual normalisation."""
    out = tmp_path_factory.mktemp("runs") / request.param
    config = tiny_config(out, {"model.name": request.param, "data.mean": [0.4, 0.5, 0.6], "optim.stage_1_epochs": 0})
    model = tiny_model(config)
    open_run(config, model)
    save_file(model.state_dict(), out / "best" / "model.safetensors")
    return out


@pytest.fixture
def sheet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Runs the command and returns what was drawn: columns, row titles, labels of the legend, notes."""
    drawn: list[Any] = []
    real_sheet = drawing.contact_sheet

    def spy(columns: Any, titles: Any, path: Path, legend: Any, notes: Any, heat: bool) -> Path:
        drawn[:] = [columns, titles, [entry.label for entry in legend], notes]
        return real_sheet(columns, titles, path, legend=legend, notes=notes, heat=heat)

    monkeypatch.setattr(drawing, "contact_sheet", spy)

    def call(*arguments: Any) -> Any:
        cli.main([str(a) for a in arguments])
        return list(drawn)

    yield call


def test_an_image_and_a_line_for_each_photo(photos: Path, tmp_path: Path, sheet: Any, capsys: Any) -> None:
    out = tmp_path / "new" / "sheet.png"
    columns, titles, legend, below = sheet(
        photos / "bird0.png", photos / "bird1.png", *FAST, "input_x_gradient", "--out", out
    )
    lines = capsys.readouterr().out.splitlines()
    assert titles == ["image", "rollout", "input x gradient"] and not legend
    assert [column.heading for column in columns] == ["bird0.png", "bird1.png"]
    assert [line.split("  ")[2] for line in lines[:2]] == [str(photos / "bird0.png"), str(photos / "bird1.png")]
    assert all(line.startswith("class ") and 0 < float(line.split("  ")[1]) < 1 for line in lines[:2])
    shown = [column.caption.rsplit(" ", 1)[0] for column in columns]
    assert shown == [f"predicted: {line.split('  ')[0]}" for line in lines[:2]]
    assert {tile.shape for column in columns for tile in column.tiles} == {(252, 378, 3)}
    assert lines[2].startswith("input: ") and lines[3:] == [f"look at {out}"]
    assert f"Input: {lines[2].removeprefix('input: ')}." in below and "input x gradient: square root" in " ".join(below)
    assert Image.open(out).format == "PNG" and [path.name for path in out.parent.iterdir()] == ["sheet.png"]


def test_several_targets_side_by_side(photos: Path, tmp_path: Path, sheet: Any) -> None:
    torch.manual_seed(0)  # with other weights the maps of two classes may both be blank
    columns, titles, _, below = sheet(
        photos / "bird0.png", *FAST, "gradcam", "--target", "tabby cat", "7", "GOLDEN RETRIEVER",
        "--class-names", photos / "names.txt", "--out", tmp_path / "sheet.png",
    )  # fmt: skip
    lines = [column.caption.split("\n") for column in columns]
    assert [line[0].rsplit(" ", 1)[0] for line in lines] == [
        "explained: tabby cat", "explained: 7", "explained: Golden retriever"
    ]  # fmt: skip
    assert len({line[1] for line in lines}) == 1 and lines[0][1].startswith("predicted: ")
    assert "(any class): the map does not depend on the class." in below
    assert titles == ["image", "rollout\n(any class)", "gradcam"]
    image, rollout, gradcam = zip(*(column.tiles for column in columns), strict=True)
    assert np.array_equal(image[0], image[1]) and np.array_equal(rollout[0], rollout[2])
    assert not np.array_equal(gradcam[0], gradcam[1]) and not np.array_equal(gradcam[0], gradcam[2])


def test_a_run_is_shown_with_its_own_input(run: Path, photos: Path, tmp_path: Path, sheet: Any, capsys: Any) -> None:
    columns, titles, legend, below = sheet(
        photos / "bird0.png", "--run", run, "--method", "rollout", "--out", tmp_path / "sheet.png"
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    two_stage = run.name == "two_stage"
    parts = ["parts", "what stage 2\nsees", "foreground"] if two_stage else []
    assert titles == ["image", *parts, "rollout"]
    assert legend == (["part 0", "part 1", "part 2", "hidden from stage 2"] if two_stage else [])
    classifier = load_run(run)
    assert (classifier.size, classifier.num_classes, classifier.mean) == ((32, 32), 2, (0.4, 0.5, 0.6))
    image = classifier.preprocess(read_image(photos / "bird0.png"))
    with torch.no_grad():
        probability = classifier.model(image[None]).logits.softmax(1)[0]
    best = int(probability.argmax())
    name = ("checked", "striped")[best]  # the names of its data set
    assert lines[0] == f"{name}  {probability[best]:.3f}  {photos / 'bird0.png'}"
    assert columns[0].caption == f"predicted: {name} {float(probability[best]):.1%}"
    view = "data.evaluation=center_crop, data.interpolation=bilinear, data.crop=1.0"
    assert f"{view}; 32 x 32 pixels; mean 0.4 0.5 0.6" in lines[1] and lines[1][7:] in below[-1]


def test_stages_of_a_two_stage_run_differ(run: Path, photos: Path, tmp_path: Path, sheet: Any) -> None:
    if run.name == "vit":
        pytest.skip("one stage")
    flags = (photos / "bird0.png", "--run", run, "--method", "gradcam", "--target", "0", "--out", tmp_path / "a.png")
    first, second = (sheet(*flags, "--stage", stage)[0][0].tiles for stage in (1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first[:4], second[:4], strict=True))
    assert not np.array_equal(first[4], second[4])


def test_options_reach_the_methods_that_have_them(photos: Path, tmp_path: Path, sheet: Any) -> None:
    def tiles(*options: str) -> Any:
        flags = (photos / "bird0.png", *FAST, "gradcam", "--target", "3", "--out", tmp_path / "sheet.png")
        torch.manual_seed(0)
        return sheet(*flags, *options)[0][0].tiles[1:]

    plain, fused = tiles(), tiles("--head-fusion", "max", "--discard-ratio", "0.9")
    assert not np.array_equal(plain[0], fused[0]) and np.array_equal(plain[1], fused[1])
    signed = tiles("--relu=false", "--layer", "-2")
    assert np.array_equal(plain[0], signed[0]) and not np.array_equal(plain[1], signed[1])


def test_images_are_turned_as_their_tag_asks(photos: Path) -> None:
    classifier = load_any("timm/vit_nano_patch8", "none", (64, 64))
    upright, turned = (classifier.preprocess(read_image(photos / name)) for name in ("bird1.png", "turned.png"))
    assert torch.equal(upright, turned)


def test_weights_from_a_file_bring_their_classes_and_fit_the_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = load_any("timm/vit_tiny_patch16_224", "none").model
    state = source.state_dict() | {"head.weight": torch.randn(7, 192), "head.bias": torch.randn(7)}
    save_file(state, tmp_path / "vit.safetensors")
    fitted = load_any("timm/vit_tiny_patch16_224", str(tmp_path / "vit.safetensors"), (96, 64))
    assert fitted.num_classes == 7 and fitted.size == (96, 64) and fitted.mean == (0.5, 0.5, 0.5)
    assert torch.equal(fitted.model.state_dict()["blocks.3.mlp.fc1.weight"], state["blocks.3.mlp.fc1.weight"])
    assert explain(fitted.model, torch.randn(1, 3, 96, 64)).shape == (1, 6, 4)


def test_an_empty_map_is_reported(photos: Path, tmp_path: Path, sheet: Any, capsys: Any) -> None:
    sheet(photos / "bird0.png", *FAST, "--discard-ratio", "1", "--target", "4", "--out", tmp_path / "sheet.png")
    assert capsys.readouterr().err == f"note: rollout gives {photos / 'bird0.png'} an empty map for class 4\n"


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no image": ([], "IMAGE"),
    "unknown flag": (["bird0.png", "--modell", "x"], "--modell"),
    "missing image": (["nowhere.jpg", *FAST], "nowhere.jpg: no such file"),
    "broken image": (["note.jpg", *FAST], "note.jpg: not an image"),
    "unknown method": (["bird0.png", *FAST, "rolout"], "did you mean 'rollout'?"),
    "unknown model": (["bird0.png", "--model=timm/vit_smal_patch16_224"], "vit_small_patch16_224"),
    "no vit": (["bird0.png", "--model=timm/resnet18", "--weights=none"], "a ResNet is not a ViT"),
    "no such tag": (["bird0.png", "--model=timm/vit_small_patch16_224.tag", "--weights=none"], "--model"),
    "no weights to be had": (["bird0.png", NANO], "--weights FILE or none"),
    "a folder as model": (["bird0.png", "--model=runs/x"], "--run DIR"),
    "no run": (["bird0.png", "--run=."], "--run: . is not a run of train.py"),
    "missing weights": (["bird0.png", NANO, "--weights=nowhere.pt"], "--weights: no such file nowhere.pt"),
    "size and patch": (["bird0.png", NANO, "--weights=none", "--size", "36", "36"], "--size: 36 36"),
    "size of a run": (["bird0.png", "--run=x", "--size", "32", "32"], "--size goes with --model"),
    "normalisation of a run": (["bird0.png", "--run=x", "--mean", ".5", ".5", ".5"], "--mean goes with --model"),
    "no spread": (["bird0.png", *FAST, "--std", "1", "1", "0"], "--std: 1.0 1.0 0.0"),
    "all and another": (["bird0.png", *FAST, "all"], "--method: all includes every method; leave out rollout"),
    "run and model": (["bird0.png", "--run=x", NANO], "not allowed with"),
    "no classifier": (["bird0.png", "--model=timm/vit_small_patch14_dinov2", "--weights=none"], "no classifier"),
    "target out of range": (["bird0.png", *FAST, "--target", "1000"], "--target: 1000; the model has classes 0 to 999"),
    "misspelt target": (["bird0.png", *FAST, "--target", "goldn retriver", "--class-names=names.txt"], "'Golden ret"),
    "part of a name": (["bird0.png", *FAST, "--target", "cat", "--class-names=names.txt"], "nearest: 'tabby cat'"),
    "name without names": (["bird0.png", *FAST, "--target", "cat"], "--class-names"),
    "too few names": (["bird0.png", *FAST, "--class-names=few.txt"], "few.txt has 2 lines; the model has 1000 classes"),
    "no names": (["bird0.png", *FAST, "--class-names=nowhere.txt"], "nowhere.txt"),
    "option of no chosen method": (["bird0.png", *FAST, "--steps", "3"], "--steps: none of the chosen methods"),
    "bad option": (["bird0.png", *FAST, "--head-fusion", "mx"], "--head-fusion: 'mx' does not fit; rollout takes mean"),
    "no number": (["bird0.png", *FAST, "--discard-ratio", "much"], "rollout takes float"),
    "out of range": (["bird0.png", *FAST, "--discard-ratio", "2"], "--discard-ratio: 2"),
    "no such block": (["bird0.png", *FAST, "gradcam", "--layer", "9"], "--layer: 9"),
    "no png": (["bird0.png", *FAST, "--out=sheet.jpg"], "--out: sheet.jpg must end in .png"),
    "empty folder": (["empty", *FAST], "the folder empty has no images"),
    "onto an input": (["bird0.png", *FAST, "--out=bird0.png"], "--out: bird0.png is one of the images"),
    "onto an input, forced": (["bird0.png", *FAST, "--out=bird0.png", "--overwrite"], "is one of the images"),
    "onto an input of a folder": ([".", *FAST, "--out=bird1.png", "--overwrite"], "is one of the images"),
    "onto a link to an input": (["bird0.png", *FAST, "--out=link.png"], "link.png is one of the images"),
    "onto another photograph": (["bird0.png", *FAST, "--out=bird1.png"], "bird1.png exists and was not written by"),
    "maps onto a file": (["bird0.png", *FAST, "--save-maps=old.npy"], "--save-maps: old.npy exists"),
    "maps of two methods in one array": (["bird0.png", *FAST, "gradcam", "--save-maps=x.npy"], "name a .h5 file"),
    "maps as text": (["bird0.png", *FAST, "--save-maps=x.csv"], "--save-maps: x.csv must end in .npy or .h5"),
    "unknown crop": (["bird0.png", *FAST, "--crop=left"], "--crop"),
    "unwritable": (["bird0.png", *FAST, "--out=names.txt/sheet.png"], "names.txt"),
}


@pytest.mark.parametrize(("arguments", "named"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], named: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(photos)
    before = sorted(photos.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1
    assert named in error
    assert sorted(photos.rglob("*")) == before


def test_a_run_without_a_best_model(run: Path, tmp_path: Path, photos: Path, capsys: Any) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(SystemExit):
        cli.main([str(photos / "bird0.png"), "--run", str(tmp_path)])
    assert "has no best/model.safetensors yet" in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_module(photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "explain", str(photos / "bird0.png"), *FAST, "--out", str(tmp_path / "sheet.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.count("\n") == 3 and (tmp_path / "sheet.png").is_file()
