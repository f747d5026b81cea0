"""Configs: every file in configs/, one-line errors, precedence of flags and files, round trip."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from commands.study_jobs import same_run
from common.errors import UserError
from engine.run.batch import step_batch
from engine.run.command_line import config_parser, load_config, parse_config, resolve
from engine.run.config import RunConfig, dump_config, save_config
from engine.run.folder import open_run, run_config
from models.registry import build_model
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
QUIRKS = {
    "model.parts.independent_draws": True,
    "model.parts.eval_noise": True,
    "model.parts.threshold_form": "dot_product",
    "model.empty_mask": "prefix_only",
    "model.mask_gradient": "detached",
    "loss.orthogonality": "channels",
    "loss.equivariance.published": True,
    "loss.equivariance.images": 0,
    "loss.equivariance.padding": "zeros",
}
"""All that compat=reference sets."""
OURS = {
    "model.parts.independent_draws": False,
    "model.parts.eval_noise": False,
    "model.parts.threshold_form": "distance",
    "model.empty_mask": "best_token",
    "model.mask_gradient": "straight_through",
    "loss.orthogonality": "parts",
    "loss.equivariance.published": False,
    "loss.equivariance.images": 16,
    "loss.equivariance.padding": "reflection",
}


def flat(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value."""

    return leaves(asdict(config))


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@pytest.mark.parametrize("rest", [[], ["--train.epochs=3"], ["--train.epochs", "3"]])
def test_resume_and_overwrite_need_no_value(rest: list[str]) -> None:
    assert parse_config(["--resume", *rest]).resume is True
    assert parse_config([*rest, "--overwrite"]).overwrite is True
    assert parse_config(["--resume", "auto", *rest]).resume == "auto"
    assert parse_config(["--overwrite", "false", *rest]).overwrite is False
    assert parse_config(["--resume", "--resume.allow-change", *rest]).allow_change is True
    assert "contradict" in one_line("--resume", "--overwrite")


def one_line(*args: str) -> str:
    """The error message; it must be a short single line."""
    with pytest.raises(UserError) as caught:
        parse_config(list(args))
    message = str(caught.value)
    assert "\n" not in message and 0 < len(message) < 500
    return message


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return f"--config={path}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_resolves_and_names_itself(path: Path) -> None:
    config = load_config(path)
    assert config == resolve(config)
    assert config.out.startswith("runs/")
    head = path.read_text().split("\nout:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"python train.py --config configs/{path.name}" in head and "ardware" in head


def test_there_are_configs() -> None:
    assert {"quickstart", "cub", "waterbirds"} <= {path.stem for path in CONFIGS}


def test_published_settings_of_cub() -> None:
    config = load_config(ROOT / "configs" / "cub.yaml")
    assert step_batch(config, 1).images == 128
    assert config.optim.lr == pytest.approx(1e-6 * (128 / 16) ** 0.5, rel=1e-3)
    assert (config.train.epochs, config.data.image_size, config.model.parts.num_parts) == (90, 518, 8)
    assert config.optim.freeze_stage_1 and not config.optim.freeze_stage_2
    assert config.loss.weights.enforced_presence == 2.0 and config.optim.schedule == "cosine"


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--model.backbon=x"], "--model.backbon"),  # not taken as short for model.backbone
        (["--train.epoch=3"], "--train.epoch"),
        (["--nonsense=1"], "--nonsense"),
        (["stray"], "stray"),
        (["--optim.lr=fast"], "optim.lr"),
        (["--train.epochs=1.5"], "train.epochs"),
        (["--train.precision=fp8"], "train.precision"),
        (["--optim.betas=[0.9]"], "optim.betas"),
        (["--data.image_size=big"], "data.image_size"),
        (["--data.image_size=[32,32,32]"], "data.image_size"),
        (["--model.parts={num_parts: 3, colour: red}"], "parts.colour"),
        (["--resume=true", "--overwrite=true"], "--resume and --overwrite"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--config=configs"], "configs"),
    ],
)  # fmt: skip
def test_a_mistaken_flag_is_named(args: list[str], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert named in one_line(*args)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model: {backbon: x}", "backbon"),
        ("nonsense: 1", "nonsense"),
        ("data: {synthetic: {noise: loud}}", "data.synthetic.noise"),
        ("loss: {classification: {kind: hinge}}", "loss.classification.kind"),
        ("model:\n  backbone:\n", "model.backbone"),  # a key left empty
        ("train: {epochs: null}", "train.epochs"),
        ("optim:\n  lr: 1e-4\n\tclip: 3", "mine.yaml"),  # a tab: no YAML at all
        ("- a list", "mine.yaml"),
        ("", "mine.yaml"),
    ],
)  # fmt: skip
def test_a_mistaken_file_is_named_or_its_key(text: str, named: str, tmp_path: Path) -> None:
    assert named in one_line(written(tmp_path / "mine.yaml", text))
    assert named in one_line("--config", written(tmp_path / "mine.yaml", text).removeprefix("--config="))


