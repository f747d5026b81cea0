"""Read weights files and load them into a module: backbones with timm's or Hugging Face's names, any image size."""

import contextlib
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from math import isqrt
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.models.eva import Eva
from torch import Tensor, nn

from common.errors import UserError
from common.isolation import IsolatedError, in_child
from common.sealing import check_seal
from models.transformer import ViT
from models.weights.eva import eva_to_timm
from models.weights.foreign import HARMLESS, say, unwrapped
from models.weights.huggingface import State, huggingface_dinov2_to_timm

_PRETRAINING = re.compile(r"^(decoder_|mask_token$)")
"""Weights that only pre-training uses: MAE's decoder, mask tokens."""
_DINOV2_RENAMES = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # saved in chunks of blocks
    (r"^register_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_ALLOCATORS = re.compile(r"\w+ bytearray|torch\S* \w*Tensor|torch\S* (Unt|T)ypedStorage")
"""Types that torch's safe unpickler calls with any number: bytearray(1 << 31) is a file of 397 bytes."""
SECONDS, SLOWEST_DISK, SPARE_MEMORY = 20, 10 << 20, 1 << 30
"""Of reading a torch file: seconds, and bytes a second besides; bytes of memory besides four times the file."""
_HEADS = re.compile(r"^(head|fc_norm|classifier|head_dist|attn_pool)\.")


def read_state(path: str | Path) -> State:
    """Read a state dict from a .safetensors or PyTorch file without running code from it.

    The state dict may be nested in `foreign.CONTAINERS`. Of a run folder, the best model is read. All tensors must be
    dense and stored in full. Raises UserError.
    """
    path = run_weights(Path(path))
    if not path.is_file():
        raise UserError(f"model.weights: no such file {path}; use hub, none or a weights file")
    try:
        if path.suffix == ".safetensors":
            check_seal(path)
            return load_file(path)
        content = _read_torch(path)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable weights file ({_reason(error)})") from None
    except Exception as error:  # the errors of the safe unpickler have no common public base class
        raise UserError(f"{path}: refused by the safe loader ({_reason(error)}); save it as safetensors") from None
    content = unwrapped(content, str(path))
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path}: contains no state dict (a mapping from names to tensors)")
    strange = [name for name, t in content.items() if not (isinstance(name, str) and _is_plain(t, path.stat().st_size))]
    if strange:
        raise UserError(f"{path}: {strange[0]!r} is not a dense tensor stored in full; save it as safetensors")
    return content


def run_weights(path: Path) -> Path:
    """The weights file of a run folder or of its best/; any other path as it is."""
    files = (path / "best" / "model.safetensors", path / "model.safetensors")
    return next((file for file in files if file.is_file()), path)


def _read_torch(path: Path) -> Any:
    """What a torch file holds, after a trial in a child process: a small pickle can ask for any time and memory.

    Raises ValueError or UnpicklingError.
    """
    size = path.stat().st_size
    seconds = SECONDS + size // SLOWEST_DISK
    try:
        in_child(lambda: _trial(path), seconds, SPARE_MEMORY + 4 * size)
    except IsolatedError as error:
        if error.kind == pickle.UnpicklingError.__name__:
            raise pickle.UnpicklingError(str(error)) from None
        known = {"SIGALRM": f"it takes longer than {seconds} seconds", "MemoryError": "it asks for too much memory"}
        raise ValueError(known.get(error.kind) or str(error) or error.kind) from None
    return _load(path)


def _trial(path: Path) -> np.ndarray:
    """Read a torch file. Raises ValueError for an archive larger than its file: torch.save never compresses."""
    zipped = zipfile.is_zipfile(path)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is compressed; unpack it and save it with torch.save")
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    _refuse_allocation(io.BytesIO(archive.read(name)))
    else:
        with path.open("rb") as file:
            _refuse_allocation(file)
    _load(path, mmap=zipped)  # tensors are not read
    return np.zeros(0)


def _load(path: Path, mmap: bool = False) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _refuse_allocation(file: IO[bytes]) -> None:
    """Raise ValueError for a pickle that names one of `_ALLOCATORS`."""
    if found := next((name for name in _names(file) if _ALLOCATORS.fullmatch(name)), None):
        raise ValueError(f"it asks for {found}, which no state dict needs")


def _names(file: IO[bytes]) -> Iterator[str]:
    """All that a pickle looks up, "module name"; torch's old format has five in a row, before the tensors."""
    with contextlib.suppress(ValueError):  # torch reports what is broken
        for _ in range(5):
            for operation, argument, _ in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    yield str(argument)


