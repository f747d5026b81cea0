"""docs/coming-from.md and train.py's answers to flags of other projects agree, and what they name exists."""

import re
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import train
from common.errors import UserError
from engine.run.command_line import parse_config
from engine.run.config import RunConfig, flat
from engine.run.published_flags import OUR_GROUPS, PUBLISHED_FLAGS, refuse_published_flags
from explain import METHODS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "coming-from.md").read_text()
TABLE = re.compile(r"^\| (iFAM, PDiscoFormer|timm) \| here \|\n\|---\|---\|\n((?:\|.*\n)+)", re.MULTILINE)
"""The tables of train.py's flags: iFAM's and PDiscoFormer's, and timm's."""
ROW = re.compile(r"^\| (.*) \| (.*) \|$", re.MULTILINE)
COLUMN = re.compile(r"^\| .* \| (.*) \|$|```bash\n(.*?)```", re.MULTILINE | re.DOTALL)
"""What stands on our side: the last column of every table, and the commands."""


def name_of(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def documented() -> dict[str, set[str]]:
    """Their flag, as in PUBLISHED_FLAGS -> the answers of the tables, without code type."""
    found: dict[str, set[str]] = {}
    for _, rows in TABLE.findall(PAGE):
        for flags, answer in ROW.findall(rows):
            for flag in re.findall(r"`(-[^`]+)`", flags):
                found.setdefault(name_of(flag), set()).add(answer.replace("`", ""))
    return found


def named() -> set[str]:
    """Every flag on our side of the page, and in the answers."""
    text = " ".join([*("".join(cells) for cells in COLUMN.findall(PAGE)), *PUBLISHED_FLAGS.values()])
    return set(re.findall(r"(?<![\w-])--([a-z][\w.-]*\w)", text))


def known() -> set[str]:
    """Config keys, options of explanation methods, and flags that scripts add."""
    keys = {key for key, _ in flat(asdict(RunConfig()))}
    options = {option.replace("_", "-") for method in METHODS for option in METHODS[method].options()}
    scripts = [*ROOT.glob("*.py"), *(ROOT / "commands").glob("*.py"), *(ROOT / "explain").glob("*.py")]
    added = {flag for path in scripts for flag in re.findall(r'"--([\w-]+)"', path.read_text())}
    return keys | options | added | {"config", "nproc-per-node"}


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_config(list(arguments))
    return str(caught.value)


def test_the_tables_and_the_answers_are_the_same() -> None:
    assert len(TABLE.findall(PAGE)) == 2
    assert documented() == {flag: {answer} for flag, answer in PUBLISHED_FLAGS.items()}


def test_what_it_names_exists() -> None:
    assert len(named()) > 80
    assert named() - known() == set()


def test_none_is_a_flag_of_ours() -> None:
    fields = set(RunConfig.__dataclass_fields__) | {"config", "help", "print_config"}
    assert PUBLISHED_FLAGS.keys() & fields == set(OUR_GROUPS)


@pytest.mark.parametrize("spelled", ["--{}", "--{}=1", "-{}"])
def test_every_one_is_answered(spelled: str) -> None:
    for flag, answer in PUBLISHED_FLAGS.items():
        for name in {flag, flag.replace("_", "-")}:
            with pytest.raises(UserError) as caught:  # not by the parser, which takes 0.2 seconds to build
                refuse_published_flags([spelled.format(name), "--train.epochs=3"])
            said = str(caught.value)
            assert said.startswith(f"{spelled.format(name).partition('=')[0]}: ") and answer in said
            assert "\n" not in said


def test_all_of_a_command_are_answered_at_once() -> None:
    """A published command in full: each of its flags, once, and no value taken for one."""
    said = refusal("--wandb", "--lr", "1e-6", "--data_path", "data/cub", "--use_soft_masks", "--lr", "-1")
    assert said == (
        "--wandb: here --wandb.mode online; --lr: here --optim.lr; --data_path: here --data.root; "
        "--use_soft_masks: here --model.mask_kind soft (docs/coming-from.md)"
    )


def test_a_group_of_ours_is_no_flag_of_theirs() -> None:
    assert parse_config(["--wandb", "{mode: offline}"]).wandb.mode == "offline"
    assert parse_config(["--model={name: vit}"]).model.name == "vit"
    assert parse_config(["--out=lr", "--model.name", "vit"]).out == "lr"
    assert "--model.backbone" in refusal("--model", "resnet50")


def test_the_command_ends_with_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--model_arch", "vit", "--epochs=28"])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: --model_arch: here --model.backbone; --epochs: here --train.epochs (docs/coming-from.md)\n"
    )
