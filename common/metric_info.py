"""How values are shown, by key: percent or number, headline cards, training curves, names.

Metrics declare their keys beside the class (`metrics.base.ExactMetric.shown`); reports look them up here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MetricInfo:
    """How the values of one key are shown."""

    percent: bool = False
    """Shown in percent; otherwise as a number with four digits."""
    headline: int | None = None
    """Position among the headline values of a report, in ascending order; None: only in the table of all metrics."""
    panel: str | None = None
    """Title of the panel of the training curves that contains it; None: no curve."""
    label: str | None = None
    """Name in tables; None: derived from the key."""
    better: Literal["higher", "lower"] | None = None
    """Which values are better; None: neither, so it cannot select the best checkpoint (`train.best_metric`)."""


_DECLARED: dict[str, MetricInfo] = {
    # Values that no metric reports.
    "train/loss": MetricInfo(panel="loss", better="lower"),
    "val/loss": MetricInfo(panel="loss", better="lower"),
    "diverged": MetricInfo(percent=True, better="lower"),
    "agreement": MetricInfo(panel="agreement", better="higher"),
    "consistency": MetricInfo(panel="agreement", better="lower"),
    "changed_predictions_ratio": MetricInfo(percent=True, better="lower"),
    "seconds_per_map": MetricInfo(headline=180, better="lower"),
}
_PREFIXES = re.compile(r"^(?:(?:train|val|test|stage_1|as_mask)/)+")
_SUFFIXES = re.compile(r"(?:/low|/high|/all|_std|_paper|_published|_dataset)+$")


def declare(infos: Mapping[str, MetricInfo]) -> None:
    """Add keys. A key that ends in "/" stands for all keys that start with it ("accuracy/class/").

    Raises ValueError for a key that is already declared differently.
    """
    for key, info in infos.items():
        if _DECLARED.setdefault(key, info) != info:
            raise ValueError(f"{key!r} is already declared as {_DECLARED[key]}")


def metric_info(key: str) -> MetricInfo:
    """How to show a key; the default `MetricInfo` for one that is not declared.

    The key itself is looked up first, then without its prefixes (split, stage_1/, as_mask/), then also without its
    suffixes (/low, /high, /all, _std, _paper, _published, _dataset), then as a member of a family such as
    "accuracy/class/".
    """
    bare = _PREFIXES.sub("", key)
    for name in (key, bare, without_suffix(bare)):
        if name in _DECLARED:
            return _DECLARED[name]
    families = [family for family in _DECLARED if family.endswith("/") and bare.startswith(family)]
    return _DECLARED[max(families, key=len)] if families else MetricInfo()


def without_suffix(key: str) -> str:
    """The key without /low, /high, /all, _std, _paper, _published and _dataset at its end."""
    return _SUFFIXES.sub("", key)


def headlines(keys: Iterable[str]) -> list[str]:
    """The keys that are declared as headlines (exactly, without prefix or suffix), each once, in their order."""
    places = {key: info.headline for key in keys if (info := _DECLARED.get(key)) and info.headline is not None}
    return sorted(places, key=places.__getitem__)


def panels() -> dict[str, list[str]]:
    """Panel title -> its declared keys: headlines first, in their order, then the others as declared."""
    found: dict[str, list[str]] = {}
    order = sorted(_DECLARED.items(), key=lambda item: (item[1].headline is None, item[1].headline or 0))
    for key, info in order:
        if info.panel is not None:
            found.setdefault(info.panel, []).append(key)
    return found
