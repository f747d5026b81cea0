"""Stage 1 against its formulas in plain loops, with every kind of noise and intervention."""

import pytest
import torch
from torch import Tensor

from models.config import PartsConfig
from models.part_discovery import Intervention, PartHead, PartNoise, PartOutput, draw_noise
from models.selection import foreground_margin, keep_best_token, soft_gate, straight_through, without_parts
from models.two_stage import StageOne, TwoStageModel
from tests.models.small import backbone, config, images, shaken
from tests.models.textbook import Slow, stage_one

B, N, D, C, K = 2, 7, 6, 4, 3
CPU = torch.device("cpu")


def head_of(seed: int = 0, parts: int = K, **changes: object) -> PartHead:
    head = shaken(PartHead(D, C, PartsConfig(num_parts=parts, **changes)), seed)
    assert isinstance(head, PartHead)
    return head.eval()


def stage_of(size: tuple[int, int] = (32, 32), **changes: object) -> StageOne:
    torch.manual_seed(0)
    return StageOne(config(**changes), C, size).eval()


def tokens_of(seed: int = 0) -> Tensor:
    return torch.randn(B, N, D, generator=torch.Generator().manual_seed(100 + seed))


def noise_of(kind: str, parts: int = K) -> PartNoise:
    generator = torch.Generator().manual_seed(7)

    def gumbel() -> Tensor:
        return -torch.empty(B, N, parts + 1).exponential_(generator=generator).log()

    keep = torch.tensor([[True, False, True], [False, True, True]])[:, :parts]
    return {
        "none": lambda: PartNoise(),
        "gumbel": lambda: PartNoise(gumbel=gumbel()),
        "independent": lambda: PartNoise(gumbel=gumbel(), gumbel_mask=gumbel()),
        "mask only": lambda: PartNoise(gumbel_mask=gumbel()),
        "keep": lambda: PartNoise(keep_features=keep, keep_in_mask=~keep),
        "all": lambda: PartNoise(gumbel(), gumbel(), keep, keep.flip(0)),
    }[kind]()


def stack(rows: list[Slow], name: str) -> Tensor:
    return torch.tensor([getattr(row, name) for row in rows])


