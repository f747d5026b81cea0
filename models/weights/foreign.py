"""Find a backbone in a file that another project wrote: inside which containers, and below which prefix of names."""

import argparse
import pathlib
import re
from typing import Any

import numpy as np

from common.errors import UserError
from common.processes import processes
from models.weights.huggingface import State

CONTAINERS = (
    "state_dict_ema", "model_ema", "ema", "teacher", "model_state", "model_state_dict", "state_dict", "model", "net",
    "module",
)  # fmt: skip
"""Keys of nested state dicts, moving averages first: timm, DeiT and DINO evaluate those."""
_SCALAR = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    argparse.Namespace, pathlib.PosixPath, np.dtype, type(np.dtype("float64")), type(np.dtype("float32")), _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),  # NumPy 1
]  # fmt: skip
"""Types beside tensors in training snapshots (timm's train.py: arguments, metrics); building one runs no code."""
VIT = r"(?:patch_embed\.|embeddings\.patch_embeddings\.)"
"""Start of the names of a ViT's patch embedding, by timm's or Hugging Face's names."""


def unwrapped(content: Any, source: str) -> Any:
    """The state dict inside nested containers; a moving average is preferred and said. Other content as it is."""
    taken: list[str] = []
    while isinstance(content, dict):
        inner = [key for key in CONTAINERS if isinstance(content.get(key), dict) and content[key]]
        if not inner:
            break
        taken.append(inner[0])
        if len(inner) > 1:
            say(f"{source}: {inner[0]} is used, not {', '.join(inner[1:])}")
        content = content[inner[0]]
    return content


def backbone_part(state: State, source: str, start: str = VIT, stage: str = "stage_2") -> State:
    """The weights of one backbone, without the prefix of their names; the others are left out.

    `start`: regular expression of the first names of a backbone. `stage`: the one to take of our two-stage models. With
    several backbones, a teacher is preferred. Raises UserError if it is unclear which one is meant.
    """
    kinds = [kind for kind in ("ema/", "model/") if any(name.startswith(kind) for name in state)]
    if kinds:  # a checkpoint of ours
        state = {name.removeprefix(kinds[0]): t for name, t in state.items() if name.startswith(kinds[0])}
    found = {match[1] for name in state if (match := re.match(rf"(|.*?\.){start}", name))}
    if not found or "" in found:
        return state
    wanted = [prefix for prefix in found if prefix.endswith(f"{stage}.backbone.")] or [p for p in found if "teacher" in p]
    if len(found) > 1 and len(wanted) != 1:
        raise UserError(f"{source} holds several backbones ({', '.join(sorted(found))}); save the one to use")
    prefix = wanted[0] if wanted else found.pop()
    part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    rest = sorted(name for name in state if not name.startswith(prefix))
    say(f"{source}: the {len(part)} weights {prefix}*" + (f", not the {len(rest)} others ({rest[0]}, ...)" if rest else ""))
    return part


def say(text: str) -> None:
    """Print one line, in the first process."""
    if processes().is_main:
        print(f"model.weights: {text}", flush=True)
