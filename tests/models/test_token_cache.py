"""Stored patch tokens are those of the backbone, whatever happens to files, weights and batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from explain import explain
from models import build_model
from models.backbone import patch_tokens
from models.token_cache import TokenCache
from tests.models.small import backbone, config, images


class Counting(nn.Module):
    """Counts the images that a backbone computes."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.images = 0
        self.vit, original = vit, vit.forward_features

        def counted(x: torch.Tensor) -> torch.Tensor:
            self.images += len(x)
            return original(x)

        vit.forward_features = counted


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npy"))


def test_tokens_are_computed_once_per_image(tmp_path: Path) -> None:
    counted = Counting(backbone("vit_t_dino"))
    vit, x = counted.vit, images(4)
    expected = torch.cat([patch_tokens(vit, image[None]) for image in x]).detach()
    counted.images = 0
    for cache in (TokenCache(tmp_path, 1e9), TokenCache(tmp_path, 1e9)):  # the second as in another process
        assert torch.equal(cache.tokens(vit, x), expected)
        assert torch.equal(cache.tokens(vit, x.flip(0)[:3]), expected.flip(0)[:3])
    assert counted.images == 4 and len(files(tmp_path)) == 4
    assert not cache.tokens(vit, x).requires_grad


def test_another_image_weight_size_or_precision_is_another_entry(tmp_path: Path) -> None:
    cache, vit, x = TokenCache(tmp_path, 1e9), backbone("vit_t_dino"), images(1)
    before = cache.tokens(vit, x)
    changed = x.clone()
    changed[0, 0, 0, 0] += 1e-6
    cache.tokens(vit, changed)
    assert len(files(tmp_path)) == 2
    with torch.no_grad():
        vit.blocks[0].mlp.fc1.weight[0, 0] += 0.5
    after = cache.tokens(vit, x)
    assert len(files(tmp_path)) == 3 and not torch.equal(after, before)
    torch.testing.assert_close(after, patch_tokens(vit, x).detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache.tokens(vit, x)
    assert len(files(tmp_path)) == 4
    products = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        cache.tokens(vit, x)
    finally:
        torch.set_float32_matmul_precision(products)
    assert len(files(tmp_path)) == 5
    other = backbone("vit_t_dino", seed=1)
    torch.testing.assert_close(cache.tokens(other, x), patch_tokens(other, x).detach())


@pytest.mark.parametrize("damage", [b"", b"no numbers", None])
def test_a_damaged_file_is_computed_anew(damage: bytes | None, tmp_path: Path) -> None:
    cache, vit, x = TokenCache(tmp_path, 1e9), backbone("vit_t_dino"), images(1)
    expected = cache.tokens(vit, x)
    (file,) = files(tmp_path)
    if damage is None:
        np.save(file, np.full((3, 3), np.nan))
    else:
        file.write_bytes(damage)
    assert torch.equal(cache.tokens(vit, x), expected)
    assert torch.equal(torch.from_numpy(np.load(file)), expected[0]), "and written again"


@pytest.mark.parametrize("method", ["gradcam", "rollout", "input_x_gradient"])
def test_stage_1_is_explained_as_without_stored_tokens(method: str, tmp_path: Path) -> None:
    model, x = build_model(config(name="pdiscoformer"), 5, (32, 32)).eval(), images(2)
    expected = explain(model, x, method, stage=1)
    model.stage_1.token_cache = TokenCache(tmp_path, 1e9)
    model.select(x)
    assert torch.equal(explain(model, x, method, stage=1), expected) and len(files(tmp_path)) == 2


def test_a_folder_that_takes_no_files_costs_speed_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, vit, x = TokenCache(tmp_path, 1e9), backbone("vit_t_dino"), images(2)
    for name in range(256):
        (tmp_path / f"{name:02x}").write_text("in the way")
    torch.testing.assert_close(cache.tokens(vit, x), patch_tokens(vit, x).detach())
    assert capsys.readouterr().out.count("takes no more files") == 1
