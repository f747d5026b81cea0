"""Classes and backgrounds that match in a given fraction of the images."""

import numpy as np


def balanced_groups(count: int, correlation: float, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Shuffled labels and places (0 or 1): balanced classes; a fraction `correlation` of images has place == label.

    Counts are exact up to rounding, not random: every seed has the same group sizes.
    """
    label = np.arange(count) % 2
    # arange // 2 numbers the images of each class; the first of them agree.
    of_class = np.where(label == 0, (count + 1) // 2, count // 2)
    agree = np.arange(count) // 2 < np.floor(of_class * correlation + 0.5)
    order = rng.permutation(count)
    return label[order].tolist(), np.where(agree, label, 1 - label)[order].tolist()
