"""Classes and backgrounds that agree in a stated share of the images."""

import numpy as np


def balanced_groups(count: int, correlation: float, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Labels and places (0 or 1) of `count` images, shuffled: classes balanced, a share `correlation` place == label.

    Counts are exact up to rounding, not drawn: every seed has the same group sizes.
    """
    label = np.arange(count) % 2
    of_class = np.where(label == 0, (count + 1) // 2, count // 2)
    agree = np.arange(count) // 2 < np.floor(of_class * correlation + 0.5)
    order = rng.permutation(count)
    return label[order].tolist(), np.where(agree, label, 1 - label)[order].tolist()