def _is_plain(tensor: Tensor, size: int) -> bool:
    """Whether it is an ordinary dense CPU tensor of at most `size` bytes.

    A stride-0 view can have any shape, so a small file could otherwise fill the memory.
    """
    ordinary = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_complex()
    return ordinary and not tensor.is_quantized and tensor.numel() * tensor.element_size() <= size


def _reason(error: Exception) -> str:
    """The error in one line, without torch's advice to load the file unsafely."""
    text = str(error).partition("WeightsUnpickler error: ")[2].partition(" Please use")[0] or str(error)
    return " ".join(text.split())[:160] or type(error).__name__


def fit_backbone_state(state: State, vit: ViT) -> State:
    """Convert a backbone's state dict for `vit`: timm's names, no heads, position embeddings resampled to its grid."""
    if isinstance(vit, Eva):
        state = eva_to_timm(state, vit)
    elif any(name.startswith(("embeddings.", "dinov2")) for name in state):
        state = huggingface_dinov2_to_timm(state)
    if "norm.weight" not in state:  # made for average pooling: its final norm is applied after pooling
        state = {re.sub(r"^fc_norm\.", "norm.", name): tensor for name, tensor in state.items()}
    if heads := [name for name in state if re.match(r"(head|classifier)\.", name) and name.endswith("weight")]:
        say(f"{heads[-1]} {tuple(state[heads[-1]].shape)}, a classifier, is left out")
    state = {name: t for name, t in state.items() if not (_HEADS.match(name) or _PRETRAINING.match(name))}
    for pattern, target in _DINOV2_RENAMES:
        state = {re.sub(pattern, target, name): tensor for name, tensor in state.items()}
    return fit_positions(state, vit)


def fit_positions(state: State, vit: ViT) -> State:
    """Resample a square grid of position embeddings bicubically to that of `vit`.

    If `vit` has no position for the class token (DINOv2 with registers), it is added to the class token. Embeddings of
    unknown layout are left for `load_into` to report.
    """
    if "pos_embed" not in state or vit.pos_embed is None:
        return state
    table, grid = state["pos_embed"], list(vit.patch_embed.grid_size)
    if table.ndim != 3 or not table.is_floating_point():
        return state
    # The right length is not enough for a non-square grid: a 2 x 8 one needs resampling from 4 x 4.
    if table.shape[1] == vit.pos_embed.shape[1] and (grid[0] == grid[1] or not _is_square(grid[0] * grid[1])):
        return state
    wanted = 0 if vit.no_embed_class else vit.num_prefix_tokens
    # Prefix tokens in the table: as many as in `vit`, or the class token alone.
    prefix = next((p for p in (wanted, 1) if _is_square(table.shape[1] - p)), None)
    if prefix == 1 and wanted == 0 and "cls_token" in state and state["cls_token"].shape == table[:, :1].shape:
        state = state | {"cls_token": state["cls_token"] + table[:, :1]}
        table, prefix = table[:, 1:], 0
    if prefix != wanted:
        return state
    side = isqrt(table.shape[1] - prefix)
    if grid != [side, side]:
        table = resample_abs_pos_embed(table, grid, [side, side], num_prefix_tokens=prefix)
    return state | {"pos_embed": table}


def _is_square(count: int) -> bool:
    return count > 0 and isqrt(count) ** 2 == count


def load_into(module: nn.Module, state: State, source: str) -> None:
    """Load all of `state` or nothing into `module`. Raises UserError naming missing, unexpected and misshapen keys."""
    check_fit(module.state_dict(), state, source)
    check_values(state, source)
    module.load_state_dict(state)


def check_values(state: State, source: str) -> None:
    """Raise UserError naming a tensor of `state`, read from `source`, that has values that are not finite."""
    broken = sorted(name for name, tensor in state.items() if not is_finite(tensor))
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise UserError(f"{source}: {', '.join(broken[:3])}{more}: values that are not finite; use other weights")


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are; also of 8-bit floats, for which torch has no isfinite."""
    small = tensor.is_floating_point() and tensor.element_size() == 1
    return bool((tensor.float() if small else tensor).isfinite().all())


def check_fit(own: State, state: State, source: str) -> None:
    """Raise UserError unless `state`, read from `source`, has the names and shapes of `own`."""
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshapen = sorted(
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    )
    problems = [
        f"{kind}: {', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", misshapen))
        if names
    ]
    if problems:
        raise UserError(f"{source} does not fit the model; {'; '.join(problems)}")
