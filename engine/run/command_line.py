"""Parse flags and YAML files into one resolved RunConfig."""

import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings

from common.errors import UserError
from common.files import path_problem, read_file
from common.plain_yaml import LARGEST, check_yaml
from datasets.registry import with_input, with_prescribed
from engine.run.config import RunConfig, dump_config, flat
from engine.run.config_checks import problems
from engine.run.help import PlainHelpFormatter, add_keys, help_topic
from engine.run.published_flags import refuse_published_flags
from engine.run.renamed_keys import converted_config, refuse_old_flags, refuse_old_names, with_earlier_input

PROBLEMS: dict[type[Exception], str] = {
    UnicodeDecodeError: "a config file is not UTF-8 text",
    OverflowError: "a number is too large",
    ImportError: "a value names a Python module; modules are never imported",
}
"""What the parser's other exceptions mean."""


def config_parser(topic: str = "all", **kwargs: Any) -> ArgumentParser:
    """The parser of a RunConfig: `--config FILE` and one flag per field; for --help, the fields of `topic` alone."""
    # The docstrings of the fields become --help. Values may not name modules: the parser would import them.
    set_parsing_settings(docstring_parse_attribute_docstrings=True, import_path_denylist=["*"])
    set_loader("yaml", _load_plain, (yaml.YAMLError, ValueError))
    options = {"exit_on_error": False, "allow_abbrev": False, "formatter_class": PlainHelpFormatter, **kwargs}
    return add_keys(ArgumentParser(**options), topic)


def parse_config(args: Sequence[str] | None = None, **kwargs: Any) -> RunConfig:
    """Parse the command line (or `args`). Raises UserError for an unknown key or an invalid value."""
    arguments = list(sys.argv[1:] if args is None else args)
    if (topic := help_topic(arguments)) is not None:
        config_parser(topic, **kwargs).print_help()
        raise SystemExit(0)
    parser = config_parser(**kwargs)
    try:
        refuse_old_flags(arguments)
        refuse_published_flags(arguments)
        given = list(_spelled_out(list(_with_converted_configs(arguments))))
        return resolve(_instantiate(parser, parser.parse_args(given)))
    except ArgumentError as error:
        # Some messages are about a file but do not name it.
        unnamed = str(error).startswith(("Problems parsing config", "Unexpected config"))
        raise UserError(_one_line(error) + (_config_files(arguments) if unnamed else "")) from None
    except tuple(PROBLEMS) as error:
        problem = next(text for kind, text in PROBLEMS.items() if isinstance(error, kind))
        raise UserError(problem + _config_files(arguments)) from None


def load_config(path: Path, overrides: Mapping[str, Any] = MappingProxyType({})) -> RunConfig:
    """Read one YAML file, with `overrides` by dotted key on top. Raises UserError."""
    flags = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()]
    if not path.is_file():
        raise UserError(f"no such config file: {path}")
    return parse_config([f"--config={path}", *flags])


def resolve(config: RunConfig) -> RunConfig:
    """Apply `compat` and what the data set and the backbone prescribe, then check. Raises UserError naming the key."""
    config = replace(config, data=with_prescribed(config.data))
    if config.compat == "reference":
        config = _with_reference_quirks(config)
    optional = {key for key, default in flat(asdict(RunConfig())) if default is None}
    for key, value in flat(asdict(config)):
        if value is None and key not in optional:  # left empty in a YAML file, which the parser accepts
            raise UserError(f"{key} has no value; give one or omit the key")
        if isinstance(value, str) and (problem := path_problem(value)):
            raise UserError(f"{key} {problem}")
        for number in value if isinstance(value, tuple | list) else (value,):
            if isinstance(number, int | float) and not abs(number) < 2**63:  # true for nan as well
                raise UserError(f"{key}={number:.6g} is too large or not a number")
    for problem in problems(config):
        raise UserError(problem)
    from models.backbone import own_input  # imports torch and timm: slow, and not needed for --help or a wrong flag

    return replace(config, data=with_input(config.data, own_input(config.model.backbone)))


def _with_reference_quirks(config: RunConfig) -> RunConfig:
    parts = replace(config.model.parts, independent_draws=True, eval_noise=True, threshold_form="dot_product")
    model = replace(config.model, parts=parts, empty_mask="prefix_only", mask_gradient="detached")
    equivariance = replace(config.loss.equivariance, published=True, images=0, padding="zeros")
    return replace(config, model=model, loss=replace(config.loss, orthogonality="channels", equivariance=equivariance))


