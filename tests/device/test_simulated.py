"""The simulated GPU itself."""

import pytest
import torch
from torch import nn

from tests.device.simulated import CPU, GPU, SYNC, TO_GPU, TO_HOST, SimulatedGpu


def test_a_network_is_trained_there(gpu: SimulatedGpu) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 4), torch.randn(2, 3)
    wanted = torch.autograd.grad(layer(x).square().mean(), layer.weight)[0]
    layer.to("cuda")
    images = x.to("cuda:0", non_blocking=True)
    assert layer.weight.device == GPU and layer.weight.is_cuda and images.device == GPU and x.device == CPU
    gpu.reset()
    loss = layer(images).square().mean()
    loss.backward()
    assert layer.weight.grad.device == GPU
    assert not gpu.counts
    assert torch.equal(layer.weight.grad.cpu(), wanted) and gpu.counts == {TO_HOST: 1}
    optimizer = torch.optim.AdamW(layer.parameters())
    optimizer.step()
    assert optimizer.state[layer.weight]["exp_avg"].device == GPU


def test_devices_do_not_mix(gpu: SimulatedGpu) -> None:
    layer = nn.Linear(3, 4).to(GPU)
    for wrong in (lambda: layer(torch.zeros(2, 3)), lambda: layer.weight + torch.zeros(4, 3)):
        with pytest.raises(AssertionError, match=r"a tensor of the CPU \((2|4), 3\) meets one of the GPU"):
            wrong()
    with pytest.raises(AssertionError, match="numpy"):
        layer.weight.detach().numpy()
    assert (layer.weight * torch.tensor(2.0)).device == GPU, "scalars may be on the CPU"
    assert torch.zeros(3, device="cuda").device == GPU and torch.zeros(3).device == CPU


def test_what_is_counted(gpu: SimulatedGpu) -> None:
    x = torch.arange(4.0, device=GPU)
    gpu.reset()
    for sync in (lambda: x.sum().item(), lambda: bool(x.any()), lambda: x[x > 1], lambda: x.nonzero(), x.tolist):
        sync()
    assert gpu.counts == {SYNC: 5}, gpu.log
    torch.tensor([1, 2], device=GPU)
    torch.zeros(2).to(GPU)
    x[torch.tensor([0, 1])], x[[0, 1]]
    assert gpu.counts == {SYNC: 5, TO_GPU: 4}, gpu.log
    gpu.reset()
    x[x > 1] = 0.0
    x[:2], x.masked_fill(x > 1, 0), x.shape, x.repeat_interleave(2), torch.where(x > 1, x, 0.0)
    torch.zeros(2).to(GPU, non_blocking=True)
    assert not gpu.counts, gpu.log


def test_storage_that_was_freed_is_forgotten(gpu: SimulatedGpu) -> None:
    for _ in range(20):
        assert torch.zeros(1000, device=GPU).device == GPU
        assert torch.zeros(1000).device == CPU
