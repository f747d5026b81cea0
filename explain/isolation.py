"""What an explanation needs of a model while it runs: no other explanation of it, no compiled code, all derivatives."""

import contextlib
import functools
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError

STOCK = ("torch.nn.modules.", "timm.", "torchvision.", "models.")
"""Packages whose layers have derivatives. torch.ao, which quantizes, is not among them."""

_alone_changed = threading.Condition()
_alone_parts: list[tuple[int, set[int]]] = []
"""For every explanation that runs: its thread, and the ids of the modules, weights and buffers that it needs alone."""


@contextlib.contextmanager
def alone(module: nn.Module) -> Iterator[None]:
    """Wait until no other thread is inside this context with a part of the module, or with a weight that it shares."""
    parts = list(module.modules())
    needed = {id(x) for part in parts for x in (part, *part._parameters.values(), *part._buffers.values())}
    held = (threading.get_ident(), needed - {id(None)})

    def is_free() -> bool:
        return all(thread == held[0] or parts.isdisjoint(held[1]) for thread, parts in _alone_parts)

    with _alone_changed:
        _alone_changed.wait_for(is_free)
        _alone_parts.append(held)
    try:
        yield
    finally:
        with _alone_changed:
            _alone_parts.remove(held)
            _alone_changed.notify_all()


_eager_changed = threading.Lock()
_eager_uses = contextlib.ExitStack()
_eager_count = 0


@contextlib.contextmanager
def without_compilation() -> Iterator[None]:
    """Inside, everything that was made by `torch.compile` runs eagerly, in all threads."""
    global _eager_count
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        yield
        return
    with _eager_changed:
        _eager_count += 1
        if _eager_count == 1:
            _eager_uses.enter_context(torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _eager_changed:
            _eager_count -= 1
            if _eager_count == 0:
                _eager_uses.close()


@contextlib.contextmanager
def derivatives_checked(module: nn.Module) -> Iterator[None]:
    """Inside, a part whose output loses the graph of its input while gradients are on raises a UserError naming it.

    Parts that are as torch and timm define them are not watched, which saves time: they have derivatives.
    """

    def check(name: str, part: nn.Module, args: Any, out: Any) -> None:
        if not torch.is_grad_enabled() or not isinstance(out, Tensor) or not _lost_graph(out):
            return
        if out.is_floating_point() and any(isinstance(x, Tensor) and x.requires_grad for x in args):
            what = f"{name or 'the model'} ({type(part).__name__}): its output has no derivative"
            raise UserError(f"{what}; choose rollout, raw_attention or attention_flow, which need none")

    with contextlib.ExitStack() as stack:
        for name, part in module.named_modules():
            if not is_stock(part):
                stack.enter_context(part.register_forward_hook(functools.partial(check, name)))
        yield


def is_stock(part: nn.Module) -> bool:
    """Whether the module and its weights are as torch, timm or this project make them, without hooks."""
    own = vars(part)
    changed = "forward" in own or own["_forward_hooks"] or own["_forward_pre_hooks"]
    if changed or not type(part).__module__.startswith(STOCK):
        return False
    return all(weight is None or type(weight) is nn.Parameter for weight in own["_parameters"].values())


def is_stock_throughout(module: nn.Module) -> bool:
    """Whether all parts of the module are stock."""
    return is_stock(module) and all(part is None or is_stock_throughout(part) for part in module._modules.values())


def gradients(score: Tensor, of: Sequence[Tensor], names: Sequence[str], **options: Any) -> Sequence[Tensor]:
    """d score / d x of every tensor x in `of`; `options` are those of `torch.autograd.grad`.

    Raises UserError with the name of the first tensor that the score does not depend on, as far as autograd knows.
    """
    connected = [x for x in of if x.requires_grad]
    found = iter(torch.autograd.grad(score, connected, allow_unused=True, **options) if connected else ())
    by_name = [(name, next(found) if x.requires_grad else None) for x, name in zip(of, names, strict=True)]
    for name, gradient in by_name:
        if gradient is None:
            raise UserError(f"no gradient of the class score reaches {name}; choose a method without gradients")
    return [gradient for _, gradient in by_name if gradient is not None]


def _lost_graph(out: Tensor) -> bool:
    """Whether no gradient passes the operation that made `out`, or one it follows directly, such as before a cast."""
    node = out.grad_fn
    for _ in range(4):
        if node is None or "NotImplemented" in node.name():  # autograd's stand-in for a kernel without a derivative
            break
        if len(node.next_functions) != 1:
            return False
        node = node.next_functions[0][0]
    else:
        return False
    return node is not None or not out.requires_grad


def usable(t: Tensor) -> Tensor:
    """The tensor without its graph. An inference tensor is copied, because autograd cannot save it for backward."""
    return t.detach().clone() if t.is_inference() else t.detach()


@contextlib.contextmanager
def at_least(dtype: torch.dtype, module: nn.Module) -> Iterator[None]:
    """The state in which the module computes in `dtype` or more: inside, less precise weights and buffers are copies.

    The original tensors are put back, also after an exception.
    """
    bits = torch.finfo(dtype).bits
    tensors = (t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
    originals = [(t, t.data) for t in tensors if torch.finfo(t.dtype).bits < bits]
    try:
        for tensor, original in originals:
            tensor.data = original.to(dtype)
        yield
    finally:
        for tensor, original in originals:
            tensor.data = original
