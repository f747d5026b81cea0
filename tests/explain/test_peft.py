"""Models with adapters of peft: the maps of the model that peft merges itself, and the model left as it was."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from common.errors import UserError
from explain import METHODS, explain
from explain.peft_models import merged
from tests.explain.small import CASES, vit
from tests.explain.test_every_method import Trace

peft: Any = pytest.importorskip("peft", reason="peft is not installed")

x = CASES["class_token"].images().double()
TARGETS = torch.tensor([4, 0, 2])
LINEAR = ["qkv", "proj", "fc1", "fc2"]
ADAPTERS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=3, lora_alpha=6, target_modules=LINEAR, modules_to_save=["head"]),
    "dora": lambda: peft.LoraConfig(r=2, target_modules=["qkv"], use_dora=True),
    "ia3": lambda: peft.IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"]),
    "convolution": lambda: peft.LoraConfig(r=2, target_modules=[r"patch_embed.proj", "qkv"], lora_dropout=0.5),
}


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return vit(init_values=0.5).double().eval()


def drawn(model: nn.Module) -> nn.Module:
    """The model with adapters, and a saved head, that change it."""
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model.eval()


def adapted(name: str) -> Any:
    return drawn(peft.get_peft_model(backbone(), ADAPTERS[name](), autocast_adapter_dtype=False))


@pytest.mark.parametrize("name", ADAPTERS)
def test_maps_are_those_of_the_merged_model(name: str) -> None:
    model = adapted(name)
    wanted = copy.deepcopy(model).merge_and_unload()
    assert (model(x) - backbone()(x)).abs().max() > 0.01
    trace = Trace(model)
    for method in METHODS if name == "lora" else ("agcam", "lrp"):
        if method not in ("inherent", "attention_flow", "integrated_gradients"):
            maps = explain(model, x, method, TARGETS)
            torch.testing.assert_close(maps, explain(wanted, x, method, TARGETS), rtol=1e-9, atol=1e-14)
    assert trace.changes() == []


def test_disabled_merged_and_several_adapters() -> None:
    model = adapted("lora")
    other = peft.LoraConfig(r=1, target_modules=["fc1"])
    model.add_adapter("other", other, autocast_adapter_dtype=False)
    drawn(model)
    for change in ("disabled", "merged", "merged, disabled", "merged, other", "other", "both"):
        changed: Any = copy.deepcopy(model)
        if "merged" in change:
            changed.merge_adapter()
        if "disabled" in change:
            changed.base_model.disable_adapter_layers()
        if "other" in change:
            changed.set_adapter("other")
        if change == "both":
            changed.base_model.set_adapter(["default", "other"])
        before = {name: t.clone() for name, t in changed.state_dict().items()}
        found = merged(changed)(x)
        assert all(torch.equal(t, before[name]) for name, t in changed.state_dict().items())
        torch.testing.assert_close(found, changed(x))


def test_adapters_without_a_peft_model() -> None:
    model = drawn(peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=LINEAR), backbone()).double())
    found, wanted = merged(model), model(x)
    assert not any("lora" in name for name, _ in found.named_modules())
    torch.testing.assert_close(found(x), wanted)
    assert found.get_parameter("norm.weight") is model.get_parameter("norm.weight")
    torch.testing.assert_close(explain(model, x, "lrp", TARGETS), explain(found, x, "lrp", TARGETS))


def test_half_precision_keeps_small_adapters() -> None:
    """bfloat16 would round away most of an adapter that is small next to the weight."""
    model = adapted("lora").to(torch.bfloat16)
    weight = merged(model).get_parameter("blocks.0.attn.qkv.weight")
    layer = model.get_submodule("base_model.model.blocks.0.attn.qkv")
    assert weight.dtype == torch.float32
    wanted = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    torch.testing.assert_close(weight.data, wanted, rtol=1e-6, atol=1e-7)
    assert explain(model, x.float(), "rollout").dtype == torch.float32


def test_hugging_face_with_lora() -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = transformers.Dinov2Config(**shape, image_size=32, patch_size=8, num_labels=5)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    model: Any = transformers.Dinov2ForImageClassification(config).double()
    model = drawn(peft.get_peft_model(model, lora, autocast_adapter_dtype=False))
    wanted = copy.deepcopy(model).merge_and_unload()
    for method in ("rollout", "agcam", "lrp"):
        maps = explain(nn.DataParallel(model), x, method, TARGETS)
        torch.testing.assert_close(maps, explain(wanted, x, method, TARGETS))


def test_what_cannot_be_merged_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("lora")

    def fail(*_: Any, **__: Any) -> None:
        raise NotImplementedError("this kind\ncannot be merged")

    monkeypatch.setattr(type(model.get_submodule("base_model.model.blocks.0.attn.qkv")), "merge", fail)
    with pytest.raises(UserError, match=r"cannot merge the adapter of a Linear \(this kind cannot be merged\)"):
        explain(model, x, "rollout")