RANGES = {
    "model.parts.num_parts": (0, -1, 1.5), "model.parts.temperature": (0.0, -1.0), "model.parts.logit_scale": (0.0,),
    "model.parts.part_dropout": (1.0, -0.1), "model.parts.mask_dropout": (1.0, -0.1), "model.drop_path": (1.0, -0.1),
    "model.stage_1_drop_path": (1.0, -0.1), "train.epochs": (0, "ten", "true"), "train.eval_every": (0,),
    "train.ema_decay": (1, -1), "train.threads": (-1,), "train.sheet_every": (-1,), "train.save_every_steps": (-1,),
    "train.eval_every_steps": (-1,), "train.keep_every": (-1,), "optim.lr": (0.0, -1.0, "nan"), "optim.eps": (-1e-8,),
    "optim.weight_decay": (-0.1,), "optim.head_lr_mult": (-1.0,), "optim.clip": (-1.0,), "optim.grad_accum_steps": (0,),
    "optim.step_epochs": (0,), "optim.step_decay": (0.0,), "optim.warmup_epochs": (-1,),
    "optim.min_lr_ratio": (1.5, -0.5), "optim.stage_1_epochs": (90, -1), "data.image_size": (0, "[32, 0]"),
    "data.batch_size": (0,), "data.eval_batch_size": (0,), "data.workers": (-1,),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in RANGES.items() for value in values])
def test_a_value_out_of_range_is_named(key: str, value: object, tmp_path: Path) -> None:
    group, _, name = key.rpartition(".")
    nested = f"{{{group.replace('.', ': {')}: {{{name}: {value}}}}}" + "}" * group.count(".")
    for given in (f"--{key}={value}", written(tmp_path / "mine.yaml", nested)):
        assert one_line(given).startswith(key)


def test_the_message_names_key_range_and_value() -> None:
    assert one_line("--train.epochs=0") == "train.epochs: must be an integer above 0, got 0"
    assert (
        one_line("--model.parts.part_dropout=1")
        == "model.parts.part_dropout: must be a number from 0 to below 1, got 1"
    )
    assert "bool" in (message := one_line("--resume=maybe")) and "'auto'" in message and "maybe" in message


@pytest.mark.parametrize(
    "values",
    [
        "mean=[.nan, 0, 0]",
        "mean=[0, .inf, 0]",
        "std=[.inf, 1, 1]",
        "std=[0, 1, 1]",
        "std=[1, 1, 1e-40]",
        "std=[1, .nan, 1]",
    ],
)
def test_mean_and_std_can_be_computed_with(values: str) -> None:
    with pytest.raises(UserError, match=f"data.{values[: values.index('=')]}"):
        parse_config([f"--data.{values}"])


def test_numbers_with_a_range_stay_plain() -> None:
    """YAML writers reject the number classes that check the range."""
    config = parse_config(["--optim.lr=1", "--train.epochs=3", "--train.ema_decay=0"])
    numbers = (config.optim.lr, config.train.epochs, config.train.ema_decay)
    assert numbers == (1.0, 3, 0.0) and [type(number) for number in numbers] == [float, int, float]


def test_nothing_to_train_is_an_error() -> None:
    weights = RunConfig().loss.weights
    off = [f"--loss.weights.{name}=0" for name in asdict(weights)]
    assert "loss.weights" in one_line(*off)
    only_stage_2 = [flag for flag in off if "stage_2" not in flag]
    parse_config(only_stage_2)
    assert "stage_1_epochs" in one_line(*only_stage_2, "--optim.stage_1_epochs=1")


