"""Images of an optimiser step: any number of processes has the meant ones, and so has every documented launch line."""

import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from datasets import Split
from datasets.loader import BatchSampler
from engine.run.batch import StepBatch, for_processes, in_one_process, step_batch
from engine.run.command_line import load_config, parse_config
from slurm.submit import parse_args
from tests.tiny import Session, tiny_config, tiny_splits

ROOT = Path(__file__).parents[2]
MEANT = {
    "cub": 128, "waterbirds": 128, "waterbirds_fast": 128, "waterbirds_decoupled": 128, "waterbirds_dinov3": 128,
    "siim_acr": 128, "metashift": 128, "imagenet1k": 1024,
    "cub_pdiscoformer": 32, "flowers_pdiscoformer": 32, "part_imagenet_pdiscoformer": 32, "quickstart": 64,
    "nabirds_pdiscoformer": 32,
    "real_birds": 32, "atcon_quickstart": 20, "atcon_real_birds": 16,
    "atcon_voc": 4, "atcon_svhn": 4,
}  # fmt: skip
"""Images per step that each config is for: published, or those of docs/results."""
TEXTS = [
    ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").glob("*.yaml"), *(ROOT / "slurm").iterdir(),
    ROOT / "train.py",
]  # fmt: skip
SCRIPTS = r"(?:train\.py|train\.sbatch|seeds\.sbatch|slurm\.submit)"
LAUNCH = re.compile(rf"(?:torchrun|sbatch|python)\b[^`\n]*?{SCRIPTS}[^`\n|\"#]*")
LINES = sorted(
    {
        line.strip()
        for path in TEXTS
        if path.is_file()
        for line in LAUNCH.findall(path.read_text().replace("\\\n#", " ").replace("\\\n", " "))
        if "--config configs/" in line
    }
)


def number(words: list[str], flag: str, default: int) -> int:
    found = re.search(rf"{flag}[= ](\d+)", " ".join(words))
    return int(found[1]) if found else default


def processes_of(line: str) -> int:
    """The processes that a launch line starts; those of a job script stand in its header."""
    words = shlex.split(line)
    if words[0] == "torchrun":
        return number(words, "--nnodes", 1) * number(words, "--nproc-per-node", 1)
    if "slurm.submit" in line:
        return number(words, "--nodes", 1) * number(words, "--tasks", number(words, "--gpus", 1))
    job = re.search(r"slurm/\w+\.sbatch", line)
    if not job:
        return 1
    header = re.findall(r"^#SBATCH (\S+)", (ROOT / job[0]).read_text(), re.MULTILINE)
    options = words[: next(i for i, word in enumerate(words) if "sbatch" in word and "/" in word)]
    counts = [number(options, flag, number(header, flag, 1)) for flag in ("--nodes", "--ntasks-per-node")]
    return math.prod(counts)


def test_there_are_launch_lines_of_every_kind() -> None:
    kinds = (
        "torchrun",
        "sbatch slurm/train",
        "sbatch --nodes",
        "sbatch --array",
        "python -m slurm.submit",
        "python train.py",
    )
    assert all(any(line.startswith(kind) for line in LINES) for kind in kinds) and len(LINES) > 20
    assert {processes_of(line) for line in LINES} >= {1, 2, 4, 8, 16, 32}


@pytest.mark.parametrize("line", LINES)
def test_a_documented_launch_line_has_the_meant_images(line: str) -> None:
    name = re.search(r"configs/(\w+)\.yaml", line)
    assert name
    given = re.findall(r"--data\.(?:batch_size|global_batch|max_batch_per_device)[= ]\S+", line)
    config = parse_config([f"--config={ROOT / name[0]}", *(flag.replace(" ", "=") for flag in given)])
    stated = re.search(r"--data\.global_batch[= ](\d+)", line)  # for other data than those of the config
    assert step_batch(config, processes_of(line)).images == (int(stated[1]) if stated else MEANT[name[1]])


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("*.yaml")))
def test_a_config_has_the_meant_images_on_one_machine(name: str) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert step_batch(config, 1).images == MEANT[name]
    if config.data.global_batch:
        assert {step_batch(config, count).images for count in (2, 4, 8, 16, 32)} == {MEANT[name]}


