"""What is set for a GPU."""

from pathlib import Path

import pytest
import torch

from engine.run import machine
from engine.run.machine import precision_of, prepare_process
from tests.device.simulated import CPU, GPU
from tests.tiny import tiny_config


@pytest.mark.parametrize("supported", [True, False])
def test_automatic_precision(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert precision_of("auto", GPU) == (torch.bfloat16 if supported else torch.float32)
    assert precision_of("auto", CPU) == torch.float32 and precision_of("fp16", CPU) == torch.float16


@pytest.mark.parametrize("device", [CPU, GPU])
def test_float32_products_and_attention(device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "pick_device", lambda name: device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    products, cudnn = torch.get_float32_matmul_precision(), torch.backends.cuda.cudnn_sdp_enabled()
    convolutions, changed = torch.backends.cudnn.allow_tf32, device == GPU  # on a CPU, "high" would round too
    try:
        for value in ("highest", "high"):
            prepare_process(tiny_config(tmp_path, {"train.matmul_precision": value}))
            assert torch.backends.cudnn.allow_tf32 is (value == "high" if changed else convolutions)
        assert torch.get_float32_matmul_precision() == ("high" if changed else products)
        assert torch.backends.cuda.cudnn_sdp_enabled() is (cudnn and not changed)
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
