"""`evaluate.py --method` on the command line: from a run or a timm ViT to tables, maps and report."""

import csv
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

import evaluate
from engine.explanation.map_metrics import DEFAULT
from explain import METHODS
from tests.scripts.method_runs import FAST, NANO, Measure, values
from tests.scripts.running import run_script
from tests.tiny import timeless

pytestmark = pytest.mark.slow
IMAGES = 12
METRIC_KEYS = (
    "localization/mask/iou", "localization/boxes/iou/all", "segmentation/miou", "pointing/mask/hit", "abpc",
    "perturbation/positive_auc", "insertion_deletion/insertion", "certificate/holds",
)  # fmt: skip
"""One or two of every default metric."""


def test_pixel_masks_are_certified_and_compared_in_pixels(measure: Measure, runs: Path) -> None:
    rows = measure("--run", "pixel", "--method", "rollout", "gradient", "--through-resize")["rows"]
    own, trained = rows["(its own mask)"], json.loads((runs / "pixel" / "results.json").read_text())
    assert own["certificate/max_logit_change"] == 0 and own["certificate/holds"] == 1
    assert own["through_resize/holds"] == own["through_resize_margin/holds"] == 1, "these images are not resized"
    assert own["certificate/keep_ratio"] == pytest.approx(trained["test/keep_ratio_pixels"])
    assert own["as_mask/mask_iou"] == pytest.approx(trained["test/mask_iou"])
    assert own["as_mask/accuracy"] == pytest.approx(trained["test/accuracy"])
    assert rows["(true mask)"]["as_mask/mask_iou"] == 1
    for method in ("rollout", "gradient"):
        assert rows[method]["as_mask/keep_ratio"] == pytest.approx(own["as_mask/keep_ratio"]), "as many pixels"


def test_all_methods_on_the_real_command_line(runs: Path, tmp_path: Path) -> None:
    done = run_script(tmp_path, "evaluate.py", "--run", str(runs / "two"), "--method", "all", "--out", "an out [x]")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"12 images, {len(list(METHODS))} methods; report: an out [x]/report.html"
    table = done.stdout.splitlines()
    out = tmp_path / "an out [x]"
    results = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)
    names = [row["row"] for row in results["rows"]]
    assert names == [*METHODS, "(its own mask)", "(true mask)"]
    assert set(results["protocol"]) == {*DEFAULT, "as_masks", "background_swap", "certificate (its own mask)"}
    assert all(row.keys() >= {*METRIC_KEYS, "as_mask/accuracy", "seconds_per_map"} for row in results["rows"][:-2])
    keys = {*METRIC_KEYS, "as_mask/accuracy", "seconds_per_map"}
    assert [key for key in keys if not any(line.startswith(f"{key} ") for line in table)] == []
    assert results["rows"][-2]["certificate/max_logit_change"] == 0 and results["rows"][-2]["certificate/holds"] == 1
    assert results["provenance"]["command"].startswith("evaluate.py --run")
    assert_tables(out, names)
    assert {path.stem for path in (out / "per_image").iterdir()} == set(METHODS)
    assert Image.open(out / "sheet.png").height > 300
    assert list(tmp_path.iterdir()) == [out]


def assert_tables(out: Path, names: list[str]) -> None:
    """The four formats have these rows."""
    for name in ("methods.json", "methods.csv", "methods.md", "methods.tex", "report.html", "sheet.png"):
        assert (out / name).is_file()
    assert [row["row"] for row in json.loads((out / "methods.json").read_text())["rows"]] == names
    assert [row["row"] for row in csv.DictReader((out / "methods.csv").open())] == names
    assert [line.split("|")[1].strip() for line in (out / "methods.md").read_text().splitlines()[2:]] == names
    tex = (out / "methods.tex").read_text()
    assert [name for name in names if name.replace("_", r"\_") + " &" not in tex] == []
    assert all(name in (out / "report.html").read_text() for name in names)


