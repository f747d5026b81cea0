"""Export a trained model for programs without this repository: ONNX, or torch.export.

    python -m commands.export runs/waterbirds-k8 --format onnx
    python -m commands.export runs/waterbirds-k8 --format torch_export --to waterbirds-k8.pt2

The source is a run (its best model) or a folder of `save_pretrained`. Input: `images` [B, 3, H, W] float32, normalised,
for any B. Outputs: `logits` [B, C], and where the model has them `stage_1_logits` [B, C], `mask` [B, h, w] bool,
`pixels` [B, H, W] bool, `part_maps` [B, K+1, h, w] (last = background). The exported file is run and must give what the
model gives. See docs/checkpoints.md.
"""

import argparse
import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from common.errors import UserError, exit_on_user_error
from common.flags import Parser
from common.plugins import with_plugins
from engine.run.atomic_files import WRITE_ERRORS, reason_of, replacing
from models.interface import ImageClassifier
from models.masked_vit import MaskedViT
from models.saved import load_saved

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
OUTPUTS = ("logits", "stage_1_logits", "mask", "pixels", "part_maps")
"""Fields of `ModelOutput` that are exported where they are not None."""
TOLERANCE = 1e-3
"""Largest difference of a float output, relative to its largest value. Masks must be equal."""
LARGEST = 1 << 30
"""Bytes of weights in an .onnx file, which can hold 2 GiB; more are written to a file .onnx.data beside it."""
INFORMATION = "faithful_vit.json"
"""Name of the metadata in the exported file."""
Run = Callable[[Tensor], Mapping[str, Tensor]]


class Outputs(nn.Module):
    """A model whose output is a dict of tensors: what it has of `OUTPUTS`."""

    def __init__(self, model: ImageClassifier) -> None:
        """`model` in eval mode."""
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images [B, 3, H, W] -> outputs by name."""
        output = self.model(images)
        values = {name: getattr(output, name) for name in OUTPUTS}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Exported:
    """An exported model in memory."""

    save: Callable[[Path], object]
    run: Callable[[Path], Run]
    """The saved file, ready to run."""


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("source", type=Path, help="run folder, or a folder of save_pretrained")
    parser.add_argument("--format", choices=tuple(SUFFIXES), required=True, help="onnx needs the extra `export`")
    parser.add_argument("--to", type=Path, metavar="FILE", help="default: SOURCE/export/model.onnx or model.pt2")
    return parser.parse_args(args)


def exportable(source: Path) -> ImageClassifier:
    """The model of `source` with outputs whose shapes depend on the batch size alone. Raises UserError."""
    model = load_saved(source)
    if model.needs_mask:
        raise UserError(f"{source}: a {type(model).__name__} needs a mask with every image; it cannot be exported")
    if model.model_config.parts.eval_noise:
        raise UserError(f"{source} has model.parts.eval_noise=true: its outputs are random, which cannot be exported")
    for module in model.modules():
        if isinstance(module, MaskedViT):
            module.path = "dense"  # the others drop hidden patches: shapes that depend on the image
    return model


def export_model(source: Path, form: str, to: Path) -> str:
    """Export the model of `source` to the file `to`; returns what was written, in words. Raises UserError."""
    data = to.with_name(f"{to.name}.data")
    if taken := next((file for file in (to, data) if file.exists()), None):
        raise UserError(f"--to: {taken} already exists; choose another file")
    model = exportable(source)
    network, size = Outputs(model).eval(), model.input_size
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    information = {"images": list(size), "outputs": [], "trained_on": dict(model.trained_on)}
    try:
        with torch.no_grad():
            expected = network(images)
            information["outputs"] = list(expected)
            program = torch.export.export(network, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
        exported = _onnx(program, information, data.name) if form == "onnx" else _torch_export(program, information)
    except UserError:
        raise
    except Exception as error:  # torch's exporters raise many kinds
        raise UserError(f"{source}: torch cannot export this model to {form} ({_reason(error)})") from None
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with replacing(to) as partial_file:
            exported.save(partial_file)
            difference = _check(exported.run(partial_file), images, expected, form)
    except UserError:
        raise
    except WRITE_ERRORS as error:
        raise UserError(f"--to: cannot write {to} ({reason_of(error)})") from None
    shapes = ", ".join(f"{name} {['batch', *value.shape[1:]]}".replace("'", "") for name, value in expected.items())
    return f"wrote {to}: images [batch, 3, {size[0]}, {size[1]}] -> {shapes}; largest difference {difference:.1e}"


def _torch_export(program: ExportedProgram, information: Mapping[str, Any]) -> Exported:
    def save(file: Path) -> None:
        with file.open("wb") as stream:
            torch.export.save(program, stream, extra_files={INFORMATION: json.dumps(information)})

    def load(file: Path) -> Run:
        with file.open("rb") as stream:
            return torch.export.load(stream).module()

    return Exported(save, load)


def _onnx(program: ExportedProgram, information: Mapping[str, Any], data: str) -> Exported:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format onnx: {error.name} is not installed; pip install '.[export]'") from None
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        converted = torch.onnx.export(
            program, input_names=["images"], output_names=information["outputs"], verbose=False
        )
    assert converted is not None
    model = converted.model_proto
    onnx.helper.set_model_props(model, {INFORMATION: json.dumps(information)})
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    beside: dict[str, Any] = {"save_as_external_data": True, "location": data} if size > LARGEST else {}

    def load(file: Path) -> Run:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return lambda images: dict(
            zip(
                information["outputs"],
                map(torch.from_numpy, session.run(None, {"images": images.numpy()})),
                strict=True,
            )
        )

    return Exported(partial(onnx.save, model, **beside), load)


@torch.no_grad()
def _check(run: Run, images: Tensor, expected: Mapping[str, Tensor], form: str) -> float:
    """The largest difference of any float output, for all images at once and for one. Raises UserError if too large."""
    largest = 0.0
    for count in (len(images), 1):
        try:
            found = run(images[:count])
        except Exception as error:  # an operator that this runtime lacks
            raise UserError(f"--format {form}: the exported model does not run ({_reason(error)})") from None
        for name, value in expected.items():
            difference = (found[name].double() - value[:count].double()).abs().max().item()
            if not difference <= (TOLERANCE * value.abs().max().item() if value.is_floating_point() else 0):
                what = f"{name} of the exported model differs by {difference:.2g} from PyTorch's"
                raise UserError(f"--format {form}: {what}")
            largest = max(largest, difference)
    return largest


def _reason(error: Exception) -> str:
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@exit_on_user_error
@with_plugins
def main() -> None:
    """Command line."""
    options = parse_args()
    name = f"model{SUFFIXES[options.format]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporters about their own calls
        print(export_model(options.source, options.format, options.to or options.source / "export" / name))


if __name__ == "__main__":
    main()
