"""Properties that every explanation method has on every kind of model."""

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from common.errors import UserError
from explain import METHODS, explain
from tests.explain.small import CASES, ROTARY, STAGES, Case
from tests.explain.textbook import sdpa_modules

TARGETS = torch.tensor([4, 0, 2])
FEW = ("dinov3_avg", "eva", "eva02", "pe", "rope_mixed", "rope_gap", "eva_post", "beit_shared")
FEW += ("rel_pos", "rel_pos_shared", "naflex", "naflex_map", "naflex_rope")
FEW += ("stage_1_dinov3", "stage_2_dinov3", "stage_2_mean", "stage_2_soft_mean")
"""Variants that the tests of the single methods cover."""
NAMES = tuple(name for name in CASES if name not in FEW)
TWO_STAGE = ("stage_1", "stage_2")
REFUSED = {("inherent", name): "needs a two-stage model" for name in NAMES if name not in STAGES}
REFUSED |= {("lrp", name): "lrp has no rule" for name in NAMES if name in ROTARY}
"""Pairs of method and model that end in a UserError which says this."""
QUICK = ("class_token", "dino", "gap", *TWO_STAGE)
"""Models tested by a plain pytest; the others are marked slow."""


def pairs(names: Iterable[str]) -> list[Any]:
    """Every method on every model that it explains."""
    return [
        pytest.param(method, name, marks=() if name in QUICK else pytest.mark.slow, id=f"{method}-{name}")
        for method in METHODS
        for name in names
        if (method, name) not in REFUSED
    ]


every_pair = pytest.mark.parametrize(("method", "name"), pairs(NAMES))
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
FLAGS = ("training", "fused_attn", "grad_checkpointing", "path")


def maps(model: nn.Module, case: Case, method: str, x: Tensor, targets: Tensor | None = TARGETS) -> Tensor:
    return explain(model, x, method, targets, stage=case.stage)


def assert_same(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    assert found.isfinite().all()
    limit = tolerance * float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, rtol=0, atol=limit, check_dtype=False)


@pytest.mark.parametrize(("method", "name"), REFUSED)
def test_refusals_are_one_line(method: str, name: str) -> None:
    case = CASES[name]
    with pytest.raises(UserError, match=REFUSED[method, name]) as error:
        maps(case.model(), case, method, case.images())
    assert "\n" not in str(error.value)


@every_pair
def test_a_batch_is_its_images_alone(method: str, name: str) -> None:
    case = CASES[name]
    model, x = case.model(), case.images()
    whole = maps(model, case, method, x)
    size = case.size if METHODS[method]().resolution == "pixel" else (case.size[0] // 8, case.size[1] // 8)
    assert whole.shape == (3, *size) and whole.dtype == torch.float32 and not whole.requires_grad
    assert float(whole.abs().max()) > 0
    for i in range(3):
        assert_same(maps(model, case, method, x[[i]], TARGETS[[i]])[0], whole[i])


@every_pair
def test_the_target_is_the_predicted_class_by_default(method: str, name: str) -> None:
    case = CASES[name]
    model, x = case.model(), case.images()
    out: Any = model(x)
    logits = out if isinstance(out, Tensor) else out.stage_1.class_logits if name == "stage_1" else out.logits
    predicted = logits.argmax(1)
    default = maps(model, case, method, x, None)
    assert_same(default, maps(model, case, method, x, predicted))
    others = maps(model, case, method, x, (predicted + 1) % 5)
    assert torch.allclose(default, others) is not METHODS[method].class_specific


class Trace:
    """The state of a model and of the global random generators that an explanation must not change."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = self.now()

    def now(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, part in self.model.named_modules():
            found |= {f"{name}.{kind}": len(getattr(part, kind)) for kind in HOOKS}
            found |= {f"{name}.{flag}": getattr(part, flag, None) for flag in FLAGS}
        for name, p in self.model.named_parameters():
            found |= {f"{name}.grad": _bytes(p.grad), f"{name}.requires_grad": p.requires_grad}
        found |= {name: _bytes(t) for name, t in self.model.state_dict().items()}
        return found | {"torch": _bytes(torch.get_rng_state()), "python": random.getstate(), **_numpy_state()}

    def changes(self) -> list[str]:
        now = self.now()
        return [name for name in self.before.keys() | now.keys() if self.before.get(name) != now.get(name)]


def _bytes(t: Tensor | None) -> bytes | None:
    return None if t is None else t.detach().numpy().tobytes()


def _numpy_state() -> dict[str, Any]:
    state: Any = np.random.get_state()
    return {"numpy": (state[1].tobytes(), *state[2:])}


def unusual(model: nn.Module) -> nn.Module:
    """Every flag in an unusual state, so that restoring to a default would be noticed."""
    for index, part in enumerate(model.modules()):
        part.training = index % 3 != 0
    for index, part in enumerate(sdpa_modules(model)):
        part.fused_attn = index % 2 == 0  # type: ignore[assignment]
    for index, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, 0.5) if index % 4 == 0 else None
        p.requires_grad_(index % 2 == 0)
    return model


@every_pair
def test_nothing_is_left_behind(method: str, name: str) -> None:
    case = CASES[name]
    model, x = unusual(case.model()), case.images()
    trace, pixels = Trace(model), x.clone()
    maps(model, case, method, x)
    assert trace.changes() == []
    assert torch.equal(x, pixels) and not x.requires_grad
    assert torch.is_grad_enabled()


@every_pair
def test_nothing_is_left_behind_when_the_model_raises(method: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    model, x = unusual(case.model()), case.images()
    trace = Trace(model)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("in the middle")

    vit: Any = case.explained(model, x).vit
    if method == "inherent":
        vit = model.get_submodule("stage_1.backbone")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="in the middle"):
        patch.setattr(vit.blocks[-1], "forward", fail)
        maps(model, case, method, x)
    assert trace.changes() == []
    assert torch.is_grad_enabled()


@every_pair
def test_the_callers_context_and_frozen_weights_change_nothing(method: str, name: str) -> None:
    case = CASES[name]
    model, x = case.model(), case.images()
    wanted = maps(model, case, method, x)
    with torch.no_grad():
        assert_same(maps(model, case, method, x), wanted, 1e-6)
    with torch.inference_mode():
        assert_same(maps(model, case, method, x.clone(), TARGETS.clone()), wanted, 1e-6)
    model.train().requires_grad_(False)
    assert_same(maps(model, case, method, x.clone().requires_grad_()), wanted, 1e-6)


@pytest.mark.parametrize(("method", "name"), pairs(NAMES))
def test_double_precision(method: str, name: str) -> None:
    case = CASES[name]
    model, x = case.model(), case.images()
    single = maps(model, case, method, x)
    double = maps(model.double(), case, method, x.double())
    assert double.dtype == torch.float64
    assert_same(single, double, 2e-3)


class Counter(TorchFunctionMode):
    """Counts fused attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.fused += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


@every_pair
def test_attention_is_fused_whatever_the_model_says(method: str, name: str) -> None:
    case = CASES[name]
    model, x = case.model(), case.images()
    wanted = maps(model, case, method, x)
    for part in sdpa_modules(model):
        part.fused_attn = False  # type: ignore[assignment]
    if name.startswith("stage_2"):  # its selection is made before the explanation; only what is explained is switched
        for part in sdpa_modules(model.get_submodule("stage_1")):
            part.fused_attn = True  # type: ignore[assignment]
    with Counter() as counter:
        assert_same(maps(model, case, method, x), wanted)
    assert counter.fused >= 3
