"""`python -m explain`: names, preprocessing, several images, saved maps, what may be overwritten, start-up."""

import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console
from timm.data import create_transform, resolve_model_data_config

from datasets.config import DataConfig, SyntheticConfig
from datasets.synthetic.dataset import SyntheticBirds
from explain import METHODS, explain, loading
from explain import __main__ as cli
from explain.explained_model import explained_model
from explain.loading import Preprocessing, load_any
from models.two_stage import TwoStageModel
from report.legend import SCALED_ALONE
from tests.explain.small import CASES
from tests.explain.textbook import dropped, explicit_layers, product, read_out

ROOT = Path(__file__).parents[2]
FAST = ("--model=timm/vit_nano_patch8", "--weights=none", "--size", "32", "48")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two birds and a text file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    birds = SyntheticBirds(DataConfig(image_size=64, synthetic=SyntheticConfig(test_images=2)), "test")
    for index, pixels in enumerate(birds.images):
        Image.fromarray(pixels).save(folder / f"bird{index}.png")
    (folder / "note.txt").write_text("no image")
    return folder


def run(*arguments: Any) -> None:
    torch.manual_seed(0)
    cli.main([str(a) for a in arguments])


def test_a_folder_and_all_methods(photos: Path, tmp_path: Path, capsys: Any) -> None:
    run(photos, *FAST, "--method", "all", "--out", tmp_path / "a.png", "--save-maps", tmp_path / "maps.h5")
    printed = capsys.readouterr()
    assert [Path(line.split("  ")[2]).name for line in printed.out.splitlines()[:2]] == ["bird0.png", "bird1.png"]
    assert printed.err.startswith("inherent is left out: ") and printed.err.count("\n") == 1
    with h5py.File(tmp_path / "maps.h5") as file:
        assert sorted(file["maps"]) == sorted(set(METHODS) - {"inherent"})
        assert file["maps/gradcam"].shape == (2, 1, 4, 6) and file["maps/gradient"].shape == (2, 1, 32, 48)
        assert [Path(path.decode()).name for path in file["paths"]] == ["bird0.png", "bird1.png"]
        assert file["targets"].shape == (2, 1) and len(file["class_names"]) == file["probabilities"].shape[1]


def test_saved_maps_are_those_of_explain(photos: Path, tmp_path: Path) -> None:
    bird, out = photos / "bird0.png", tmp_path / "maps.npy"
    flags = (*FAST, "--method", "gradcam", "--target", "3", "5", "--out", tmp_path / "a.png", "--save-maps", out)
    run(bird, *flags)
    torch.manual_seed(0)
    classifier = load_any("timm/vit_nano_patch8", "none", (32, 48))
    image = classifier.preprocess(np.asarray(Image.open(bird)))
    maps = explain(classifier.model, image.expand(2, -1, -1, -1), "gradcam", [3, 5])
    assert np.allclose(np.load(out)[0], maps.numpy(), atol=1e-6) and np.load(out).shape == (1, 2, 4, 6)
    with pytest.raises(SystemExit):
        run(bird, *flags)  # a .npy file does not tell who wrote it
    run(bird, *flags, "--overwrite")


@pytest.mark.parametrize("method", ["rollout", "grad_rollout"])
def test_vit_explain_from_its_command_line_to_the_map(method: str, photos: Path, tmp_path: Path, capsys: Any) -> None:
    """Its image (PIL's resize, mean and std 0.5), its fusion and its map, from explicit attention."""
    wide, out = tmp_path / "wide.png", tmp_path / "map.npy"
    Image.open(photos / "bird0.png").resize((90, 50)).save(wide)
    flags = ("--model=timm/vit_nano_patch8", "--weights=none", "--size", "32", "32", "--compat", "vit-explain")
    flags = (wide, *flags, "--method", method, "--target", "243", "--out", tmp_path / "a.png")
    half = ("0.5", "0.5", "0.5")
    fusion = ("--head-fusion", "max") if method == "rollout" else ()
    run(*flags)
    missing = ["--crop squash", "--mean 0.5 0.5 0.5", "--std 0.5 0.5 0.5", *([" ".join(fusion)] if fusion else [])]
    assert f"note: vit-explain's command also has {' '.join(missing)}\n" in capsys.readouterr().err
    run(*flags, *fusion, "--crop", "squash", "--mean", *half, "--std", *half, "--save-maps", out)
    assert "vit-explain" not in capsys.readouterr().err

    pixels = torch.from_numpy(np.array(Image.open(wide).resize((32, 32)))).permute(2, 0, 1)[None] / 255
    torch.manual_seed(0)
    explained = explained_model(load_any("timm/vit_nano_patch8", "none", (32, 32)).model, (pixels - 0.5) / 0.5)
    layers = explicit_layers(explained, (pixels - 0.5) / 0.5, 243)
    if method == "rollout":
        fused = [dropped(layer.A.max(0).values, 0.9, keep_first=True) for layer in layers]
    else:
        pairs = zip(layers, reversed(layers), strict=True)
        fused = [dropped((a.A * b.E).mean(0).clamp(min=0), 0.9, keep_first=False) for a, b in pairs]
    wanted = read_out(product(fused, "column"), explained)
    torch.testing.assert_close(torch.from_numpy(np.load(out)).flatten(), wanted / wanted.max(), rtol=1e-4, atol=1e-6)


