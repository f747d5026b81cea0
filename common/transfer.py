"""Values between the host and an accelerator, without a wait for each."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def on_device(values: object, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers of the host as a tensor. Unlike with `torch.tensor(values, device=device)`, the host does not wait."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def on_host(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors, detached, on the CPU: those of one dtype and device are copied together, with one wait."""
    found = [tensor.detach() for tensor in tensors]
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for index, tensor in enumerate(found):
        if not tensor.is_cpu:
            groups.setdefault((tensor.dtype, tensor.device), []).append(index)
    for indices in groups.values():
        flat = torch.cat([found[index].flatten() for index in indices]).cpu()
        parts = flat.split([found[index].numel() for index in indices])
        for index, part in zip(indices, parts, strict=True):
            found[index] = part.view(found[index].shape)
    return found


def start_copy_to_host(tensor: Tensor) -> Callable[[], Tensor]:
    """Start to copy a tensor to the CPU. The result waits for that copy, not for work given to the device after it."""
    copy = tensor.detach().to("cpu", non_blocking=tensor.is_cuda)
    if not tensor.is_cuda:
        return lambda: copy
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> Tensor:
        copied.synchronize()
        return copy

    return wait
