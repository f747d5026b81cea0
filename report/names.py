"""How the keys and values of metrics are written in tables, cards and curves."""

import math
from collections.abc import Mapping
from typing import Any

from common.metric_info import metric_info, without_suffix

ACRONYMS = {
    "iou": "IoU", "miou": "mIoU", "auroc": "AUROC", "nmi": "NMI", "ari": "ARI", "lr": "learning rate",
    "tv": "total variation", "bg": "BG", "abpc": "ABPC", "auc": "AUC", "f1": "F1",
}  # fmt: skip
SUFFIXES = {"_paper": "paper", "_published": "published", "_dataset": "data set"}


def is_fraction(key: str) -> bool:
    """Whether the values of a metric's key ("val/worst_group_accuracy") are fractions that are shown in percent."""
    return metric_info(key).percent


def pretty(key: str) -> str:
    """The key in words: "val/worst_group_accuracy" becomes "worst group accuracy".

    The split is dropped; rows and tables name it elsewhere.
    """
    for split in ("train/", "val/", "test/"):
        key = key.removeprefix(split)
    stage, key = ("stage 1 ", key.removeprefix("stage_1/")) if key.startswith("stage_1/") else ("", key)
    base = without_suffix(key)
    if label := metric_info(base).label:
        return stage + label + key[len(base) :].replace("/", ": ").replace("_", " ")
    key = key.replace("accuracy/group/", "").replace("accuracy/class/", "").replace("count/", "number of ")
    for suffix, text in SUFFIXES.items():
        key = f"{key.removesuffix(suffix)} ({text})" if key.endswith(suffix) else key
    words = key.replace("/", ": ").replace("_", " ").split(" ")
    return stage + " ".join(ACRONYMS.get(word, word) for word in words)


def with_std(value: float, std: float, percent: bool) -> str:
    """value ± std: in percent with one decimal, else down to the second digit of std."""
    if percent or not std:
        return f"{number(value, percent)} ± {number(std, percent)}"
    decimals = min(max(1 - math.floor(math.log10(std)), 0), 6)
    return f"{value:,.{decimals}f} ± {std:,.{decimals}f}"


def number(value: float, percent: bool) -> str:
    """The value in percent with one decimal, or with four digits; whole numbers in full; nan as a dash."""
    if math.isnan(value):
        return "–"
    if percent:
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def interval(values: Mapping[str, Any], key: str) -> str:
    """The bounds `<key>/low` and `<key>/high` of a metric in words; empty where one is missing or not finite."""
    low, high = (values.get(f"{key}/{bound}") for bound in ("low", "high"))
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    percent = is_fraction(key)
    return f"95 % interval: {number(low, percent)} to {number(high, percent)}" + (" %" if percent else "")
