"""Train a model from a config.

    python train.py --config configs/quickstart.yaml --out runs/mine --model.parts.num_parts 8

Writes to the run folder: config.yaml, metrics.jsonl, curves.png, sheets/, checkpoints/last.safetensors, best/ (for
`from_pretrained`), results.json, predictions.csv. Ctrl-C, SIGTERM and SIGUSR1 finish the step and save; `--resume=true`
continues exactly there. `--plugin FILE.py` imports a file of yours that registers a data set, model or metric. Several
GPUs: torchrun --nproc-per-node 8 train.py ..., or srun (docs/cluster.md). All keys: --help=all, docs/training.md.
"""

import shlex
import sys
from pathlib import Path

from common.errors import exit_on_user_error
from common.plugins import plugin_arguments, with_plugins
from engine.run.command_line import parse_config
from engine.run.launch import distributed_main


@exit_on_user_error
@with_plugins
@distributed_main
def main() -> None:
    """Run the command line."""
    config = parse_config(description=__doc__)
    # Slow to import, and not needed for --help or a wrong flag.
    from commands.train_run import train
    from common.processes import processes
    from engine.run.folder import CONFIG_FILE
    from engine.run.stopping import RunStopped

    try:
        train(config)
    except RunStopped as stopped:
        config_file = str(Path(config.out) / CONFIG_FILE)
        command = shlex.join(["python", "train.py", *plugin_arguments(), "--config", config_file, "--resume=true"])
        if processes().is_main:
            print(f"stopped by {stopped}; all is saved in {config.out}; continue with: {command}", file=sys.stderr)
        raise SystemExit(stopped.exit_code) from None


if __name__ == "__main__":
    main()
