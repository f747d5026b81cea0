"""Vision models of Hugging Face: the maps equal explicit softmax attention in float64, computed one image at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from explain import METHODS, explain
from tests.explain.small import vit
from tests.explain.test_every_method import Trace
from tests.explain.textbook import fuse, product
from tests.models.small import shaken

transformers: Any = pytest.importorskip("transformers")

CLASSES = 5
SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
SIZES: dict[str, Any] = {**SHAPE, "image_size": 32, "patch_size": 8}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViTForImageClassification": ("ViTConfig", SIZES),
    "ViTModel": ("ViTConfig", SIZES),
    "Dinov2ForImageClassification": ("Dinov2Config", SIZES | {"layerscale_value": 0.5}),
    "Dinov2Model": ("Dinov2Config", SIZES | {"use_swiglu_ffn": True}),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", SIZES | {"num_register_tokens": 3}),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", SIZES),
    "DINOv3ViTModel": ("DINOv3ViTConfig", SIZES | {"num_register_tokens": 2, "use_gated_mlp": True}),
    "SiglipForImageClassification": ("SiglipConfig", {"vision_config": SIZES}),
    "SiglipVisionModel": ("SiglipVisionConfig", SIZES),
    "CLIPForImageClassification": ("CLIPConfig", {"vision_config": SIZES}),
    "CLIPVisionModel": ("CLIPVisionConfig", SIZES),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", SIZES | {"projection_dim": 12}),
}
CLASSIFIERS = [name for name in CONFIGS if name.endswith("ForImageClassification")]
ROWS = {  # the tokens that are read, and the number of prefix tokens
    "ViT": (slice(0, 1), 1), "Dinov2": (slice(0, 1), 1), "DINOv3": (slice(0, 1), 3), "CLIP": (slice(0, 1), 1),
    "Dinov2WithRegistersForImage": (slice(0, None), 4), "Dinov2WithRegistersModel": (slice(0, 1), 5),
    "Dinov2ForImage": (slice(0, None), 1), "Siglip": (slice(0, None), 0), "CLIPForImage": (slice(1, None), 1),
}  # fmt: skip
x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.tensor([4, 1])


def make(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config, settings = CONFIGS[name]
    labels = {"num_labels": CLASSES} if name in CLASSIFIERS else {}
    model = getattr(transformers, name)(getattr(transformers, config)(**settings | labels | changes))
    return shaken(model).double().eval()


class Explicit:
    """softmax(scale q kᵀ) v as transformers' attention function "textbook", with S and A of every call."""

    def __init__(self) -> None:
        self.S: list[Tensor] = []
        self.A: list[Tensor] = []
        self.detach = False

    def __call__(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **_: Any) -> Any:
        assert mask is None
        if self.detach:  # AGCAM's graph: no gradient passes through an attention
            q, k, v = q.detach(), k.detach(), v.detach()
        S = torch.einsum("bhnd,bhmd->bhnm", q, k) * scaling
        A = S.exp() / S.exp().sum(-1, keepdim=True)
        A = A if A.requires_grad else A.requires_grad_()
        self.S.append(S.detach()[0])
        self.A.append(A)
        return torch.einsum("bhnm,bhmd->bhnd", A, v).transpose(1, 2), A


@pytest.fixture
def explicit(monkeypatch: pytest.MonkeyPatch) -> Explicit:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention = Explicit()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "textbook", attention)
    return attention


def features(name: str, out: Any) -> Tensor:
    if name in CLASSIFIERS:
        found = out.logits
    elif name == "CLIPVisionModelWithProjection":
        found = out.image_embeds
    else:
        found = out.pooler_output if name in ("CLIPVisionModel", "SiglipVisionModel") else out.last_hidden_state[:, 0]
    assert isinstance(found, Tensor)
    return found


