"""How well two labellings agree, from the table of how often each pair of labels meets.

The tables are exact counts, so a data set of pixels needs no list of its labels. Equal to scikit-learn's
`normalized_mutual_info_score` (arithmetic mean) and `adjusted_rand_score`, also where a labelling has one label alone.
"""

import math

import torch
from torch import Tensor


def normalized_mutual_information(table: Tensor) -> float:
    """Mutual information over the mean of the two entropies, in [0, 1]; table [P, C] int64, nan of an empty one."""
    if not table.any():
        return math.nan
    truth, found = table.sum(1), table.sum(0)
    if truth.count_nonzero() == found.count_nonzero() == 1:
        return 1.0
    apart = _entropy(truth) + _entropy(found)
    return min(max(2 * (apart - _entropy(table)) / apart, 0.0), 1.0)


def _entropy(counts: Tensor) -> float:
    """Of counts int64 of any shape, in nats."""
    shares = counts.double() / counts.sum()
    return math.fsum(torch.special.entr(shares).flatten().tolist())


def adjusted_rand_index(table: Tensor) -> float:
    """Share of pairs on which both agree, 0 for what chance would give and 1 for all; table [P, C] int64.

    nan of an empty table. In whole numbers: the square of a number of pixels does not fit into 64 bits.
    """
    rows: list[list[int]] = table.tolist()
    total = sum(map(sum, rows))
    if not total:
        return math.nan
    together = sum(count**2 for row in rows for count in row) - total
    only_truth = sum(sum(row) ** 2 for row in rows) - total - together
    only_found = sum(sum(column) ** 2 for column in zip(*rows, strict=True)) - total - together
    apart = total * (total - 1) - together - only_truth - only_found
    if not only_truth and not only_found:
        return 1.0
    return (2 * (together * apart - only_truth * only_found)) / (
        (together + only_truth) * (only_truth + apart) + (together + only_found) * (only_found + apart)
    )