def test_metrics_protocols_counts_and_images(measure: Measure, tmp_path: Path) -> None:
    results = measure("--run", "plain", "--method", "agcam", "guided_backprop")
    assert set(results["rows"]) == {"agcam", "guided_backprop"}
    assert results["images"] == IMAGES and results["model_metrics"]["count/images"] == IMAGES
    assert set(results["protocol"]) == {*DEFAULT, "background_swap"}
    assert all(protocol for protocol in results["protocol"].values())
    for row in results["rows"].values():
        for key in METRIC_KEYS:
            assert row[f"{key}/low"] <= row[key] <= row[f"{key}/high"]
        for metric in DEFAULT:
            assert row[f"count/{metric}/nan_maps"] == 0 and f"count/{metric}/constant_maps" in row
    model = results["model_metrics"]
    assert model["accuracy/low"] <= model["accuracy"] <= model["accuracy/high"]
    lines = list(csv.DictReader((tmp_path / "out" / "per_image" / "agcam.csv").open()))
    assert [line["path"] for line in lines] == [f"synthetic/test/{i:05d}" for i in range(IMAGES)]
    mean = sum(float(line["abpc"]) for line in lines) / IMAGES
    assert mean == pytest.approx(results["rows"]["agcam"]["abpc"], abs=1e-6)
    correct = sum(float(line["localization/correct"]) for line in lines) / IMAGES
    assert correct == pytest.approx(model["accuracy"])


