"""A small folder with everything that commands read, and how they are called in this process."""

import contextlib
import io
import json
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import evaluate
import study
from tests.datasets.radiographs import write_archive
from tests.fuzz.tensors import published
from tests.tiny import KEYS

SIDE = 32
TINY: dict[str, Any] = {
    **KEYS, "model.backbone": "vit_nano_patch8", "data.name": "folder", "data.root": "in/data", "data.batch_size": 2,
    "data.eval_batch_size": 4, "train.epochs": 1, "train.sheet_every": 0,
}  # fmt: skip


STUDY = "title: t\nabout: a\nconfig: in/base.yaml\nseeds: [0]\nvary: [train.seed]\nrows: {a: {data.seed: 1}}\n"
LISTS = {"objects": ["0,a", "1,b"], "places": ["land", "water"]}
"""Rows of the lists of commands.prepare_waterbirds, after the image."""
MEASURE = "--run in/run --out out --method rollout --metrics pointing"


def make_input(folder: Path) -> None:
    """Write `folder`/in: images with masks and an index, a run, heat maps, studies, radiographs."""
    data = folder / "in" / "data"
    rows = ["path,label,split,place,mask"]
    noise = np.random.default_rng(0)
    for i, split in enumerate(("train",) * 4 + ("val",) * 2 + ("test",) * 4):
        for kind, pixels in (("images", noise.integers(0, 256, (SIDE, SIDE, 3))), ("masks", np.eye(SIDE) * 255)):
            (data / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(data / kind / f"{i}.png")
        rows.append(f"images/{i}.png,{'ab'[i % 2]},{split},{'xy'[i // 2 % 2]},masks/{i}.png")
    (data / "index.csv").write_text("\n".join(rows) + "\n")
    shutil.copytree(data / "masks", folder / "in" / "masks" / "data" / "images")
    write_archive(folder / "in" / "siim", count=3, tested=2).rename(folder / "in" / "siim.tubes")
    lines = {
        kind: "".join(f"data/images/{i}.png,{row}\n" for i, row in enumerate(rows * 4)) for kind, rows in LISTS.items()
    }
    texts = {
        "text": "nothing\n",
        "names.txt": "".join(f"c{i}\n" for i in range(1000)),
        "thresholds.json": '{"0": 0.1, "1": 0.2, "2": 0.3}',
        "objects.csv": "file,y,species\n" + lines["objects"],
        "places.csv": "file,kind\n" + lines["places"],
        "base.yaml": json.dumps({key: value for key, value in TINY.items() if key != "train.seed"}),
        "study.yaml": STUDY,
    }
    for name, text in texts.items():
        (folder / "in" / name).write_text(text)
    (folder / "in" / "published.pt").write_bytes(published()[0][1])
    with contextlib.chdir(folder):
        assert call(study.main, ["in/study.yaml", "--out", "in/runs", "--no-sheets"])[0] == 0
        shutil.copytree("in/runs/a-seed0", "in/run")
        assert call(evaluate.main, [*MEASURE.split(), "--save-maps", "in/maps.h5"])[0] == 0
        shutil.move("out", "in/measured")
        assert call(evaluate.main, [*MEASURE.split(), "--method", "lrp", "--out", "in/of_lrp"])[0] == 0
    shutil.copy(folder / "in/run/predictions.csv", folder / "in/other.csv")


def call(main: Callable[[], Any], arguments: Iterable[str]) -> tuple[int, str | None, str]:
    """Exit code, traceback and what was written to stderr."""
    said = io.StringIO()
    try:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
            patch.setattr(sys, "argv", ["command", *arguments])
            patch.setattr(sys, "path", [*sys.path])
            patch.setenv("PATH", "")  # no sbatch
            with contextlib.redirect_stdout(io.StringIO()):
                main()
        return 0, None, said.getvalue()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1, None, said.getvalue()
    except BaseException:
        return 1, traceback.format_exc(), said.getvalue()
