"""The study of part use: it trains on cached tokens what train.py trains on images, and writes its tables."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import part_use
from benchmarks.cached_tokens import CachedSplit, TokenModel, TokenObjective, cache_split, rows_of
from benchmarks.part_settings import SETTINGS
from common.errors import UserError
from datasets import load_split
from engine.run.command_line import parse_config
from engine.run.config import RunConfig
from engine.training.objectives import PartsObjective
from losses import equivariance
from models import build_model
from tests.tiny import flags

CPU = torch.device("cpu")
TINY = {
    "model.name": "pdiscoformer", "model.backbone": "vit_nano_patch8", "model.weights": "none",
    "model.parts.num_parts": 3, "model.parts.part_dropout": 0.0, "model.parts.gumbel": False,
    "data.name": "synthetic", "data.image_size": 32, "data.batch_size": 8, "data.synthetic.train_images": 24,
    "data.synthetic.val_images": 10, "data.synthetic.test_images": 10, "data.workers": 0,
    "loss.equivariance.images": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return parse_config(flags(TINY))


@pytest.fixture(scope="module")
def model(config: RunConfig) -> TokenModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TokenModel(config.model, 2, config.data.size_hw).eval()


@pytest.fixture(scope="module")
def cached(config: RunConfig, model: TokenModel) -> CachedSplit:
    split = load_split(config.data, "train", train=False, seed=0)
    return cache_split(model.stage_1.backbone, split, config.loss.equivariance, CPU)


def test_cached_tokens_give_the_loss_of_images(
    config: RunConfig, model: TokenModel, cached: CachedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every term, that of the warped view included, up to the rounding of bfloat16."""
    rows = torch.tensor([20, 3, 9, 4, 0, 1, 2, 5])
    which = torch.zeros_like(rows)
    tokens = part_use.Batch(cached.tokens[which, rows].float(), cached.label[rows], ("x",) * 8)
    objective = TokenObjective(config.loss, 2, [12, 12])
    view = rows_of(cached.view, which, rows)
    objective.second = cached.warped[which, rows].float(), view
    found = objective(model, tokens)

    whole = build_model(config.model, 2, config.data.size_hw)
    whole.load_state_dict(model.state_dict())
    whole.eval()
    split = load_split(config.data, "train", train=False, seed=0)
    images = part_use.Batch(torch.stack([split[i].image for i in rows.tolist()]), cached.label[rows], ("x",) * 8)
    monkeypatch.setattr("engine.training.objectives.draw_view", lambda count, *_, **__: rows_of(view, slice(count)))
    expected = PartsObjective(config.loss, 2, [12, 12])(whole, images)
    assert found.terms.keys() == expected.terms.keys() >= {"presence", "equivariance", "orthogonality"}
    for name, value in expected.terms.items():
        assert found.terms[name].item() == pytest.approx(value.item(), rel=0.02, abs=0.01), name


def test_the_second_view_of_the_cache_is_flipped(config: RunConfig, model: TokenModel, cached: CachedSplit) -> None:
    image = load_split(config.data, "train", train=False, seed=0)[7].image[None]
    with torch.no_grad():
        flipped = model.stage_1.backbone.forward_features(image.flip(-1))[:, 1:]
        drawn = rows_of(cached.view, torch.tensor([1]), torch.tensor([7]))
        warped = model.stage_1.backbone.forward_features(equivariance.warp_images(image.flip(-1), drawn))[:, 1:]
    assert torch.allclose(cached.tokens[1, 7].float(), flipped[0], atol=0.1)
    assert torch.allclose(cached.warped[1, 7].float(), warped[0], atol=0.1)
    assert not torch.allclose(cached.tokens[0, 7].float(), flipped[0], atol=0.1)


def test_every_epoch_has_every_image_at_most_once_and_training_lowers_the_loss(
    config: RunConfig, cached: CachedSplit
) -> None:
    names = [path for step in range(3) for path in part_use.draw_batch(config, cached, step, CPU)[0].paths]
    assert len(set(names)) == 24
    rates = {"optim.lr": 0.001, **{f"optim.{part}_lr_mult": 10.0 for part in ("head", "modulation", "prototype")}}
    trained = parse_config(flags({**TINY, **rates}))
    objective = TokenObjective(config.loss, 2, [12, 12])
    batch, objective.second = part_use.draw_batch(config, cached, 0, CPU)
    losses = [objective(part_use.train_head(trained, cached, steps, CPU).eval(), batch).loss for steps in (1, 30)]
    assert losses[1] < losses[0]


def test_it_measures_and_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in TINY.items()))
    keys = ["optim.lr=0.01", "steps=3", "model.parts.num_parts=2"]
    part_use.main([
        f"--config={file}", "--data", "synthetic=.", "--image-size=32", "--images=16", "--steps=2", "--seeds", "0", "1",
        "--rows", "current", "--set", *keys, "--clusters", "2", f"--out={tmp_path / 'table.json'}",
    ])  # fmt: skip
    (section,) = json.loads((tmp_path / "table.json").read_text())["sections"]
    assert [row["setting"] for row in section["rows"]] == ["current", "set", "k-means in the true masks, K = 2"]
    assert section["details"]["settings"]["set"] == {"optim.lr": 0.01, "steps": 3, "model.parts.num_parts": 2}
    assert section["rows"][2]["parts used"] == 2
    assert [len(row["parts used by seed"]) for row in section["rows"]] == [2, 2, 1]
    assert all(0 <= row["mask IoU"] <= 1 for row in section["rows"])
    assert {"NMI", "key-point error"} <= section["rows"][0].keys()
    page = (tmp_path / "table.md").read_text()
    assert "| current |" in page and page.strip() in capsys.readouterr().out


def test_patches_of_which_the_object_covers_half() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)[None]
    batch = part_use.Batch(torch.zeros(1, 3, 4, 4), torch.zeros(1, dtype=torch.int64), ("x",), mask=mask)
    assert part_use.object_patches(batch, torch.zeros(1, 4, 1)).tolist() == [[True, False, True, False]]
    with pytest.raises(UserError, match="--clusters: x has no true mask"):
        part_use.object_patches(replace(batch, mask=None), torch.zeros(1, 4, 1))


@pytest.mark.parametrize("row", SETTINGS)
def test_every_row_is_a_valid_config(row: str) -> None:
    options = part_use.parse(["--data", "cub=data"])
    assert part_use.config_of(options, SETTINGS[row], "cub", "data").data.image_size == 224


def test_mistakes_are_named(cached: CachedSplit) -> None:
    with pytest.raises(UserError, match="--rows: unknown curent; known: .*current"):
        part_use.settings_of(part_use.parse(["--data", "cub=x", "--rows", "curent"]))
    with pytest.raises(UserError, match="24 training images are fewer than data.batch_size=32"):
        part_use.draw_batch(parse_config(flags({**TINY, "data.batch_size": 32})), cached, 0, CPU)
