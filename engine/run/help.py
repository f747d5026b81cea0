"""`--help` of the config keys: an overview, one group (`--help=optim`, `--help=model.parts`), or all (`--help=all`)."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from common.errors import UserError
from engine.run.config import RunConfig

USAGE = "%(prog)s [--config FILE] [--KEY VALUE ...]"


class PlainHelpFormatter(DefaultHelpFormatter):
    """Keeps the line breaks of a script's docstring and of the list of groups."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(f"{indent}{line}".rstrip() for line in text.splitlines())


def help_topic(arguments: Sequence[str]) -> str | None:
    """What `--help` in the arguments asks for: "" (the overview), "all", or the name of a group; None without it."""
    for argument in arguments:
        flag, _, topic = argument.partition("=")
        if flag in ("-h", "--help"):
            return topic
    return None


def add_keys(parser: ArgumentParser, topic: str = "all") -> ArgumentParser:
    """Add `--config` and one flag per key that belongs to the topic; returns the parser. Raises UserError."""
    groups = dict(_groups(RunConfig))
    if topic not in ("", "all", *groups):
        raise UserError(f"--help={topic}: there is no such group of keys; give all, or one of {', '.join(groups)}")
    if topic != "all":
        parser.usage = USAGE
    if topic in groups:
        parser.description = None
        parser.add_class_arguments(groups[topic], topic)
        return parser
    parser.add_argument("--config", action="config", help="YAML file of any of the keys below; later flags win")
    parser.add_class_arguments(RunConfig, None, skip=set() if topic == "all" else set(groups))
    if not topic:
        lines = [f"  --help={name:<20} {(kind.__doc__ or '').splitlines()[0]}" for name, kind in groups.items()]
        parser.epilog = "\n".join(["the other keys, by group:", *lines, f"  --help={'all':<20} All keys."])
    return parser


def _groups(kind: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Dotted name and dataclass of every group of keys."""
    for field in fields(kind):
        if isinstance(field.type, type) and is_dataclass(field.type):
            yield f"{prefix}{field.name}", field.type
            yield from _groups(field.type, f"{prefix}{field.name}.")
