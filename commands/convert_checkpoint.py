"""Convert checkpoints published with iFAM or PDiscoFormer to run folders, and our models to the published formats.

    python -m commands.convert_checkpoint snapshot_best.pt --to runs/ifam-cub-k8 --data-config configs/cub.yaml
    python evaluate.py --run runs/ifam-cub-k8 --data.root data/CUB_200_2011
    python -m commands.convert_checkpoint runs/cub-k8 --export ifam --to cub-k8.pt

Parts, classes, registers, image size and DINOv2 backbones are recognised by the tensor shapes. Other backbones need
--backbone, since checkpoints do not store the number of attention heads. See docs/checkpoints.md.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from common.errors import UserError, exit_on_user_error
from common.flags import Parser
from engine.run.atomic_files import WRITE_ERRORS, reason_of, replacing
from engine.run.checkpointing import write_safetensors
from engine.run.command_line import load_config, parse_config
from engine.run.folder import BEST, open_run
from models.pdiscoformer import PDiscoFormer
from models.published import PublishedModel, load_published, to_published
from models.saved import load_saved, saved_class
from models.two_stage import TwoStageModel
from models.weights.checkpoints import read_state
from models.weights.published_layout import FORMATS, Format


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("source", type=Path, help="checkpoint; with --export a run folder or one of save_pretrained")
    parser.add_argument("--to", type=Path, required=True, help="run folder to create; with --export the file to write")
    reading = parser.add_argument_group("without --export")
    reading.add_argument("--backbone", metavar="NAME", help="timm name of the backbone, if the shapes fit several")
    reading.add_argument(
        "--image-size", type=int, nargs="+", metavar="S", help="side, or height and width, in pixels; default: trained"
    )
    reading.add_argument(
        "--data-config", type=Path, metavar="YAML", help="config of the run (data.* and others; model.* is overwritten)"
    )
    parser.add_argument("--export", choices=FORMATS, help="format to write; ifam-hf: iFAM with Hugging Face backbones")
    options = parser.parse_args(args)
    if options.export and (options.backbone or options.image_size or options.data_config):
        parser.error("--export does not take --backbone, --image-size or --data-config")
    if options.image_size and (len(options.image_size) > 2 or min(options.image_size) < 1):
        parser.error("--image-size: give one side, or height and width, in pixels")
    return options


def import_checkpoint(options: argparse.Namespace) -> None:
    """Convert a published checkpoint to a run folder."""
    source: Path = options.source
    if not source.is_file():
        raise UserError(f"no such checkpoint file: {source}")
    if (options.to / BEST / "model.safetensors").exists():
        raise UserError(f"--to: {options.to} already contains a run; choose another folder")
    config = load_config(options.data_config) if options.data_config else parse_config([])
    size = (options.image_size[0], options.image_size[-1]) if options.image_size else None
    model, layout = load_published(read_state(source), str(source), config.model, options.backbone, size)
    height, width = model.input_size
    data = replace(config.data, image_size=height if height == width else (height, width))
    config = replace(config, out=str(options.to), model=model.model_config, data=data)
    out = open_run(config, model)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_safetensors(out / BEST / "model.safetensors", state, {"source": source.name, "layout": str(layout)})
    print(f"read {source.name}: {layout}")
    print(f"wrote {out}: {config.model.backbone}, images of {height} x {width} pixels")


def export_checkpoint(source: Path, form: Format, out: Path) -> None:
    """Write our model in a published format: a .safetensors file, or else a torch file with `model_state`."""
    if out.exists():
        raise UserError(f"--to: {out} already exists; choose another file")
    state = to_published(_our_model(source), form)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as partial:
            if out.suffix == ".safetensors":
                save_file(state, partial)
            else:
                torch.save({"model_state": state}, partial)
    except WRITE_ERRORS as error:
        raise UserError(f"--to: cannot write {out} ({reason_of(error)})") from None
    print(f"wrote {out}: {form}, {sum(tensor.numel() for tensor in state.values()):,} values")


def _our_model(source: Path) -> PublishedModel:
    kind = saved_class(source)[1]
    model = load_saved(source) if kind in (TwoStageModel, PDiscoFormer) else None
    if not isinstance(model, TwoStageModel | PDiscoFormer):
        raise UserError(
            f"--export: {source} is a {kind.__name__}; only models of model.name=two_stage, without another selector, "
            "and pdiscoformer can be exported"
        )
    return model


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
