"""Models inside wrappers: the map of the model inside, or one line."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from common.errors import UserError
from explain import METHODS, explain
from tests.explain.small import CASES, CLASSES, eva, vit
from tests.models.small import eva_t_dinov3

ATTENTION = ("raw_attention", "rollout", "attention_flow", "grad_rollout", "agcam", "lrp")
x = CASES["class_token"].images().double()
TARGETS = torch.tensor([4, 0, 2])
WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "ModelEmaV2": ModelEmaV2,
    "ModelEmaV3": ModelEmaV3,
    "AveragedModel": AveragedModel,
    "compiled": lambda model: torch.compile(model, backend="eager"),  # type: ignore[return-value]
    "compiled EMA": lambda model: torch.compile(ModelEmaV3(nn.DataParallel(model)), backend="eager"),  # type: ignore[return-value]
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", ["class_token", "stage_2"])
def test_wrapped_models_have_the_map_of_the_model_inside(wrapper: str, name: str) -> None:
    case = CASES[name]
    model, images = case.model(), case.images()
    wrapped = WRAPPERS[wrapper](model)
    for method in ("rollout", "agcam", "gradcam", "input_x_gradient"):
        torch.testing.assert_close(explain(wrapped, images, method, TARGETS), explain(model, images, method, TARGETS))


def test_distributed_data_parallel(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = vit().double().eval()
        wrapped = nn.parallel.DistributedDataParallel(model)
        torch.testing.assert_close(explain(wrapped, x, "agcam", TARGETS), explain(model, x, "agcam", TARGETS))
    finally:
        torch.distributed.destroy_process_group()


class Net(nn.Module):
    """A user's own: a timm backbone without classifier, and a head."""

    def __init__(self, backbone: nn.Module, read: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.backbone, self.read = backbone, read
        self.head = nn.Linear(32, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.read(self.backbone, images))
        return out


def itself(backbone: Any, images: Tensor) -> Tensor:
    out: Tensor = backbone(images)
    return out


@pytest.mark.parametrize("method", [*ATTENTION, "gradcam", "input_x_gradient"])
@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_a_backbone_and_a_head_are_a_classifier(method: str, pooling: str) -> None:
    torch.manual_seed(0)
    wanted = vit(global_pool=pooling).double().eval()
    net = Net(vit(global_pool=pooling, num_classes=0), itself).double().eval()
    net.backbone.load_state_dict({key: t for key, t in wanted.state_dict().items() if not key.startswith("head.")})
    net.head.load_state_dict(wanted.head.state_dict())
    found = explain(nn.DataParallel(net), x, method, TARGETS)
    torch.testing.assert_close(found, explain(wanted, x, method, TARGETS), rtol=1e-7, atol=1e-12)


def test_dinov3_below_a_head_is_read_as_it_pools() -> None:
    """Not by its class token, as without a head."""
    torch.manual_seed(0)
    net = Net(eva(eva_t_dinov3, num_classes=0, global_pool="avg"), itself).double().eval()
    alone = explain(net.backbone, x, "raw_attention")
    pooled = explain(net, x, "raw_attention")
    assert not torch.allclose(alone, pooled)
    classifier = eva(eva_t_dinov3, global_pool="avg").double().eval()
    classifier.load_state_dict(net.backbone.state_dict(), strict=False)
    torch.testing.assert_close(pooled, explain(classifier, x, "raw_attention"))


READS: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "features": (lambda backbone, images: backbone.forward_features(images)[:, 1:].mean(1), "calls its .* 0 times"),
    "two sizes": (lambda backbone, images: backbone(images) + backbone(images.flip(-1)), "calls its .* 2 times"),
    "tokens": (lambda backbone, images: backbone(images)[:, 1:].mean(1), "does not pool its tokens"),
    "resized": (lambda backbone, images: backbone(F.interpolate(images, (32, 32))), "changes the image size"),
}


@pytest.mark.parametrize("name", READS)
def test_unknown_tokens_are_refused_by_methods_with_attention(name: str) -> None:
    torch.manual_seed(0)
    read, why = READS[name]
    pooling = {"global_pool": ""} if name == "tokens" else {}
    net = Net(vit(num_classes=0, **pooling), read).double().eval()
    images = torch.nn.functional.interpolate(x, (64, 64)) if name == "resized" else x
    for method in ATTENTION:
        with pytest.raises(UserError, match=rf"^which tokens a Net reads is not known, because its? .*{why}"):
            explain(net, images, method, TARGETS)
    assert explain(net, images, "input_x_gradient", TARGETS).abs().max() > 0


def test_several_backbones_have_no_attention_of_the_model() -> None:
    net = Net(
        nn.ModuleList([vit(num_classes=0), vit(num_classes=0)]), lambda both, images: both[0](images) + both[1](images)
    )
    for method in ATTENTION:
        with pytest.raises(UserError, match="a Net is not a ViT"):
            explain(net.double().eval(), x, method, TARGETS)
    assert {"gradient", "integrated_gradients"} <= set(METHODS)
    assert explain(net, x, "gradient", TARGETS).shape == (3, 32, 32)