_load_yaml = get_loader("yaml")


def _load_plain(text: str) -> Any:
    check_yaml(text)
    values = _load_yaml(text)
    if isinstance(values, dict):
        refuse_old_names(values)
    return values


def _with_converted_configs(arguments: list[str]) -> Iterator[str]:
    """The arguments; a config file that an earlier version saved in a run folder is replaced by its converted text.

    Raises UserError as `_refuse_other_files` does.
    """
    groups = {key.rpartition(".")[0] for key, _ in flat(asdict(RunConfig()))} - {""}
    flags = {f"--{key}" for key in (*groups, "config")}
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        flag, equals, value = (previous, "", argument) if previous in flags else argument.partition("=")
        if flag in flags and (equals or flag == previous):
            _refuse_other_files(flag.removeprefix("--"), value, groups)
        text = _converted_text(Path(value)) if flag == "--config" and value else None
        yield argument if text is None else f"{flag}={text}" if equals else text


def _refuse_other_files(key: str, value: str, groups: set[str]) -> None:
    """Raise UserError where --config is no regular file, and where a group of keys is given as a plain value.

    The parser would read the file that the value names, as in `train: other.yaml`.
    """
    try:
        is_file = key == "config" and os.path.exists(value)
        text = read_file(value, 4 * LARGEST).decode() if is_file else value
        check_yaml(text)
        values = _load_yaml(text)
    except OSError as error:
        raise UserError(f"cannot read {value} ({error.strerror})") from None
    except (ValueError, yaml.YAMLError):
        return  # the parser will report what is wrong with it
    prefix = "" if key == "config" else f"{key}."
    for name, content in flat(values, prefix) if isinstance(values, dict) else [(key, values)]:
        if name == "config" and prefix == "" and isinstance(values, dict):
            raise UserError("config: a config file cannot name another one; give both with --config")
        if name == "overwrite" and prefix == "" and content not in (False, None):
            raise UserError("overwrite: it deletes a run, so it is a flag and no key of a config; pass --overwrite")
        if name in groups and content != {}:
            raise UserError(f"{name} is a group of keys, not a value; set its keys, such as {name}.NAME, or omit it")


def _converted_text(path: Path) -> str | None:
    """The config of a run folder with today's names, as YAML; None for a file that needs no conversion."""
    try:
        if not any((path.parent / folder).is_dir() for folder in ("best", "checkpoints")):
            return None
        text = read_file(path, 4 * LARGEST).decode()
        check_yaml(text)
        values = _load_yaml(text)
    except (OSError, ValueError, yaml.YAMLError):
        return None  # the parser will report what is wrong with it
    converted = with_earlier_input(converted_config(values)) if isinstance(values, dict) else values
    return None if converted == values else dump_config(converted)


def _instantiate(parser: ArgumentParser, namespace: Namespace) -> RunConfig:
    values = parser.instantiate(namespace)
    return RunConfig(**{name: values[name] for name in RunConfig.__dataclass_fields__})


def _spelled_out(arguments: list[str]) -> Iterator[str]:
    """Spell flags as the parser knows them: `--resume.allow-change`, and `--resume` and `--overwrite` without a value.

    `resume` is a value, so it cannot have keys.
    """
    for argument, following in itertools.pairwise([*arguments, "--"]):
        flag, _, value = argument.partition("=")
        if flag == "--resume.allow-change":
            yield f"--allow_change={value or 'true'}"
        elif argument in ("--resume", "--overwrite") and following.startswith("--"):
            yield f"{argument}=true"
        else:
            yield argument


def _one_line(error: Exception) -> str:
    """The parser's message without its layout and its list of accepted types: "KEY: what is wrong with the value"."""
    text = " ".join(str(error).split())
    text = re.sub(r"Does not validate against any of the Union subtypes Subtypes: .* Errors: - ", "", text)
    return re.sub(r'Parser key "([^"]+)": (?:Not of type \w+: )?', r"\1: ", text)[:400]


def _config_files(args: Sequence[str]) -> str:
    following = dict(zip(args, [*args[1:], ""], strict=True))
    files = [arg.partition("=")[2] or following[arg] for arg in args if arg.partition("=")[0] == "--config"]
    return f" (in {', '.join(files)})"
