"""From corrupted files, either the whole output is written or nothing."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare_siim_acr
from commands import convert_checkpoint
from common.errors import UserError
from datasets.formats.dicom import read_dicom
from engine.run.checkpointing import read_checkpoint
from engine.run.folder import BEST
from tests.datasets.radiographs import source_of, write_archive
from tests.fuzz import tensors
from tests.fuzz.mutations import mutate


@pytest.mark.slow
def test_a_converted_checkpoint_is_whole_or_not_there(tmp_path: Path) -> None:
    files, made = [file for file in tensors.published() if file[0] == ".pt"], 0
    for seed in range(20):
        source, run = tmp_path / "w.pt", tmp_path / "run"
        source.write_bytes(mutate(files[seed % 3][1], [data for _, data in files], seed))
        options = [str(source), "--to", str(run), "--backbone", "vit_t_dino"]
        try:
            convert_checkpoint.import_checkpoint(convert_checkpoint.parse_args(options))
        except UserError:
            assert not run.exists(), f"seed {seed}"
        else:
            assert read_checkpoint(run / BEST / "model.safetensors").tensors
            shutil.rmtree(run)
            made += 1
    assert 0 < made < 20


@pytest.mark.slow
def test_prepared_radiographs_are_whole_or_left_out(tmp_path: Path) -> None:
    count, root, out = 60, tmp_path / "siim", tmp_path / "out"
    tubes = write_archive(root, count=count, tested=count // 2)
    data = source_of(root, 0).read_bytes()
    for number in range(0, count, 2):
        source_of(root, number).write_bytes(mutate(source_of(root, number).read_bytes(), [data], number))
    prepare_siim_acr.main(["--pkl_file_path", str(tubes), "--root_dir", str(root), "--out", str(out), "--workers", "1"])
    written = sorted(out.rglob("*.dcm"))
    masks = {path.stem for path in (out / "all_masks").iterdir()}
    assert {path.stem for path in written} == masks and count // 2 <= len(masks) < count
    for path in written:
        with Image.open(out / "all_masks" / f"{path.stem}.png") as mask:
            assert np.asarray(mask).shape == read_dicom(path).shape
    assert len((out / "report.csv").read_text().splitlines()) == 1 + count - len(masks)
    assert list(out.rglob("*.tmp")) == []