def assert_textbook(out: PartOutput, rows: list[Slow]) -> None:
    for name, mine in (("logits", out.logits), ("maps", out.maps), ("features", out.part_features)):
        torch.testing.assert_close(mine, stack(rows, name), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(out.part_logits, stack(rows, "scores"), atol=2e-5, rtol=1e-5)
    margin = foreground_margin(out.mask_logits)
    assert torch.equal(margin >= 0, stack(rows, "mask"))
    torch.testing.assert_close(margin.sigmoid(), stack(rows, "q"), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(soft_gate(out.mask_logits, out.noisy_logits), stack(rows, "soft"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["none", "gumbel", "independent", "mask only", "keep", "all"])
@pytest.mark.parametrize(("temperature", "scale"), [(1.0, 1.0), (2.5, 1.0), (1.0, 0.4), (0.5, 0.4)])
def test_equals_the_textbook(kind: str, temperature: float, scale: float) -> None:
    """softmax((l + g) / tau): the temperature divides the noise too, the logit scale does not."""
    head, x, noise = head_of(temperature=temperature, logit_scale=scale), tokens_of(), noise_of(kind)
    rows = [stage_one(x, head, noise, b) for b in range(B)]
    assert_textbook(head(x, noise), rows)
    visible = stack(rows, "mask")
    assert visible.any() and not visible.all()


def test_one_part() -> None:
    head, x = head_of(parts=1, seed=3), tokens_of(3)
    for noise in (PartNoise(), PartNoise(keep_features=torch.tensor([[True], [False]]))):
        assert_textbook(head(x, noise), [stage_one(x, head, noise, b) for b in range(B)])


def test_class_logits_are_the_mean_over_parts_including_dropped_ones() -> None:
    stage = stage_of()
    keep = torch.tensor([[True, False, False]] * B)
    out = stage(images(B), PartNoise(keep_features=keep))
    torch.testing.assert_close(out.class_logits, out.part_logits[..., 0] / 3)
    torch.testing.assert_close(out.part_logits[..., 0], stage(images(B), PartNoise()).part_logits[..., 0] / 0.7)


@pytest.mark.parametrize("kind", ["none", "all"])
def test_gradient_of_the_gate_is_that_of_the_thresholded_probability(kind: str) -> None:
    head, noise = head_of(), noise_of(kind)
    x = tokens_of().requires_grad_()
    weight = torch.randn(B, N, generator=torch.Generator().manual_seed(1))
    mask_logits = head(x, noise).mask_logits
    margin = foreground_margin(mask_logits)
    gate = straight_through(margin >= 0, margin)
    assert torch.equal(gate, (margin >= 0).float())
    (mine,) = torch.autograd.grad((gate * weight).sum(), x)

    y = head(x, PartNoise(gumbel=noise.gumbel_mask)).logits + (0 if noise.gumbel_mask is None else noise.gumbel_mask)
    y = y.softmax(-1)
    f = y[..., :K] if noise.keep_in_mask is None else y[..., :K] * noise.keep_in_mask[:, None]
    q = f.amax(-1) / (f.amax(-1) + y[..., K])
    (expected,) = torch.autograd.grad((q * weight).sum(), x)
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)
    assert mine.abs().max() > 1e-3


@pytest.mark.parametrize("form", ["distance", "dot_product"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_thresholds(form: str, temperature: float) -> None:
    head, x = head_of(threshold_form=form, temperature=temperature), tokens_of()
    dots = x @ head.prototypes.T
    thresholds = dots[..., :K].flatten(0, 1).quantile(0.6, dim=0)
    out = head(x, PartNoise(), Intervention(thresholds))
    assert_textbook(out, [stage_one(x, head, PartNoise(), b, thresholds.tolist()) for b in range(B)])
    cut = dots[..., :K] < thresholds
    assert cut.any() and (out.maps[..., :K][cut] == 0).all() and out.maps.isfinite().all()
    assert not torch.equal(out.maps, head(x, PartNoise()).maps)


def test_thresholds_never_reached_only_keep_maps_in_the_distance_form() -> None:
    never = Intervention(torch.full((K,), -1e6))
    for form, same in (("distance", True), ("dot_product", False)):
        head, x = head_of(threshold_form=form), tokens_of()
        plain, cut = head(x, PartNoise()), head(x, PartNoise(), never)
        assert torch.equal(plain.maps, cut.maps) == same
        assert torch.equal(plain.mask_logits, cut.mask_logits) == same


def test_interventions_are_ignored_in_training() -> None:
    head, x = head_of().train(), tokens_of()
    cut = head(x, PartNoise(), Intervention(torch.full((K,), 1e6), remove_parts=(0, 1, 2)))
    assert torch.equal(cut.mask_logits, head(x, PartNoise()).mask_logits)


@pytest.mark.parametrize("removed", [(0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("kind", ["none", "gumbel", "independent"])
def test_removed_parts_become_background_but_stay_in_the_maps(removed: tuple[int, ...], kind: str) -> None:
    head, x = head_of(independent_draws=kind == "independent"), tokens_of()
    before, after = head(x, noise_of(kind)), head(x, noise_of(kind), Intervention(remove_parts=removed))
    assert torch.equal(before.maps, after.maps) and after.maps.isfinite().all()
    winner = before.maps.argmax(-1)
    expected = torch.tensor([[int(w) != K and int(w) not in removed for w in row] for row in winner])
    assert torch.equal(foreground_margin(after.mask_logits) >= 0, expected)
    gate = soft_gate(after.mask_logits, after.noisy_logits)
    assert gate.isfinite().all() and (gate[torch.isin(winner, torch.tensor(removed))] == 0).all()
    assert torch.equal(after.part_logits, before.part_logits)


def test_no_fallback_if_the_only_part_is_removed() -> None:
    head, x = head_of(parts=1, seed=3), tokens_of(3)
    out = head(x, PartNoise(), Intervention(remove_parts=(0,)))
    mask = foreground_margin(out.mask_logits) >= 0
    assert (head(x, PartNoise()).maps.argmax(-1) == 1).any(), "some patches were background before"
    assert not keep_best_token(mask, out.fallback_score).any()
    assert soft_gate(out.mask_logits, out.noisy_logits).isfinite().all()


def test_fallback_ignores_removed_parts() -> None:
    head, x = head_of(), tokens_of()
    out = head(x, PartNoise(), Intervention(remove_parts=(0, 2)))
    logits, winner = head(x, PartNoise()).logits, head(x, PartNoise()).maps.argmax(-1)
    expected = torch.where(torch.isin(winner, torch.tensor([0, 2])), -torch.inf, logits[..., 1] - logits[..., K])
    torch.testing.assert_close(out.fallback_score, expected)


def test_best_part_is_compared_with_background_not_the_sum_of_parts() -> None:
    logits = torch.tensor([[[0.3, 0.3, 0.4], [0.5, 0.0, 0.5], [0.41, 0.19, 0.4]]]).log()
    assert (foreground_margin(logits) >= 0).tolist() == [[False, True, True]]


def test_a_dropped_part_cannot_win_even_where_the_background_underflows() -> None:
    logits = torch.tensor([[[0.0, -50.0, -500.0], [0.0, -500.0, -50.0]]])
    kept = without_parts(logits, torch.tensor([[False, True]]))
    assert (foreground_margin(kept) >= 0).tolist() == [[True, False]]
    none = without_parts(logits, torch.tensor([[False, False]]))
    assert not (foreground_margin(none) >= 0).any()
    gate = straight_through(foreground_margin(none) >= 0, foreground_margin(none))
    assert torch.equal(gate, torch.zeros(1, 2))


def test_best_token_fills_only_empty_rows() -> None:
    mask = torch.tensor([[False, False, False], [True, False, False], [False, False, False]])
    score = torch.tensor([[-3.0, -1.0, -2.0], [-3.0, -1.0, -2.0], [-torch.inf] * 3])
    expected = [[False, True, False], [True, False, False], [False, False, False]]
    assert keep_best_token(mask, score).tolist() == expected


@pytest.mark.parametrize("kind", ["none", "all"])
def test_a_float64_model_is_computed_in_float64(kind: str) -> None:
    head, x, noise = head_of().double(), tokens_of().double(), noise_of(kind)
    thresholds = torch.zeros(K)
    out = head(x, noise, Intervention(thresholds))
    rows = [stage_one(x, head, noise, b, thresholds.tolist()) for b in range(B)]
    for name, mine in (("logits", out.logits), ("maps", out.maps), ("features", out.part_features)):
        expected = torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64)
        torch.testing.assert_close(mine, expected, atol=1e-10, rtol=1e-10)


def test_a_float64_two_stage_model_agrees_with_float32() -> None:
    torch.manual_seed(0)
    model, x = TwoStageModel(config(mask_gradient="straight_through"), C, (32, 32)), images(B)
    single = model.eval()(x)
    double = model.double()(x.double())
    assert double.logits.dtype == double.stage_1.part_maps.dtype == torch.float64
    torch.testing.assert_close(double.logits.float(), single.logits, atol=1e-5, rtol=1e-5)
    model.train()(x.double()).logits.sum().backward()
    assert model.stage_1.parts.prototypes.grad.isfinite().all()


def test_fp32_under_autocast() -> None:
    """Tokens of norm 40: a bf16 dot product would be wrong by whole units."""
    head, x = head_of(), tokens_of() * 40 / D**0.5
    plain = head(x, PartNoise())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = head(x, PartNoise())
    for name in ("logits", "maps", "mask_logits", "part_features", "part_logits"):
        assert getattr(cast, name).dtype == torch.float32
        assert torch.equal(getattr(cast, name), getattr(plain, name)), name
    halved = head(x.bfloat16(), PartNoise())
    assert torch.equal(halved.logits, head(x.bfloat16().float(), PartNoise()).logits)


def test_in_eval_the_mask_is_the_argmax_of_the_maps_and_two_passes_agree() -> None:
    stage = stage_of((32, 40), empty_mask="prefix_only")
    stage.backbone = backbone("vit_t_dino", (32, 40))
    first, second = stage(images(2, (32, 40))).selection, stage(images(2, (32, 40))).selection
    assert first.maps.shape == (2, 4, 4, 5) and first.mask.shape == (2, 4, 5)
    assert torch.equal(first.mask, first.maps.argmax(1) != 3)
    assert first.mask.any() and not first.mask.all()
    assert torch.equal(first.maps, second.maps) and torch.equal(first.mask, second.mask)


@pytest.mark.parametrize("independent", [False, True])
def test_eval_noise_is_seeded_by_the_generator(independent: bool) -> None:
    parts = {"eval_noise": True, "independent_draws": independent}
    stage = stage_of(parts=parts)
    a, b, c = (stage(images(2), generator=torch.Generator().manual_seed(s)).selection for s in (5, 5, 6))
    assert torch.equal(a.maps, b.maps) and torch.equal(a.mask, b.mask)
    assert not torch.equal(a.maps, c.maps)
    agree = (a.mask == (a.maps.argmax(1) != 3)).all()
    assert agree != independent, "maps and mask agree only if they share their noise"


def test_noise_that_is_drawn() -> None:
    def drawn(training: bool, **changes: object) -> list[bool]:
        noise = draw_noise(PartsConfig(num_parts=K, **changes), (B, N), CPU, training)
        return [t is not None for t in (noise.gumbel, noise.gumbel_mask, noise.keep_features, noise.keep_in_mask)]

    assert drawn(True) == [True, False, True, True]
    assert drawn(False) == [False] * 4
    assert drawn(True, gumbel=False, part_dropout=0.0) == [False, False, False, True]
    assert drawn(False, eval_noise=True, independent_draws=True) == [True, True, False, False]
    assert drawn(False, eval_noise=True, independent_draws=True, gumbel=False) == [False, True, False, False]
    noise = draw_noise(PartsConfig(num_parts=9), (100, 400), CPU, True, torch.Generator().manual_seed(0))
    assert noise.gumbel is not None and noise.keep_in_mask is not None
    assert abs(noise.gumbel.mean() - 0.5772) < 0.01 and abs(noise.gumbel.std() - 1.2825) < 0.01
    assert abs(noise.keep_in_mask.float().mean() - 0.7) < 0.05
