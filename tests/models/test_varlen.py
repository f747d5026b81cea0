import pytest
import torch
from torch import Tensor

from models.varlen import Packing, with_flash


def test_flash_attention_is_chosen_where_torch_offers_another() -> None:
    """The signatures of torch 2.11 and 2.14."""

    def old(q: Tensor, *, scale: float | None = None) -> float | None:
        return scale

    def new(q: Tensor, *, scale: float | None = None, num_splits: int | None = None) -> tuple[float | None, int | None]:
        return scale, num_splits

    assert with_flash(old)(torch.zeros(1), scale=2.0) == 2.0
    assert with_flash(new)(torch.zeros(1), scale=2.0) == (2.0, 1)


@pytest.mark.parametrize("counts", [(1, 5, 3), (6, 6, 6), (1, 1, 1), (2,)])
def test_packing(counts: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    visible = torch.stack([torch.randperm(6, generator=generator) < count for count in counts])
    packing, longest = Packing.of(visible), max(counts)
    for mine, known in zip(vars(packing).values(), vars(Packing.of(visible, counts)).values(), strict=True):
        assert torch.equal(mine, known)
    assert torch.equal(packing.index, visible.flatten().nonzero()[:, 0])
    assert packing.bounds.tolist() == [sum(counts[:i]) for i in range(len(counts) + 1)]
    assert packing.bounds.dtype == torch.int32 and packing.starts.tolist() == packing.bounds[:-1].tolist()
    tokens = torch.arange(visible.numel())
    padded = packing.padded(tokens[packing.index] + 1)
    for row, found, valid in zip(tokens.view(visible.shape)[:], padded, packing.valid, strict=True):
        wanted = row[visible[row[0] // 6]] + 1
        assert found.tolist() == wanted.tolist() + [0] * (longest - len(wanted))
        assert valid.tolist() == [index < len(wanted) for index in range(longest)]
