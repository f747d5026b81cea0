"""Every command and Python block of the README works as written, with tiny runs in place of long ones."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from commands.study_jobs import load_study
from engine.run.command_line import parse_config
from tests.tiny import KEYS, flags

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.strip().splitlines()
    if line and not line.startswith("#")
]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PRINTED = ["torch.Size([4, 14, 14])", "torch.Size([1, 4, 12, 12])"]
"""The last output of each Python block."""
RUN = "runs/quickstart/two_stage-seed0"
TINY = {**KEYS, "model.backbone": "vit_nano_patch8", "data.image_size": 96, "train.epochs": 1}
"""Scripts run in their own process do not know the backbones registered by the tests."""


def script(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's root, with a tiny finished run where the README has one."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("configs", "studies"):
        (folder / name).symlink_to(ROOT / name)
    done = script(["train.py", *flags({**TINY, "out": RUN})], folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 10
    assert {command.split()[0] for command in COMMANDS} == {"make", "python", "torchrun", "sbatch"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    done = subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if " train.py " in c or c.startswith("sbatch slurm/train")])
def test_train_commands_parse(command: str) -> None:
    words = shlex.split(command)
    arguments = words[words.index("--config") :]
    config_file = arguments[arguments.index("--config") + 1]
    if config_file.startswith("runs/"):  # the resolved config of a run: same keys as the one it came from
        arguments[arguments.index("--config") + 1] = "configs/waterbirds.yaml"
    parse_config([a.replace("configs/", f"{ROOT}/configs/") for a in arguments])


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("torchrun")])
def test_torchrun_trains(command: str, elsewhere: Path) -> None:
    """On two processes: a tiny run of two epochs; a wrong flag gives one line, printed once."""
    launcher, *arguments = shlex.split(command)
    assert (launcher, arguments[0], arguments[2]) == ("torchrun", "--nproc-per-node", "train.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(ROOT / "train.py")]
    tiny = flags({**TINY, "data.root": "", "out": "runs/two", "train.epochs": 2})
    done = subprocess.run(
        [*torchrun, *arguments[3:], *tiny], cwd=elsewhere, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results in runs/two") == 1
    assert json.loads((elsewhere / "runs/two/results.json").read_text())["epochs"] == 2
    wrong = subprocess.run([*torchrun, "--data.nmae", "x"], cwd=elsewhere, capture_output=True, text=True, check=False)
    assert wrong.returncode != 0
    assert [line for line in wrong.stderr.splitlines() if "data.nmae" in line and line.startswith("error: process")]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python prepare_")])
def test_prepare_commands_parse(command: str, tmp_path: Path) -> None:
    """Each script stops because the output folder exists, which it checks before any work."""
    arguments = shlex.split(command)[1:]
    (tmp_path / arguments[1]).mkdir(parents=True)
    done = script(arguments, tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error:") and arguments[1] in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python evaluate.py")])
def test_evaluate_commands_run(command: str, elsewhere: Path) -> None:
    arguments = shlex.split(command)[1:]
    if "--data.image_folder" in arguments:  # its run needs CUB: the flags are what can be checked here
        arguments = ["evaluate.py", "--run", RUN, *arguments[3:]]
    done = script(arguments, elsewhere)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "studies").glob("*.yaml")))
def test_studies_run(name: str, elsewhere: Path) -> None:
    """Every study is trained and compared, at a tiny size; of many rows with one kind of model only the first.

    tests/commands/test_study_jobs.py resolves the configs of all rows.
    """
    study = load_study(ROOT / "studies" / name)
    kinds = ("model.name", "model.selector", "model.pooling", "model.mask_kind", "data.semi.images_per_class")
    firsts: dict[tuple[object, ...], str] = {}
    for row, keys in study.rows.items():
        firsts.setdefault(tuple(map(keys.get, kinds)), row)
    rows = list(firsts.values() if len(study.rows) > 20 else study.rows)
    mine = ("model.parts", "train.seed")  # the study sets them
    small = {key: value for key, value in TINY.items() if not key.startswith(mine)}
    small |= {"optim.stage_1_epochs": 0, "model.stage_1_backbone": "", "data.augmentation": "flip"}
    small |= {"data.root": ""}
    small |= {"optim.freeze_stage_2_blocks": 0, "train.token_cache": ""}
    small |= {"data.image_size": 32, "model.stage_1_image_size": 0}
    if not name.startswith("atcon"):  # whose images without labels must fill a batch
        small |= {"data.synthetic.train_images": 16}
    if "images_per_class" in (ROOT / "studies" / name).read_text() or name.startswith("atcon"):
        small |= {"data.semi.images_per_class": 4}
    settings = [f"{key}={yaml.safe_dump(value).splitlines()[0]}" for key, value in small.items()]
    out = f"runs/{name}"
    flags = ["--publish", f"docs/{name}", "--seeds", "0", "--rows", *rows, "--set", *settings]
    done = script(["study.py", f"studies/{name}", "--out", out, *flags], elsewhere)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / out / "report.html").is_file()
    table = (elsewhere / "docs" / name / "table.md").read_text()
    assert all(f"| {row} |" in table for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python -m explain")])
def test_explain_commands_run(command: str, elsewhere: Path) -> None:
    arguments = shlex.split(command)[1:]
    arguments += ["--weights", "none"] if "--model" in arguments else []  # no download in a test
    out = elsewhere / "explained.png"
    out = elsewhere / arguments[arguments.index("--out") + 1] if "--out" in arguments else out
    Image.new("RGB", (120, 90), "green").save(elsewhere / "photo.jpg")
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(out).width > 100


@pytest.mark.slow
@pytest.mark.parametrize(("block", "printed"), list(zip(PYTHON, PRINTED, strict=True)))
def test_python_blocks_run(block: str, printed: str, elsewhere: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