def textbook(explicit: Explicit, name: str, model: Any, images: Tensor, **changes: Any) -> dict[str, Tensor]:
    """The maps of every attention method, [B, h, w] each."""
    rows, prefix = ROWS[max((key for key in ROWS if name.startswith(key)), key=len)]
    again = make(name, attn_implementation="textbook", **changes)
    again.load_state_dict(model.state_dict())
    maps: dict[str, list[Tensor]] = {}
    for image, target in zip(images, TARGETS, strict=True):

        def run(detach: bool, image: Tensor = image, target: Tensor = target) -> tuple[list[Tensor], list[Tensor]]:
            explicit.S, explicit.A, explicit.detach = [], [], detach
            y = features(name, again(pixel_values=image[None]))[0, target]
            gradients = torch.autograd.grad(y, explicit.A, allow_unused=True)
            blocks = [torch.zeros_like(A) if g is None else g for g, A in zip(gradients, explicit.A, strict=True)]
            return [A.detach()[0] for A in explicit.A], [g[0] for g in blocks]

        A, G = run(detach=False)
        S = explicit.S
        assert len(A) == 3
        weighted = [(a * g).mean(0).clamp(min=0) for a, g in zip(A, G, strict=True)]
        identity = torch.eye(len(A[0][0])).double()
        found = {
            "raw_attention": A[-1].mean(0),
            "rollout": product([fuse(a, "mean") for a in A], "row"),
            "grad_rollout": product(weighted, "row") - identity,
        }
        _, G_alone = run(detach=True)
        gated = [(g.clamp(min=0) * s.sigmoid()).sum(0) for g, s in zip(G_alone, S, strict=True)]
        found["agcam"] = torch.stack(gated).sum(0)
        for method, matrix in found.items():
            patches = matrix[rows].mean(0)[prefix:]
            side = images.shape[-2] // 8, images.shape[-1] // 8
            maps.setdefault(method, []).append(patches.view(*side))
    return {method: torch.stack(each) for method, each in maps.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_maps_equal_explicit_attention(name: str, explicit: Explicit) -> None:
    wanted = textbook(explicit, name, make(name), x)
    # eager attention of ViT, CLIP and SigLIP computes its softmax in float32, whatever the weights
    for implementation, rounding in {"sdpa": 1e-10, "eager": 1e-5}.items():
        model = make(name, attn_implementation=implementation)
        for method, maps in wanted.items():
            found = explain(model, x, method, TARGETS)
            assert found.dtype == torch.float64
            torch.testing.assert_close(found, maps, rtol=0, atol=rounding * float(maps.abs().max()))


@pytest.mark.parametrize("name", ["Dinov2ForImageClassification", "Dinov2WithRegistersModel", "DINOv3ViTModel"])
def test_dinos_take_other_sizes(name: str, explicit: Explicit) -> None:
    images, model = torch.cat([x, x.flip(2)], dim=2)[..., :24], make(name)
    for method, maps in textbook(explicit, name, model, images).items():
        assert maps.shape == (2, 8, 3)
        torch.testing.assert_close(explain(model, images, method, TARGETS), maps)
    with pytest.raises(UserError, match="32 x 30 pixels are no multiple of the patch size"):
        explain(model, x[..., :30], "rollout")


def as_timm(model: Any) -> nn.Module:
    """timm's ViT with the weights of Hugging Face's."""
    state = model.state_dict()
    renamed = {
        "cls_token": state["vit.embeddings.cls_token"], "pos_embed": state["vit.embeddings.position_embeddings"],
    }  # fmt: skip
    whole = {"patch_embed.proj": "vit.embeddings.patch_embeddings.projection", "norm": "vit.layernorm"}
    for to, of in {**whole, "head": "classifier"}.items():
        renamed |= {f"{to}.{kind}": state[f"{of}.{kind}"] for kind in ("weight", "bias")}
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
    names |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for i in range(3):
        for kind in ("weight", "bias"):
            parts = [state[f"vit.layers.{i}.attention.{p}_proj.{kind}"] for p in "qkv"]
            renamed[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
            renamed |= {f"blocks.{i}.{to}.{kind}": state[f"vit.layers.{i}.{of}.{kind}"] for to, of in names.items()}
    wanted = vit().double().eval()
    wanted.load_state_dict(renamed)
    return wanted


@pytest.mark.parametrize("method", [name for name in METHODS if name != "inherent"])
def test_a_vit_has_the_maps_of_timms(method: str) -> None:
    model = make("ViTForImageClassification", layer_norm_eps=1e-6)
    options = [{}, {"variant": "full"}] if method == "lrp" else [{}]
    for each in options:
        wanted = explain(as_timm(model), x, method, TARGETS, **each)
        limit = 1e-9 * float(wanted.abs().max())
        torch.testing.assert_close(explain(model, x, method, TARGETS, **each), wanted, rtol=0, atol=limit)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_methods_with_gradients_and_what_is_refused(name: str) -> None:
    model = make(name)
    trace = Trace(model)
    refused = {
        "SiglipForImageClassification": {"lrp": "multi_head_attention_forward"},
        "CLIPForImageClassification": {"guided_backprop": "no rule for QuickGELUActivation"},
    }
    for method in ("lrp", "gradcam", "gradient", "guided_backprop", "input_x_gradient"):
        if why := refused.get(name, {}).get(method):
            with pytest.raises(UserError, match=why):
                explain(model, x, method, TARGETS)
            continue
        maps = explain(model, x, method, TARGETS)
        torch.testing.assert_close(explain(model, x[1:], method, 1)[0], maps[1])
        assert maps.abs().max() > 0
    assert trace.changes() == []


def test_gradcam_reads_the_norm_before_attention() -> None:
    model = make("CLIPForImageClassification")
    block = model.vision_model.encoder.layers[-1]
    kept: list[Tensor] = []
    with block.layer_norm1.register_forward_hook(lambda _, __, out: kept.append(out)):
        y = model(pixel_values=x).logits.gather(1, TARGETS[:, None]).sum()
    (g,) = torch.autograd.grad(y, kept)
    a, weight = kept[0][:, 1:], g[:, 1:].mean(1, keepdim=True)
    torch.testing.assert_close(explain(model, x, "gradcam", TARGETS), (a * weight).sum(-1).relu().view(2, 4, 4))
    named = explain(model, x, "gradcam", TARGETS, module="vision_model.encoder.layers.2.layer_norm1")
    torch.testing.assert_close(named, explain(model, x, "gradcam", TARGETS))


def test_training_mode_changes_nothing() -> None:
    model = make("Dinov2ForImageClassification", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    wanted = explain(model, x, "agcam", TARGETS)
    trace = Trace(model.train())
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(explain(model, x, "agcam", TARGETS), wanted)
    assert trace.changes() == []


def test_classes_have_the_names_in_the_config() -> None:
    names = ["ant", "bee", "cat", "dog", "elk"]
    model = make("ViTForImageClassification", id2label=dict(enumerate(names)))
    assert torch.equal(explain(model, x, "agcam", "elk"), explain(model, x, "agcam", 4))
    with pytest.raises(UserError, match="names of this model's classes are not known"):
        explain(make("ViTForImageClassification"), x, "agcam", "elk")


class Own(transformers.ViTForImageClassification):  # type: ignore[misc]
    """A user's: it reads the mean of all tokens."""

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        tokens = self.vit(pixel_values).last_hidden_state
        return transformers.modeling_outputs.ImageClassifierOutput(logits=self.classifier(tokens.mean(1)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = make("Dinov2Model"), nn.Linear(32, CLASSES).double()

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(images).last_hidden_state.mean(1))
        return out


@pytest.mark.parametrize("kind", ["subclass", "replaced", "head", "swin"])
def test_unknown_heads_have_no_attention_but_gradients(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "swin":
        settings = {"image_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 1]}
        config = transformers.SwinConfig(**settings, num_heads=[1, 2], num_labels=CLASSES)
        model: Any = transformers.SwinForImageClassification(config).double()
    elif kind == "replaced":
        model = make("ViTForImageClassification")
        model.forward = Own.forward.__get__(model)
    else:
        model = Own(transformers.ViTConfig(**SIZES, num_labels=CLASSES)).double() if kind == "subclass" else Net()
    for method in ("raw_attention", "rollout", "attention_flow", "grad_rollout", "agcam", "lrp", "gradcam"):
        with pytest.raises(UserError, match="is not a ViT whose attention|finds no feature map after") as error:
            explain(model.eval(), x, method, TARGETS)
        assert "\n" not in str(error.value)
    image = x.clone().requires_grad_()
    out = model(image)
    (wanted,) = torch.autograd.grad(getattr(out, "logits", out).gather(1, TARGETS[:, None]).sum(), image)
    torch.testing.assert_close(explain(model, x, "gradient", TARGETS), wanted.abs().sum(1))


def test_a_convolutional_classifier_has_gradcam() -> None:
    torch.manual_seed(0)
    settings = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**settings, num_labels=CLASSES))
    model = model.double().eval()
    kept: list[Tensor] = []
    with model.resnet.encoder.register_forward_hook(lambda _, __, out: kept.append(out.last_hidden_state)):
        y = model(pixel_values=x).logits.gather(1, TARGETS[:, None]).sum()
    (g,) = torch.autograd.grad(y, kept)
    wanted = (kept[0] * g.mean((2, 3), keepdim=True)).sum(1).relu()
    torch.testing.assert_close(explain(model, x, "gradcam", TARGETS), wanted)


def test_refusals_are_one_line() -> None:
    clip = transformers.CLIPModel(transformers.CLIPConfig(vision_config=SIZES, text_config=SHAPE))
    swin = transformers.SwinModel(transformers.SwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1]))
    cases: list[tuple[nn.Module, Tensor, str, str]] = [
        (clip, x, "rollout", "a CLIPModel: it does not read images alone; give its vision_model"),
        (swin, x.float(), "gradient", "a SwinModel returns no logits"),
        (make("ViTModel"), x[..., :24], "rollout", "32 x 24 pixels; this model takes 32 x 32"),
        (make("SiglipVisionModel"), x, "raw_attention", "attn_pool: its attention is neither"),
        (make("DINOv3ViTModel"), x, "agcam", "no classifier"),
    ]
    for model, images, method, why in cases:
        options = {"pooling": True} if method == "raw_attention" else {}
        with pytest.raises(UserError, match=why) as error:
            explain(model.eval(), images, method, **options)
        assert "\n" not in str(error.value)
