"""Weights of other projects: Hugging Face models give the same outputs in timm; misfits are named."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from models.backbone import create_backbone, load_backbone_weights
from models.weights.checkpoints import fit_backbone_state, load_into, read_state
from tests.bomb import Bomb
from tests.models.small import backbone, images, shaken

WIDTH, PATCH = 32, 7


def published(folder: Path, registers: int, swiglu: bool) -> tuple[nn.Module, Path]:
    """A random Hugging Face DINOv2 of 28 x 28 pixels, and its weights as `save_pretrained` writes them."""
    transformers = pytest.importorskip("transformers")
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    settings: dict[str, Any] = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, patch_size=PATCH)
    settings |= dict(image_size=28, mlp_ratio=2, use_swiglu_ffn=swiglu, attn_implementation="eager")
    settings |= {"num_register_tokens": registers} if registers else {}
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    shaken(model)
    model.save_pretrained(folder)
    return model, folder / "model.safetensors"


def ours(registers: int = 0, swiglu: bool = False, size: tuple[int, int] = (28, 28)) -> VisionTransformer:
    """The timm counterpart, with the options of vit_*_patch14_dinov2 and vit_*_patch14_reg4_dinov2."""
    gated: dict[str, Any] = (
        dict(mlp_ratio=3, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU) if swiglu else dict(mlp_ratio=2)
    )
    extra: dict[str, Any] = dict(reg_tokens=registers, no_embed_class=True) if registers else {}
    settings: dict[str, Any] = dict(patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=2, init_values=1e-5)
    return VisionTransformer(img_size=size, num_classes=0, **settings, **extra, **gated).eval()


@pytest.mark.parametrize("swiglu", [False, True], ids=["mlp", "swiglu"])
@pytest.mark.parametrize("registers", [0, 4])
@torch.no_grad()
def test_hugging_face_dinov2_gives_the_same_numbers(tmp_path: Path, registers: int, swiglu: bool) -> None:
    model, file = published(tmp_path, registers, swiglu)
    vit = ours(registers, swiglu)
    load_backbone_weights(vit, "any", str(file))
    x = images(2, (28, 28))
    expected = model(x).last_hidden_state
    torch.testing.assert_close(vit.forward_features(x), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1


def test_hugging_face_classifier_prefix_and_missing_third_of_qkv(tmp_path: Path) -> None:
    _, file = published(tmp_path, 0, False)
    state = {f"dinov2.{name}": tensor for name, tensor in load_file(file).items()}
    state |= {"classifier.weight": torch.zeros(3, 2 * WIDTH), "classifier.bias": torch.zeros(3)}
    vit = ours()
    load_into(vit, fit_backbone_state(state, vit), "file")
    del state["dinov2.encoder.layer.1.attention.attention.key.bias"]
    with pytest.raises(UserError, match=r"missing: blocks\.1\.attn\.qkv\.bias; unexpected: .*attention\.query\.bias"):
        load_into(vit, fit_backbone_state(state, vit), "file")


@torch.no_grad()
def test_original_dinov2_naming_of_registers_and_gated_mlp() -> None:
    vit = shaken(ours(registers=4, swiglu=True))
    state = {re.sub(r"mlp\.fc1", "mlp.w12", re.sub(r"mlp\.fc2", "mlp.w3", k)): v for k, v in vit.state_dict().items()}
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([torch.full((1, 1, WIDTH), 0.5), state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - 0.5
    state["mask_token"] = torch.zeros(1, WIDTH)
    again = ours(registers=4, swiglu=True)
    load_into(again, fit_backbone_state(state, again), "file")
    x = images(2, (28, 28))
    torch.testing.assert_close(again.forward_features(x), vit.forward_features(x), atol=1e-5, rtol=1e-5)


def table_of(grid: tuple[int, int], prefix: int) -> Tensor:
    """Positions whose first two channels are the height and the width, in [-1, 1]; prefix entries are 7."""
    rows, columns = torch.meshgrid(*((2 * torch.arange(n) + 1) / n - 1 for n in grid), indexing="ij")
    table = torch.zeros(1, grid[0] * grid[1], WIDTH)
    table[0, :, 0], table[0, :, 1] = rows.flatten(), columns.flatten()
    return torch.cat([torch.full((1, prefix, WIDTH), 7.0), table], dim=1)


@pytest.mark.parametrize(("name", "prefix"), [("vit_t_dino", 0), ("vit_t_regs", 3), ("vit_t_plain16", 1)])
@pytest.mark.parametrize("grid", [(4, 4), (6, 6), (3, 5), (2, 8)])
def test_positions_are_resampled_to_the_grid(name: str, prefix: int, grid: tuple[int, int]) -> None:
    patch = 16 if name == "vit_t_plain16" else 8
    vit = create_backbone(name, (grid[0] * patch, grid[1] * patch))
    table = table_of((4, 4), prefix)
    fitted = fit_backbone_state(vit.state_dict() | {"pos_embed": table}, vit)["pos_embed"]
    assert fitted.shape == vit.pos_embed.shape
    expected = table_of(grid, prefix)
    if grid == (4, 4):
        assert torch.equal(fitted, table)
    assert torch.equal(fitted[:, :prefix], expected[:, :prefix])
    torch.testing.assert_close(fitted[..., :2], expected[..., :2], atol=0.15, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (16, 40)])
@pytest.mark.parametrize("name", ["vit_nano_patch8", "vit_pico_patch8", "vit_t_dino", "vit_t_regs"])
def test_own_weights_are_loaded_unchanged(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    vit, again = backbone(name, size), create_backbone(name, size)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    load_backbone_weights(again, name, str(tmp_path / "vit.safetensors"))
    state = again.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in vit.state_dict().items())


def test_final_norm_of_models_made_for_average_pooling() -> None:
    vit = backbone("vit_t_dino")
    state = {
        name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: t
        for name, t in vit.state_dict().items()
    }
    load_into(create_backbone("vit_t_dino", (32, 32)), fit_backbone_state(state, vit), "file")
    both = vit.state_dict() | {"fc_norm.weight": torch.zeros(WIDTH), "head.weight": torch.zeros(9, WIDTH)}
    assert fit_backbone_state(both, vit).keys() == vit.state_dict().keys()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    state["weight"][1, 2] = value
    save_file(state, tmp_path / "w.safetensors")
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(UserError, match=r"w\.safetensors: weight: values that are not finite"):
        load_into(model, read_state(tmp_path / "w.safetensors"), str(tmp_path / "w.safetensors"))
    assert torch.equal(model.weight, before)


def test_all_missing_and_unexpected_keys_are_named_in_one_line() -> None:
    vit = backbone("vit_t_dino")
    state = vit.state_dict()
    del state["norm.bias"], state["blocks.0.ls1.gamma"]
    state |= {"extra.weight": torch.zeros(2), "cls_token": torch.zeros(1, 1, 8), "pos_embed": torch.zeros(1, 11, WIDTH)}
    before = vit.norm.weight.clone()
    with pytest.raises(UserError) as caught:
        load_into(vit, fit_backbone_state(state, vit), "weights.pth")
    message = str(caught.value)
    assert "\n" not in message and message.startswith("weights.pth does not fit the model")
    assert "missing: blocks.0.ls1.gamma, norm.bias" in message and "unexpected: extra.weight" in message
    assert "cls_token (1, 1, 8) instead of (1, 1, 32)" in message
    assert "pos_embed (1, 11, 32) instead of (1, 16, 32)" in message
    assert torch.equal(vit.norm.weight, before)
    with pytest.raises(UserError, match=f"and {len(vit.state_dict()) - 6} more"):
        load_into(vit, {"x": torch.zeros(1)}, "f")


@pytest.mark.parametrize("key", [None, "model_state", "state_dict", "model", "teacher"])
def test_containers(tmp_path: Path, key: str | None) -> None:
    state = backbone("vit_t_dino").state_dict()
    content: Any = state if key is None else {key: state, "finished_epoch": 3, "optimizer_state": {"lr": [1e-3]}}
    torch.save(content, tmp_path / "weights.pth")
    read = read_state(tmp_path / "weights.pth")
    assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_pickle_is_refused_and_never_run(tmp_path: Path, kind: str) -> None:
    trace, file = tmp_path / "trace", tmp_path / "weights.pth"
    if kind == "bare":
        file.write_bytes(pickle.dumps(Bomb(trace)))
    else:
        torch.save({"model_state": Bomb(trace)}, file, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UserError, match=r"weights\.pth: (refused by the safe loader|not a readable)") as caught:
        read_state(file)
    assert "\n" not in str(caught.value) and not trace.exists()
    pickle.loads(file.read_bytes()) if kind == "bare" else torch.load(file, weights_only=False)
    assert trace.exists(), "the bomb works"


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("keep", [0, 5, 2000])
def test_truncated_files(tmp_path: Path, suffix: str, keep: int) -> None:
    state, file = backbone("vit_t_dino").state_dict(), tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(state, file)
    else:
        save_file(state, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"weights\.{suffix}: (not a readable weights file|refused)") as caught:
        read_state(file)
    assert "\n" not in str(caught.value)


def test_missing_and_invalid_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file .*absent\.pth; use hub, none or a weights file"):
        read_state(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="no such file"):
        read_state(tmp_path)
    for content in ([torch.zeros(1)], {"model": {"a": 1}}, torch.zeros(2), {"epoch": 3}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(UserError, match="contains no state dict"):
            read_state(tmp_path / "other.pth")