def test_two_evaluations_are_equal_to_the_last_bit(measure: Measure, tmp_path: Path) -> None:
    arguments = ("--run", "two", "--method", "agcam", "rollout")
    first, second = measure(*arguments, out="a"), measure(*arguments, out="b")
    assert repr(values(first)) == repr(values(second))
    assert first["model_metrics"] == second["model_metrics"]
    for name in ("per_image/agcam.csv", "per_image/rollout.csv", "sheet.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_saved_maps_serve_another_evaluation(measure: Measure, tmp_path: Path) -> None:
    arguments = ("--run", "two", "--method", "agcam", "rollout", "guided_backprop")
    computed = measure(*arguments, "--save-maps", "new/maps.h5", out="a")
    read = measure(*arguments, "--maps", "new/maps.h5", "--data.eval_batch_size", "12", out="b")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["maps.h5"]
    for name, row in values(computed).items():
        expected = {key: value for key, value in row.items() if not key.endswith(("/low", "/high"))}
        assert {key: values(read)[name][key] for key in expected} == pytest.approx(expected, abs=0.01)
    assert "seconds_per_map" in computed["rows"]["agcam"] and "seconds_per_map" not in read["rows"]["agcam"]
    one = measure("--run", "two", "--method", "rollout", "--metrics", "pointing", "--maps", "new/maps.h5")
    assert one["rows"]["rollout"]["pointing/mask/hit"] == pytest.approx(read["rows"]["rollout"]["pointing/mask/hit"])


def test_maps_of_a_plain_run_as_masks_of_a_two_stage_run(measure: Measure) -> None:
    as_masks = ("--method", "rollout", "--metrics", "as_masks", "certificate")
    results = measure("--run", "plain", *as_masks, "--masks-for", "two")
    assert set(results["rows"]) == {"rollout", "(its own mask)", "(true mask)"}
    rows, own = results["rows"], measure("--run", "two", *as_masks)["rows"]
    assert timeless(rows["(true mask)"]) == timeless(own["(true mask)"])
    assert rows["(its own mask)"]["as_mask/accuracy"] == own["(its own mask)"]["as_mask/accuracy"]
    for key in ("as_mask/keep_ratio", "certificate/keep_ratio"):
        assert rows["rollout"][key] == pytest.approx(own["(its own mask)"]["as_mask/keep_ratio"])
    assert "certificate/holds" not in rows["(its own mask)"]  # the model under explanation has no mask
    assert len({results["masks_for_weights"], results["inputs"]["weights"], None}) == 3
    assert results["masks_for"] == "two" and set(results["protocol"]) == {"certificate", "as_masks"}


def test_the_masked_classifier_uses_its_own_normalisation(measure: Measure, runs: Path) -> None:
    """Whatever the normalisation of the explained model."""
    arguments = ("--run", "plain", "--method", "rollout", "--metrics", "as_masks", "--masks-for", "two")
    same = measure(*arguments)["rows"]["(its own mask)"]
    other = measure(*arguments, "--data.mean=[0.5,0.5,0.5]", "--data.std=[0.5,0.5,0.5]")["rows"]["(its own mask)"]
    assert timeless(same) == pytest.approx(timeless(other), abs=1e-6)


def test_limit_metrics_and_metric_options(measure: Measure, tmp_path: Path) -> None:
    results = measure(
        "--run", "two", "--split", "val", "--limit", "3", "--method", "rollout", "--metrics", "abpc", "localization",
        "--removal-steps", "4", "--removal-fill", "black", "--removal-cell", "8", "--threshold", "mean",
        "--edges", "inclusive",
    )  # fmt: skip
    assert results["images"] == 3 and results["split"] == "val"
    assert set(results["rows"]) == {"rollout"} and set(results["protocol"]) == {"abpc", "localization"}
    abpc, localization = results["protocol"]["abpc"], results["protocol"]["localization"]
    assert (abpc["steps"], abpc["fill"], abpc["cell_pixels"]) == (4, "black", 8)
    assert (localization["threshold"], localization["edges"]) == ("mean of each map", "inclusive")
    assert len((tmp_path / "out" / "per_image" / "rollout.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_the_fraction_of_patches_to_keep(ratio: float, measure: Measure) -> None:
    arguments = ("--method", "rollout", "--metrics", "certificate", "--keep-ratio", str(ratio))
    row = measure("--run", "two", *arguments)["rows"]["rollout"]
    assert row["certificate/keep_ratio"] == ratio
    assert (row["certificate/max_logit_change"] == 0) == (ratio == 1)


def test_options_of_methods(measure: Measure) -> None:
    """Also with `=`, which argparse takes as well."""
    more = ("--head-fusion", "max", "--discard-ratio", "0.9", "--compat", "vit-explain", "--metrics", "pointing")
    results = measure("--run", "plain", "--method=rollout", *more)
    assert results["methods"] == {
        "rollout": {
            "head_fusion": "max", "discard_ratio": 0.9, "start_layer": None, "compat": "vit-explain", "head": None
        }
    }  # fmt: skip
    plain = measure("--run", "plain", "--method", "rollout", "--metrics", "pointing")
    assert values(plain) != values(results)


def test_metrics_use_the_stage_that_is_explained(measure: Measure) -> None:
    first = measure("--run", "two", "--method", "agcam", "--metrics", "abpc", "--stage", "1")
    second = measure("--run", "two", "--method", "agcam", "--metrics", "abpc")
    assert (first["stage"], second["stage"]) == (1, 2)
    assert first["rows"]["agcam"]["abpc/lerf_auc"] != second["rows"]["agcam"]["abpc/lerf_auc"]


@pytest.mark.parametrize("size", [["--data.image_size", "32"], ["--data.image_size=[32,32]"]])
def test_a_timm_model_with_its_own_classifier(size: list[str], measure: Measure) -> None:
    data = ("--data.synthetic.test_images", "8", "--data.workers", "0")
    results = measure(*NANO, "--weights", "head.safetensors", *FAST, *size, *data)
    assert results["model"] == "timm/vit_nano_patch8" and results["checkpoint"] == "head.safetensors"
    assert results["images"] == 8 and "pointing/mask/hit" in results["rows"]["rollout"]


def test_a_data_set_without_objects(measure: Measure, tmp_path: Path) -> None:
    """ImageNet's layout, without boxes: what needs an object is left out."""
    for label, folder in enumerate(("train/checked", "train/striped", "val/checked", "val/striped")):
        (tmp_path / "tree" / folder).mkdir(parents=True)
        for i in range(2):
            image = Image.effect_noise((40, 36), 50 + 50 * label + 20 * i).convert("RGB")
            image.save(tmp_path / "tree" / folder / f"{label}{i}.JPEG")
    results = measure("--run", "two", "--method", "rollout", "--data.name", "imagenet", "--data.root", "tree")
    assert set(results["protocol"]) == {*DEFAULT[3:], "as_masks", "certificate (its own mask)"}
    assert set(results["rows"]) == {"rollout", "(its own mask)"} and results["images"] == 4


def test_out_into_an_existing_folder_keeps_what_is_there(measure: Measure, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    measure("--run", "plain", *FAST)
    measure("--run", "two", "--method", "gradcam", "--metrics", "pointing")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "out" / "per_image").iterdir()] == ["gradcam.csv"]


def test_the_default_folder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--run", str(runs / "plain"), *FAST])
    evaluate.main()
    assert (runs / "plain" / "evaluation" / "test-methods" / "results.json").is_file()
