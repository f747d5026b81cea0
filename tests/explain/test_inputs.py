"""What `explain` takes as images, targets and models, and the one line for everything else."""

from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from explain import METHODS, Explainer, build_method, explain
from explain.inputs import class_index, imagenet_names
from models.nano import MlpPatchEmbed  # noqa: F401  (registers vit_nano_patch8)
from tests.explain.small import CASES, CLASSES, vit
from tests.models.small import images, shaken


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return shaken(vit()).eval()


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return images(2, (32, 32), seed=1)


@pytest.mark.parametrize(
    "targets",
    [3, np.int64(3), np.array(3), torch.tensor(3), [3, 3], (3, 3), np.array([3, 3]), torch.tensor([3, 3]),
     torch.tensor([3, 3], dtype=torch.int32), np.array([3, 3], dtype=np.uint8)],
)  # fmt: skip
def test_every_way_to_give_a_class(model: nn.Module, photos: Tensor, targets: Any) -> None:
    expected = explain(model, photos, "gradcam", torch.full((2,), 3))
    assert torch.equal(explain(model, photos, "gradcam", targets), expected)
    assert not torch.equal(explain(model, photos, "gradcam", 1), expected)


def test_a_head_that_is_no_linear_layer(photos: Tensor) -> None:
    model = vit().eval()
    plain = explain(model, photos, "gradcam", 3)
    model.head = nn.Sequential(model.head, nn.Identity())
    assert torch.equal(explain(model, photos, "gradcam", 3), plain)
    with pytest.raises(UserError, match=f"targets: {CLASSES}; the model has classes 0 to {CLASSES - 1}"):
        explain(model, photos, "gradcam", CLASSES)


@pytest.fixture(scope="module")
def imagenet_model() -> nn.Module:
    torch.manual_seed(0)
    return shaken(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=1000)).eval()


def test_an_imagenet_class_by_name(imagenet_model: nn.Module) -> None:
    x = images(2, (32, 32), seed=1)
    by_number = explain(imagenet_model, x, "gradcam", [207, 281])
    assert torch.equal(explain(imagenet_model, x, "gradcam", ["golden retriever", "Tabby Cat"]), by_number)
    assert torch.equal(explain(imagenet_model, x, "gradcam", "golden retriever")[0], by_number[0])
    with pytest.raises(UserError, match=r"^targets: no class is named 'goldn retriever'; nearest: 'golden retriever'"):
        explain(imagenet_model, x, "gradcam", "goldn retriever")


def test_a_name_of_two_classes_asks_for_the_number() -> None:
    names = ["crane", "tabby, tabby cat", "crane", "7"]
    assert class_index("tabby cat", names) == class_index("1", names) == 1
    assert class_index("7", names) == 3
    with pytest.raises(UserError, match=r"0 \(crane\), 2 \(crane\); give the number"):
        class_index("crane", names)


def test_names_are_given_to_imagenet_models_only(model: nn.Module, imagenet_model: nn.Module) -> None:
    assert imagenet_names(model) is None
    names = imagenet_names(imagenet_model)
    assert names is not None and len(names) == 1000 and names[207] == "golden retriever"


IMAGES = torch.zeros(2, 3, 32, 32)
MISTAKES: dict[str, tuple[Any, Any, str]] = {
    "no batch": (IMAGES[0], None, "has no batch dimension"),
    "one channel": (IMAGES[:, :1], None, r"\(2, 1, 32, 32\); give \[B, 3, H, W\]"),
    "wrong size": (torch.zeros(2, 3, 48, 48), None, "48 x 48 pixels; this model takes 32 x 32"),
    "empty": (IMAGES[:0], None, "the batch is empty"),
    "uint8": (IMAGES.byte(), None, "torch.uint8; give floats"),
    "an array": (IMAGES.numpy(), None, "a ndarray; give a tensor"),
    "too high": (IMAGES, CLASSES, f"targets: {CLASSES}; the model has classes 0 to {CLASSES - 1}"),
    "negative": (IMAGES, [0, -1], "targets: -1; the model has classes 0 to"),
    "float": (IMAGES, 1.0, "float64; give class indices"),
    "float tensor": (IMAGES, torch.ones(2), "float32; give class indices"),
    "bool": (IMAGES, True, "bool; give class indices"),
    "too many": (IMAGES, [0, 1, 2], r"shape \(3,\) for 2 images"),
    "matrix": (IMAGES, torch.ones(2, 2).long(), r"shape \(2, 2\) for 2 images"),
    "no class at all": (IMAGES, [], "targets: "),
    "ragged": (IMAGES, [[0], [1, 2]], "cannot use a list"),
    "a dict": (IMAGES, {"a": 1}, "cannot use a dict"),
    "name without names": (IMAGES, "cat", "names of this model's classes are not known"),
}