def test_own_sheets_are_overwritten_and_other_files_are_not(photos: Path, tmp_path: Path) -> None:
    out, flags = tmp_path / "sheet.png", (photos / "bird0.png", *FAST, "--method", "rollout")
    run(*flags, "--out", out)
    first = out.read_bytes()
    assert Image.open(out).info["Software"] == "Faithful ViT contact sheet"
    run(*flags, "gradcam", "--out", out)
    assert out.read_bytes() != first
    photo = (photos / "bird1.png").read_bytes()
    with pytest.raises(SystemExit):
        run(*flags, "--out", photos / "bird1.png")
    assert (photos / "bird1.png").read_bytes() == photo
    run(*flags, "--out", photos / "bird1.png", "--overwrite")
    assert (photos / "bird1.png").read_bytes() == first


@pytest.mark.parametrize("problem", ["missing", "broken", "output", "method"])
def test_nothing_is_loaded_before_files_and_methods_are_checked(
    problem: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(loading, "load_any", fetched)
    (photos / "broken.jpg").write_text("no image")
    arguments = {
        "missing": [photos / "nowhere.jpg"],
        "broken": [photos / "bird0.png", photos / "broken.jpg"],
        "output": [photos / "bird0.png", "--out", photos / "bird0.png"],
        "method": [photos / "bird0.png", "--method", "rolout"],
    }[problem]
    with pytest.raises(SystemExit):
        run(*arguments)
    with pytest.raises(AssertionError):
        run(photos / "bird0.png")


def test_control_characters_in_class_names_are_escaped(photos: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "names.txt").write_text("".join(f"a\0\x1b[2J{i}\n" for i in range(1000)))
    out = ("--out", tmp_path / "a.png", "--save-maps", tmp_path / "maps.h5")
    run(photos / "bird0.png", *FAST, "--method", "rollout", "--class-names", tmp_path / "names.txt", *out)
    assert r"a\x00\x1b[2J" in capsys.readouterr().out
    with h5py.File(tmp_path / "maps.h5") as file:
        assert file["class_names"][7].decode() == r"a\x00\x1b[2J7"


def test_imagenet_names_are_shown_and_accepted(photos: Path, tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32)
    with torch.no_grad():
        model.head.bias[281] = 100
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    flags = ("--model=timm/vit_tiny_patch16_224", f"--weights={tmp_path / 'vit.pt'}", "--size", "32", "32")
    out = ("--out", tmp_path / "a.png", "--save-maps", tmp_path / "maps.h5")
    run(photos / "bird0.png", *flags, "--method", "gradcam", "--target", "golden retriever", "Tabby cat", *out)
    assert capsys.readouterr().out.startswith("tabby, tabby cat  1.000  ")
    with h5py.File(tmp_path / "maps.h5") as file:
        assert file["targets"][0].tolist() == [207, 281]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_clip_224", "vit_small_patch14_dinov2"])
def test_preprocessing_is_that_of_the_timm_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels as from timm's own evaluation transform; dinov2 has no classifier but a crop_pct of 1."""
    classifier = load_any(f"timm/{name}", "none")
    config = resolve_model_data_config(classifier.model)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    expected = create_transform(**config, is_training=False)(Image.fromarray(pixels))
    assert torch.equal(classifier.preprocess(pixels), expected)
    assert f"({config['interpolation']})" in classifier.preprocessing
    assert str(int(config["input_size"][1] / config["crop_pct"])) in classifier.preprocessing


def test_crop_and_squash() -> None:
    wide = np.zeros((64, 256, 3), np.uint8)
    wide[:, 128:] = 255
    wide[:, :16] = 255
    crop, squash = (
        load_any("timm/vit_nano_patch8", "none", (32, 32), Preprocessing(crop)) for crop in ("center", "squash")
    )
    middle, whole = (c.preprocess(wide)[0, 16] * c.std[0] + c.mean[0] for c in (crop, squash))
    assert middle[0] < 0.1 < 0.9 < whole[0] and middle[-1] > 0.9
    assert squash.preprocessing.startswith("resized to 32 x 32 (") and "centre crop" not in squash.preprocessing


def test_one_scale_for_all_maps(photos: Path, tmp_path: Path) -> None:
    from explain.options import build_methods
    from explain.sheet import ExplanationSheet

    torch.manual_seed(0)
    classifier = load_any("timm/vit_nano_patch8", "none", (32, 32))
    sheet = ExplanationSheet(classifier, build_methods(["gradcam"], {}), list(map(str, range(1000))), [1, 2], 2, True)
    image = sheet.explain(Path("bird0.png"), classifier.preprocess(np.asarray(Image.open(photos / "bird0.png"))))
    low, high = torch.linspace(0, 1, 16).view(4, 4), torch.linspace(0, 4, 16).view(4, 4)
    image = type(image)(**{**vars(image), "maps": {"gradcam": torch.stack([low, high])}})
    assert sheet._limits([image]) == {"gradcam": (0.0, 4.0)}
    alone = type(sheet)(**{**vars(sheet), "same_scale": False})
    together, separate = (s._columns(image, s._limits([image])) for s in (sheet, alone))
    assert np.array_equal(separate[0].tiles[1], separate[1].tiles[1])
    assert np.array_equal(together[1].tiles[1], separate[1].tiles[1])
    assert together[0].tiles[1].mean() < separate[0].tiles[1].mean()
    assert "gradcam 0 to 4" in sheet._notes(sheet._limits([image]))[0]
    assert alone._notes({})[0] == SCALED_ALONE


def test_progress_on_a_terminal() -> None:
    def shown(terminal: bool) -> str:
        file = io.StringIO()
        with cli.progress(3, Console(file=file, force_terminal=terminal, width=100)) as start:
            for name in ("lrp: [a].png", "rollout", "gradcam"):
                start(name)
        return file.getvalue()

    assert "2/3" in shown(True) and not shown(False).strip()


def test_warnings_are_one_line_each_and_told_once(capsys: Any) -> None:
    with cli.warnings_as_notes():
        for _ in range(2):
            warnings.warn("some maps do not sum", stacklevel=1)
    assert capsys.readouterr().err == "note: some maps do not sum\n"


def test_a_large_folder_is_shown_in_part_and_saved_whole(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(cli, "SHOWN", 1)
    flags = (photos, *FAST, "--method", "rollout", "--out", tmp_path / "a.png")
    run(*flags)
    printed = capsys.readouterr()
    assert printed.err == "note: the sheet shows the first 1 of 2 images; --save-maps FILE.h5 explains all\n"
    assert "bird0.png" in printed.out and "bird1.png" not in printed.out
    width = Image.open(tmp_path / "a.png").width
    run(*flags, "--save-maps", tmp_path / "maps.h5")
    assert Image.open(tmp_path / "a.png").width == width and "bird1.png" in capsys.readouterr().out
    with h5py.File(tmp_path / "maps.h5") as file:
        assert file["maps/rollout"].shape == (2, 1, 4, 6)


def test_help_and_an_image_import_only_what_they_need() -> None:
    code = (
        "import sys, contextlib, io\nfrom explain.__main__ import parse_args\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n    parse_args(['--help'])\n"
        "print([m for m in ('torch', 'timm', 'matplotlib', 'h5py', 'pandas', 'jsonargparse') if m in sys.modules])\n"
        "import explain.options, explain.sheet, datasets.formats.images\n"
        "unused = 'torchmetrics', 'transformers', 'scipy.signal', 'scipy.sparse', 'pandas', 'matplotlib.pyplot'\n"
        "print([m for m in unused if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"


def test_help_with_a_method_lists_options(capsys: Any) -> None:
    for arguments, listed in ((["--help"], False), (["--method", "all", "--help"], True)):
        with pytest.raises(SystemExit) as stopped:
            cli.parse_args(arguments)
        assert stopped.value.code == 0 and ("--discard-ratio VALUE" in capsys.readouterr().out) == listed


def test_a_sheet_selects_the_patches_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from explain.options import build_methods
    from explain.sheet import ExplanationSheet

    case = CASES["stage_2"]
    model, image = case.model(), case.images(1)[0]
    assert isinstance(model, TwoStageModel)
    classifier = load_any("timm/vit_nano_patch8", "none", (32, 32))
    classifier = type(classifier)(**{**vars(classifier), "model": model})
    calls: list[int] = []
    select = model.select
    monkeypatch.setattr(model, "select", lambda x, **options: (calls.append(len(x)), select(x, **options))[1])
    methods = build_methods(["agcam", "rollout", "gradient"], {})
    found = ExplanationSheet(classifier, methods, list("abcde"), [3, 1], 2).explain(Path("bird.png"), image)
    assert calls == [1]
    for name, maps in found.maps.items():
        targets = [3, 1] if name != "rollout" else [3]
        torch.testing.assert_close(maps, explain(model, image.expand(len(targets), -1, -1, -1), name, targets))