@pytest.mark.parametrize(
    ("total", "most", "processes", "expected"),
    [
        (128, 16, 1, (16, 8)), (128, 16, 8, (16, 1)), (128, 16, 4, (16, 2)), (128, 16, 32, (4, 1)),
        (96, 20, 2, (16, 3)), (26, 4, 2, (1, 13)), (30, 4, 1, (3, 10)),
    ],
)  # fmt: skip
def test_the_fewest_micro_batches_that_fit(
    total: int, most: int, processes: int, expected: tuple[int, int], tmp_path: Path
) -> None:
    keys = {"data.global_batch": total, "data.max_batch_per_device": most, "data.batch_size": 16}
    found = step_batch(tiny_config(tmp_path, keys), processes)
    assert found == StepBatch(processes, *expected) and found.images == total and str(total) in str(found)


GLOBAL = {"data.global_batch": 8, "data.batch_size": 16}


@pytest.mark.parametrize(
    ("processes", "message"), [(3, "set it to 6 or 9"), (16, "set it to 16"), (5, "set it to 5 or 10")]
)
def test_an_uneven_split_names_the_nearest_batches(processes: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"data\.global_batch=8 .* {processes} processes.*{message}$"):
        step_batch(tiny_config(tmp_path, GLOBAL), processes)


@pytest.mark.parametrize(
    "keys", [{"data.batch_size": 2}, {"optim.grad_accum_steps": 2}, {"data.semi.mode": "combining"}]
)
def test_two_statements_of_the_batch_are_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    keys = {"loss.consistency.weight": 1.0, "data.semi.images_per_class": 2} | keys
    with pytest.raises(UserError, match=r"data\.(global_batch|semi)"):
        tiny_config(tmp_path, GLOBAL | keys)


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
@pytest.mark.parametrize("processes", [1, 4])
def test_only_scale_lr_moves_the_learning_rate(rule: str, factor: float, processes: int, tmp_path: Path) -> None:
    keys = {"data.global_batch": 64, "data.batch_size": 16, "optim.scale_lr": rule, "optim.lr": 1e-3}
    stated = tiny_config(tmp_path, keys)
    used = for_processes(stated, processes)
    assert used.optim.lr == pytest.approx(factor * 1e-3)
    batch = {"batch_size": used.data.batch_size, "grad_accum_steps": used.optim.grad_accum_steps}
    assert batch == {"batch_size": 16, "grad_accum_steps": 4 // processes}
    same = replace(used, optim=replace(used.optim, lr=stated.optim.lr, grad_accum_steps=1))
    assert replace(same, data=stated.data) == stated, "nothing else moves"


def test_a_step_has_the_same_images_however_it_is_split(tmp_path: Path) -> None:
    """34 images in steps of 8: 4 whole steps an epoch, the same images in each, on 1 and 2 processes."""
    split: Split = tiny_splits(tiny_config(tmp_path))["train"]

    def steps(batch_size: int, accumulation: int) -> list[set[int]]:
        sampler = BatchSampler(split, batch_size, 0, multiple_of=accumulation)
        batches = [[key[1] for key in batch] for batch in sampler.loader(3, 0, 0).batch_sampler]
        assert len(batches) == sampler.steps
        return [set(sum(batches[i : i + accumulation], [])) for i in range(0, len(batches), accumulation)]

    assert steps(8, 1) == steps(4, 2) == steps(1, 8) and len(steps(2, 4)) == 4


def test_weights_after_training_do_not_depend_on_the_split(tmp_path: Path) -> None:
    """Without noise that depends on the micro-batch, and with losses that are means over images."""
    keys = GLOBAL | {"model.name": "vit", "train.epochs": 1, "optim.name": "sgd", "optim.weight_decay": 0.05}
    ends = []
    for most in (8, 4):
        config = for_processes(tiny_config(tmp_path / str(most), keys | {"data.max_batch_per_device": most}), 1)
        session = Session(config).go()
        assert session.trainer.progress.step == 4
        ends.append(session.trainer.model.state_dict())
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-6) for name in ends[0])


def test_a_study_takes_runs_of_the_same_batch_for_its_own(tmp_path: Path) -> None:
    old = tiny_config(tmp_path, {"data.batch_size": 8, "optim.grad_accum_steps": 2})
    new = tiny_config(tmp_path, {"data.global_batch": 16, "data.max_batch_per_device": 8, "data.batch_size": 16})
    assert in_one_process(old) == in_one_process(new) != in_one_process(replace(new, data=old.data))


def test_submit_reads_the_processes_of_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """`processes_of` reads the line as slurm.submit does."""
    line = next(line for line in LINES if "slurm.submit --nodes 2" in line)
    monkeypatch.setattr("sys.argv", shlex.split(line)[2:])
    args, _ = parse_args()
    assert args.nodes * (args.tasks or args.gpus) == processes_of(line) == 16
