"""How a key or a number of the metrics is written for people."""

import math

FRACTIONS = (
    "accuracy", "auroc", "iou", "miou", "dice", "ratio", "fraction", "precision", "f1", "nmi", "ari", "error",
)  # fmt: skip
"""Last words of keys whose values lie in [0, 1] and are shown in percent."""
ACRONYMS = {
    "iou": "IoU", "miou": "mIoU", "auroc": "AUROC", "nmi": "NMI", "ari": "ARI", "lr": "learning rate",
    "tv": "total variation", "bg": "BG", "abpc": "ABPC", "auc": "AUC", "f1": "F1",
}  # fmt: skip
SUFFIXES = {"_paper": "paper", "_published": "published", "_dataset": "data set"}


def is_fraction(key: str) -> bool:
    """Whether the values of a metric's key ("val/worst_group_accuracy", "mask_iou_dataset") lie in [0, 1]."""
    words = key.lower().replace("/", " ").replace("_", " ").split()
    return "count" not in words and any(share in words for share in FRACTIONS)


def pretty(key: str) -> str:
    """The key as words: "val/worst_group_accuracy" becomes "worst group accuracy".

    The split goes; a run's rows and tables say elsewhere which one it is.
    """
    for split in ("train/", "val/", "test/"):
        key = key.removeprefix(split)
    key = key.replace("accuracy_top5", "top-5 accuracy").replace("stage_1/", "stage 1 ")
    key = key.replace("segmentation/map", "segmentation/mAP")
    key = key.replace("accuracy/group/", "").replace("accuracy/class/", "").replace("count/", "number of ")
    for suffix, text in SUFFIXES.items():
        key = f"{key.removesuffix(suffix)} ({text})" if key.endswith(suffix) else key
    words = key.replace("/", ": ").replace("_", " ").split(" ")
    return " ".join(ACRONYMS.get(word, word) for word in words)


def with_std(value: float, std: float, percent: bool) -> str:
    """value ± std: in percent with one decimal, else down to the second digit of std."""
    if percent or not std:
        return f"{number(value, percent)} ± {number(std, percent)}"
    decimals = min(max(1 - math.floor(math.log10(std)), 0), 6)
    return f"{value:,.{decimals}f} ± {std:,.{decimals}f}"


def number(value: float, percent: bool) -> str:
    """The value with one decimal in percent, or with four digits; whole numbers as they are; nan as a dash."""
    if math.isnan(value):
        return "–"
    if percent:
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"