def test_load_config_of_a_missing_file() -> None:
    with pytest.raises(UserError, match="nowhere.yaml"):
        load_config(Path("nowhere.yaml"))


def test_later_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    text = "optim: {lr: 0.5, clip: 3.0}\nmodel: {parts: {num_parts: 5}}\ndata: {image_size: [32, 48]}"
    file = written(tmp_path / "mine.yaml", text)
    config = parse_config([file, "--optim.lr=0.25", "--model.parts.temperature=2"])
    assert (config.optim.lr, config.optim.clip, config.optim.eps) == (0.25, 3.0, 1e-8)
    assert (config.model.parts.num_parts, config.model.parts.temperature) == (5, 2.0)
    assert config.data.size_hw == (32, 48)
    assert parse_config(["--optim.lr=0.25", file]).optim.lr == 0.5  # in the order given
    second = written(tmp_path / "second.yaml", "optim: {clip: 4.0}")
    assert parse_config([file, second]).optim == replace(parse_config([file]).optim, clip=4.0)


def test_overrides_keep_their_types(tmp_path: Path) -> None:
    written(tmp_path / "mine.yaml", "out: runs/x")
    overrides = {
        "out": "5", "wandb.name": "007", "wandb.group": None, "data.image_size": [32, 64], "train.log_test": True,
        "optim.betas": (0.8, 0.9), "model.parts": {"num_parts": 2}, "data.root": "a b, c: [d] # e",
    }  # fmt: skip
    config = load_config(tmp_path / "mine.yaml", overrides)
    assert (config.out, config.wandb.name, config.wandb.group) == ("5", "007", None)
    assert (config.data.image_size, config.train.log_test, config.optim.betas) == ((32, 64), True, (0.8, 0.9))
    assert (config.model.parts.num_parts, config.data.root) == (2, "a b, c: [d] # e")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_save_and_load_round_trip(path: Path, tmp_path: Path) -> None:
    odd = {"out": "1e3", "wandb.name": "null", "data.image_size": [28, 56], "optim.lr": 1e-7, "data.root": "~/ü: x"}
    for config in (load_config(path), load_config(path, odd), load_config(path, {"compat": "reference"})):
        save_config(config, tmp_path / "config.yaml")
        assert run_config(tmp_path) == config


def test_a_run_started_with_overwrite_can_be_resumed_from_its_saved_config(tmp_path: Path) -> None:
    config = replace(tiny_config(tmp_path), overwrite=True)
    out = open_run(config, build_model(config.model, 2, (32, 32)))
    assert run_config(out, ["--resume=true"]) == replace(config, overwrite=False, resume=True)
    assert same_run(run_config(out), config)


def test_print_config_shows_every_key_and_can_be_fed_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_config(["--optim.lr=0.25", "--print_config"])
    assert stopped.value.code == 0
    file = written(tmp_path / "mine.yaml", capsys.readouterr().out)
    assert parse_config([file]) == parse_config(["--optim.lr=0.25"])
    assert set(flat(RunConfig())) <= set(leaves(config_parser().get_defaults().as_dict()))


def test_compat_reference_switches_every_quirk_on_and_nothing_else() -> None:
    ours = parse_config([f"--{key}={str(value).lower()}" for key, value in OURS.items()])
    assert {key: flat(ours)[key] for key in OURS} == OURS
    reference = resolve(replace(ours, compat="reference"))
    changed = {key: value for key, value in flat(reference).items() if flat(ours)[key] != value}
    assert changed == {**{key: value for key, value in QUIRKS.items() if OURS[key] != value}, "compat": "reference"}
    assert resolve(reference) == reference


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_can_be_run_the_published_way(path: Path) -> None:
    values = flat(load_config(path, {"compat": "reference"}))
    assert {key: values[key] for key in QUIRKS} == QUIRKS


def test_a_value_shared_by_two_keys_is_written_twice() -> None:
    """Not as an alias, which the parser refuses."""
    shared = (1, 2)
    assert dump_config({"a": shared, "b": shared}) == "a:\n- 1\n- 2\nb:\n- 1\n- 2\n"


def test_no_flag_at_all_gives_the_defaults() -> None:
    assert parse_config([]) == parse_config(["--train.epochs", str(RunConfig().train.epochs)])