@pytest.mark.parametrize(("x", "targets", "line"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(model: nn.Module, x: Any, targets: Any, line: str) -> None:
    for method in ("gradcam", "rollout"):
        with pytest.raises(UserError, match=line) as raised:
            explain(model, x, method, targets)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["dynamic", "stage_2", "plain_cls"])
def test_a_wrong_size_is_one_line_for_every_kind_of_model(name: str) -> None:
    case = CASES[name]
    with pytest.raises(UserError, match="^images: 36 x 36 pixels"):
        explain(case.model(), torch.zeros(1, 3, 36, 36), "rollout", stage=case.stage)


class Answers(VisionTransformer):
    """A ViT whose forward returns what `kind` says."""

    kind = "dict"

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return {"logits": logits} if self.kind == "dict" else (logits, None)


@pytest.mark.parametrize("kind", ["dict", "tuple"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "inherent"])
def test_a_forward_without_logits_is_one_line(kind: str, method: str, photos: Tensor) -> None:
    model = vit(Answers).eval()
    model.kind = kind
    with pytest.raises(UserError, match=f"forward returns a {kind}"):
        explain(model, photos, method)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["gradcam", "rollout", "lrp", "integrated_gradients"])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, method: str, photos: Tensor) -> None:
    torch.manual_seed(0)
    model = shaken(vit()).eval().to(dtype)
    before = [p.data_ptr() for p in model.parameters()]
    maps = explain(model, photos.to(dtype), method, 2)
    assert maps.dtype == torch.float32 and maps.isfinite().all()
    assert [p.data_ptr() for p in model.parameters()] == before and {p.dtype for p in model.parameters()} == {dtype}
    assert torch.equal(maps, explain(model.float(), photos.to(dtype).float(), method, 2))


@pytest.mark.parametrize("option", ["class_specific", "keeps_graph", "resolution", "maps"])
def test_what_is_no_field_is_no_option(option: str, model: nn.Module, photos: Tensor) -> None:
    for name in METHODS:
        assert option not in METHODS[name].options()
        with pytest.raises(UserError, match=f"{name} has no option {option}"):
            build_method(name, **{option: True})
    with pytest.raises(UserError, match="rollout has no option"):
        explain(model, photos, "rollout", class_specific=True)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("rollout", "discard_ratio", "much"), ("gradcam", "layer", 1.5), ("gradcam", "relu", "false"),
     ("rollout", "head_fusion", 3), ("rollout", "start_layer", True)],
)  # fmt: skip
def test_an_option_of_another_type_is_one_line(name: str, option: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')}: "):
        build_method(name, **{option: value})


def test_options_of_any_type() -> None:
    @dataclass(frozen=True)
    class Mine(Explainer):
        layers: list[int] = field(default_factory=list)
        name: Any = None
        ratio: Optional[float] = None  # noqa: UP045

        def maps(self, explained: Any, images: Tensor, targets: Any) -> Tensor:
            raise NotImplementedError

    assert Mine([1], "x", 1).layers == [1] and Mine().ratio is None
    for wrong in ({"layers": 1}, {"ratio": "1"}):
        with pytest.raises(UserError, match=f"^--{next(iter(wrong))}: "):
            Mine(**wrong)


def test_a_method_that_is_neither_name_nor_explainer(model: nn.Module, photos: Tensor) -> None:
    with pytest.raises(UserError, match="^method: a NoneType"):
        explain(model, photos, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="^stage: 3"):
        explain(model, photos, "rollout", stage=3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot explain a str"):
        explain("vit", photos)  # type: ignore[arg-type]


def test_a_compiled_model_is_checked_as_its_eager_module() -> None:
    case = CASES["class_token"]
    compiled = torch.compile(case.model(), backend="eager")
    with pytest.raises(UserError, match="targets"):
        explain(compiled, case.images(), "gradcam", targets=10_000)
    with pytest.raises(UserError, match="images"):
        explain(compiled, case.images()[:, :1], "gradcam")
