"""Read a checkpoint published with iFAM or PDiscoFormer into a run folder, or write a model of ours in their form.

    python -m commands.convert_checkpoint snapshot_best.pt --to runs/ifam-cub-k8 --data-config configs/cub.yaml
    python evaluate.py --run runs/ifam-cub-k8 --data.root data/CUB_200_2011
    python -m commands.convert_checkpoint runs/cub-k8 --export ifam --to cub-k8.pt

Parts, classes, registers and the image size are read off the shapes, and so is the backbone where it is a DINOv2; the
numbers of attention heads are in no checkpoint. See docs/checkpoints.md.
"""

import argparse
import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from common.errors import UserError, exit_on_user_error
from common.flags import Parser
from engine.run.checkpointing import write_safetensors
from engine.run.command_line import load_config, parse_config
from engine.run.config import RunConfig
from engine.run.folder import BEST, open_run
from models.pdiscoformer import PDiscoFormer
from models.published import PublishedModel, load_published, to_published
from models.registry import MODELS
from models.two_stage import TwoStageModel
from models.weights.checkpoints import read_state
from models.weights.published_layout import FORMS, Form


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("source", type=Path, help="checkpoint; with --export a run, or a folder of save_pretrained")
    parser.add_argument("--to", type=Path, required=True, help="run folder to make; with --export the file to write")
    reading = parser.add_argument_group("without --export")
    reading.add_argument("--backbone", metavar="NAME", help="timm's name, where the shapes leave several")
    reading.add_argument(
        "--image-size", type=int, nargs="+", metavar="S", help="side, or height and width, pixels; default: trained"
    )
    reading.add_argument(
        "--data-config", type=Path, metavar="YAML", help="a config whose data.* (and other) keys the run is to have"
    )
    parser.add_argument("--export", choices=FORMS, help="ifam-hf: for the published code's Hugging Face backbones")
    options = parser.parse_args(args)
    if options.export and (options.backbone or options.image_size or options.data_config):
        parser.error("--export takes neither --backbone nor --image-size nor --data-config")
    if options.image_size and (len(options.image_size) > 2 or min(options.image_size) < 1):
        parser.error("--image-size: give one side, or height and width, in pixels")
    return options


def import_checkpoint(options: argparse.Namespace) -> None:
    """A published checkpoint to a run folder."""
    source: Path = options.source
    if not source.is_file():
        raise UserError(f"no such checkpoint file: {source}")
    if (options.to / BEST / "model.safetensors").exists():
        raise UserError(f"--to: {options.to} already holds a run; choose another folder")
    config = load_config(options.data_config) if options.data_config else parse_config([])
    size = (options.image_size[0], options.image_size[-1]) if options.image_size else None
    model, layout = load_published(read_state(source), str(source), config.model, options.backbone, size)
    config = _run_config(config, options.to, model)
    out = open_run(config, model)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_safetensors(out / BEST / "model.safetensors", state, {"source": source.name, "layout": str(layout)})
    height, width = config.data.size_hw
    print(f"read {source.name}: {layout}")
    print(f"made {out}: {config.model.backbone}, images of {height} x {width} pixels")


def _run_config(config: RunConfig, out: Path, model: PublishedModel) -> RunConfig:
    patch_embed = model.stage_1.backbone.patch_embed
    (rows, columns), (height, width) = patch_embed.grid_size, patch_embed.patch_size
    size = (rows * height, columns * width)
    data = replace(config.data, image_size=size[0] if size[0] == size[1] else size)
    return replace(config, out=str(out), model=model.model_config, data=data)


def export_checkpoint(source: Path, form: Form, out: Path) -> None:
    """A model of ours to a file in published form: a .safetensors file, or a torch file with `model_state`."""
    if out.exists():
        raise UserError(f"--to: {out} exists already; choose another file")
    state = to_published(_our_model(source), form)
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".safetensors":
            save_file(state, partial)
        else:
            torch.save({"model_state": state}, partial)
        os.replace(partial, out)
    except OSError as error:
        raise UserError(f"--to: cannot write {out} ({error.strerror})") from None
    finally:
        partial.unlink(missing_ok=True)
    print(f"wrote {out}: {form}, {sum(tensor.numel() for tensor in state.values()):,} numbers")


def _our_model(source: Path) -> PublishedModel:
    folder = source / BEST if (source / BEST).is_dir() else source
    try:
        name = str(json.loads((folder / "config.json").read_text())["model_config"]["name"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{source} is neither a run nor a folder of save_pretrained: no readable config.json") from None
    kind = MODELS[name]
    if kind not in (TwoStageModel, PDiscoFormer):
        raise UserError(f"--export: {source} holds model.name={name}; only two_stage and pdiscoformer were published")
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder} has no model.safetensors yet")
    with contextlib.redirect_stdout(None):  # huggingface_hub says there what it does
        return kind.from_pretrained(folder)


@exit_on_user_error
def main(args: list[str] | None = None) -> None:
    """Command line."""
    options = parse_args(args)
    if options.export:
        export_checkpoint(options.source, options.export, options.to)
    else:
        import_checkpoint(options)


if __name__ == "__main__":
    main()
