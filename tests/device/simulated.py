"""A GPU that is not there: tensors that say they are on `cuda:0` and compute on the CPU.

`with SimulatedGpu() as gpu:` runs code as on a GPU machine: `.to("cuda")`, `device="cuda"`, autograd and autocast work.
A tensor of the CPU that meets one of the GPU raises AssertionError, as it would there. `gpu.counts` counts what a GPU
machine waits for: syncs (`item`, `nonzero`, a mask as an index, ...), blocking copies to the GPU, copies to the host.

A tensor is on the GPU if its storage is registered. Only calls from Python are seen: not what a single torch function
does inside, nor gradients before Python touches them. Kernels, memory and speed are not simulated.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
GPU = torch.device("cuda:0")
CPU = torch.device("cpu")
CPU_GENERATOR = torch.Generator
SYNC, TO_GPU, TO_HOST = "syncs", "copies to the GPU", "copies to the host"
SYNCING = {
    "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "argwhere", "masked_select", "unique",
    "unique_consecutive", "bincount", "equal", "allclose", "is_nonzero", "__contains__", "multinomial",
}  # fmt: skip
"""Functions whose result the host must see before it goes on."""
INDEXING = {"__getitem__", "__setitem__"}
METADATA = {
    "size", "dim", "ndimension", "numel", "stride", "is_contiguous", "untyped_storage", "storage_offset", "__len__",
    "is_floating_point", "is_complex", "requires_grad_", "element_size", "type", "__hash__", "__repr__", "__format__",
    "_has_compatible_shallow_copy_type", "data_ptr", "register_hook", "is_pinned", "get_device",
}  # fmt: skip


class SimulatedGpu(TorchFunctionMode):
    """See the module. `counts` holds what was counted since the last `reset`; `log` one line for each."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, StorageWeakRef] = {}
        self.counts: Counter[str] = Counter()
        self.log: list[str] = []
        self.backward = 0

    def reset(self) -> None:
        """Forget what was counted."""
        self.counts.clear()
        self.log.clear()

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor is on the GPU."""
        storage = tensor.untyped_storage()
        known = self.storages.get(storage._cdata)
        return known is not None and not known.expired()

    def put(self, value: Any) -> Any:
        """Register all tensors in `value`."""
        for tensor in tensors_of(value):
            storage = tensor.untyped_storage()
            self.storages[storage._cdata] = StorageWeakRef(storage)
        return value

    def count(self, what: str, name: str) -> None:
        self.counts[what] += 1
        self.log.append(f"{what}: {name} at {_caller()}")

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        if name == "__get__":
            return self._attribute(func, args)
        if name == "__set__" or name in METADATA:
            return func(*args, **kwargs)
        if func is Tensor.backward:
            kwargs["grad_tensors"] = kwargs.pop("gradient", None)
            return self._run_backward(torch.autograd.backward, *args, **kwargs)
        if func is torch.autograd.grad:
            return self._grad(*args, **kwargs)
        if func is Tensor.cuda:
            return self._moved(args[0], GPU, kwargs.get("non_blocking", False), {})
        if func is Tensor.cpu:
            return self._moved(args[0], CPU, False, {})
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        return self._call(func, name, args, kwargs)

    def _attribute(self, func: Any, args: Any) -> Any:
        tensor, here = args[0], func.__self__
        if here is Tensor.device:
            return GPU if self.holds(tensor) else func(*args)
        if here is Tensor.is_cuda:
            return self.holds(tensor)
        if here is Tensor.is_cpu:
            return not self.holds(tensor)
        found = func(*args)
        if isinstance(found, Tensor) and self.holds(tensor):  # .grad, .data, .T
            self.put(found)
        return found

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        other = kwargs.pop("other", None)
        rest = list(args)
        if rest and isinstance(rest[0], Tensor):
            other = rest.pop(0)
        if other is not None:
            target, dtype = (GPU if self.holds(other) else CPU), other.dtype
            return self._moved(tensor, target, kwargs.get("non_blocking", False), {"dtype": dtype})
        device, dtype, non_blocking, memory = torch._C._nn._parse_to(*rest, **kwargs)
        target = None if device is None else (GPU if device.type == "cuda" else CPU)
        options = {"dtype": dtype} if dtype else {}
        if memory is not None:
            options["memory_format"] = memory
        return self._moved(tensor, target, non_blocking, options)

    def _moved(
        self, tensor: Tensor, target: torch.device | None, non_blocking: bool, options: dict[str, Any]
    ) -> Tensor:
        on = self.holds(tensor)
        if target is None or (target == GPU) == on:
            out = tensor.to(**options) if options else tensor
            return self.put(out) if on else out
        if target == CPU:
            if not non_blocking:
                self.count(TO_HOST, f"to {tuple(tensor.shape)}")
        elif not non_blocking and tensor.numel():
            self.count(TO_GPU, f"to {tuple(tensor.shape)}")
        out = tensor.to(**options, copy=True)
        return self.put(out) if target == GPU else out

    def _call(self, func: Callable[..., Any], name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        device = kwargs.get("device")
        wants = None if device is None else torch.device(device)
        if wants is not None:
            kwargs["device"] = CPU if wants.type == "cuda" else wants
        given = [(tensor, self.holds(tensor)) for tensor in tensors_of((args, kwargs))]
        on = any(held for _, held in given)
        if on:
            self._check(name, args, kwargs, given)
        elif wants is not None and wants.type == "cuda" and func in (torch.tensor, torch.as_tensor):
            self.count(TO_GPU, name)
        if func is Tensor.new_tensor and on and wants is None:
            self.count(TO_GPU, name)
        out = func(*args, **kwargs)
        if name in ("tolist", "item", "numpy"):
            return out
        place = on if wants is None else wants.type == "cuda"
        if name == "copy_" and self.holds(args[0]) != self.holds(args[1]):
            return out
        return self.put(out) if place else out

    def _check(self, name: str, args: Any, kwargs: dict[str, Any], given: list[tuple[Tensor, bool]]) -> None:
        if name in ("numpy", "__array__"):
            raise AssertionError("numpy() of a GPU tensor")
        if name == "copy_" and not all(held for _, held in given):
            if not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking"):
                self.count(TO_GPU if self.holds(args[0]) else TO_HOST, name)
            return
        if name in INDEXING:
            for index in args[1] if isinstance(args[1], tuple) else (args[1],):
                if isinstance(index, list | np.ndarray):
                    self.count(TO_GPU, f"{name} with numbers of the host")
            for index in tensors_of(args[1]):
                if index.dtype == torch.bool and index.dim() and not (name == "__setitem__" and not is_tensor(args[2])):
                    self.count(SYNC, f"{name} with a mask")
                elif not self.holds(index) and index.dim():
                    self.count(TO_GPU, f"{name} with an index of the CPU")
            given = [(t, held) for t, held in given if all(t is not index for index in tensors_of(args[1]))]
        elif waits(name, args, kwargs, len(given)):
            self.count(SYNC, name)
        if self.backward:  # gradients that autograd made are not registered
            return
        strangers = [tuple(tensor.shape) for tensor, held in given if not held and tensor.dim()]
        foreach = name.startswith("_foreach") or name in ("_fused_adamw_", "_fused_adam_")
        if strangers and not foreach:
            raise AssertionError(f"{name}: a tensor of the CPU {strangers[0]} meets one of the GPU")

    def _run_backward(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.backward += 1
        try:
            with self:
                return run(*args, **kwargs)
        finally:
            self.backward -= 1

    def _grad(
        self, outputs: Any, inputs: Any, grad_outputs: Any = None, retain_graph: bool | None = None,
        create_graph: bool = False, allow_unused: bool | None = None, **options: Any,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        assert not (options.get("is_grads_batched") or options.get("materialize_grads")), "not simulated"
        outputs = (outputs,) if is_tensor(outputs) else tuple(outputs)
        inputs = (inputs,) if is_tensor(inputs) else tuple(inputs)
        given = (grad_outputs,) if is_tensor(grad_outputs) else tuple(grad_outputs or (None,) * len(outputs))
        given = tuple(torch.ones_like(out) if one is None else one for out, one in zip(outputs, given, strict=True))
        retain = create_graph if retain_graph is None else retain_graph
        found = self._run_backward(
            _engine_run_backward, outputs, given, retain, create_graph, inputs, bool(allow_unused),
            accumulate_grad=False,
        )  # fmt: skip
        return tuple(self.put(g) if g is not None and self.holds(x) else g for g, x in zip(found, inputs, strict=True))


def _caller() -> str:
    """The line of this repository that is running."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and not path.is_relative_to(Path(__file__).parent) and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "?"


def waits(name: str, args: Any, kwargs: dict[str, Any], tensors: int) -> bool:
    """Whether the host waits for the result of a function of GPU tensors."""
    if name == "where":
        return len(args) == 1 and not kwargs
    if name == "repeat_interleave":
        return tensors > 1 and kwargs.get("output_size") is None
    return name in SYNCING


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


class GpuGenerator(torch.Generator):
    """A generator of the GPU, which draws on the CPU."""

    device = GPU


class AnyGenerator(torch.Generator):
    """Instead of torch.Generator."""

    def __new__(cls, device: Any = "cpu") -> torch.Generator:  # type: ignore[misc]
        return GpuGenerator() if torch.device(device).type == "cuda" else CPU_GENERATOR()
