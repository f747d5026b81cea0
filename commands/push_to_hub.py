"""Upload a trained model with a model card to the Hugging Face Hub.

    python -m commands.push_to_hub runs/waterbirds-k8 USER/NAME --private
    python -m commands.push_to_hub runs/waterbirds-k8 --folder to-look-at

The source is a run (its best model). The card has the metrics of its test split, the name and the classes of its data,
and all `model.*` keys; no image, and of paths only file names. Log in with `hf auth login` before. To load it:
`TwoStageModel.from_pretrained("USER/NAME")` or torch.hub (docs/checkpoints.md).
"""

import argparse
from pathlib import Path

from common.errors import UserError, exit_on_user_error
from common.flags import Parser
from common.metric_info import headlines
from common.plugins import with_plugins
from engine.run.folder import read_results
from models.saved import load_saved
from report.names import pretty


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="run folder written by train.py")
    parser.add_argument("name", nargs="?", metavar="USER/NAME", help="name on the Hub")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="write the files to DIR instead of uploading them")
    parser.add_argument("--private", action="store_true", help="make the new model private")
    options = parser.parse_args()
    if bool(options.name) == bool(options.folder):
        parser.error("give USER/NAME to upload the model, or --folder DIR")
    return options


def metrics_of(run: Path) -> dict[str, float]:
    """The headline metrics of the run's test split by their names in tables; empty if there are none yet."""
    results = read_results(run) or {}
    values = {key.removeprefix("test/"): value for key, value in results.items() if key.startswith("test/")}
    return {pretty(key): values[key] for key in headlines(values) if values[key] is not None}


@exit_on_user_error
@with_plugins
def main() -> None:
    """Command line."""
    options = parse_args()
    model, metrics = load_saved(options.run), metrics_of(options.run)
    if options.name:
        print(model.push_to_hub(options.name, metrics=metrics, private=options.private or None))
        return
    if options.folder.exists():
        raise UserError(f"--folder: {options.folder} already exists; choose another")
    model.save_pretrained(options.folder, config=model.public_config, model_card_kwargs={"metrics": metrics})
    print(f"wrote {options.folder}: {', '.join(sorted(file.name for file in options.folder.iterdir()))}")


if __name__ == "__main__":
    main()
