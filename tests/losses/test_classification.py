"""Classification losses against their formulas, top-k gradients against finite differences, mixing and its seeds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.errors import UserError
from losses.classification import ClassificationLoss, Mixup
from losses.config import ClassificationConfig

CE = ClassificationConfig()
BCE = ClassificationConfig(kind="bce")
BALANCED = ClassificationConfig(kind="balanced_topk", topk=2)
IMBALANCED = ClassificationConfig(kind="imbalanced_topk", topk=2)
COUNTS = [50, 5, 20, 1, 9]


def batch(size: int = 4, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (size,), generator=generator)


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    rows = [[smoothing / classes + (1 - smoothing) * (c == y) for c in range(classes)] for y in labels.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def slow_cross_entropy(logits: Tensor, probabilities: Tensor) -> float:
    rows = [
        -sum(q * (x - math.log(sum(map(math.exp, row)))) for q, x in zip(target, row, strict=True))
        for row, target in zip(logits.tolist(), probabilities.tolist(), strict=True)
    ]
    return sum(rows) / len(rows)


def slow_bce(logits: Tensor, probabilities: Tensor) -> float:
    terms = [
        -(q * math.log(1 / (1 + math.exp(-x))) + (1 - q) * math.log(1 / (1 + math.exp(x))))
        for x, q in zip(logits.flatten().tolist(), probabilities.flatten().tolist(), strict=True)
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("config", "slow"), [(CE, slow_cross_entropy), (BCE, slow_bce)])
def test_formulas(config, slow, smoothing):
    logits, labels = batch()
    loss = ClassificationLoss(replace(config, label_smoothing=smoothing), 5)
    assert loss(logits, labels).item() == pytest.approx(slow(logits, smoothed(labels, 5, smoothing)))
    probabilities = logits.flip(0).softmax(1)
    assert loss(logits, probabilities).item() == pytest.approx(
        slow(logits, probabilities)
    )  # probabilities are not smoothed again


def slow_topk(logits: Tensor, labels: Tensor, k: int, epsilon: float, margins: list[float]) -> float:
    """Mean of relu(margin + noised (k+1)-th largest - score of the class), with the noise pytopk draws."""
    noise = torch.randn(*logits.shape, 5)
    values = []
    for i, y in enumerate(labels.tolist()):
        noised = [sorted((logits[i] + epsilon * noise[i, :, n]).tolist(), reverse=True)[k] for n in range(5)]
        values.append(max(0.0, margins[y] + sum(noised) / 5 - logits[i, y].item()))
    return sum(values) / len(values)


@pytest.mark.parametrize("size", [1, 4])
def test_topk_formulas(size):
    logits, labels = batch(size)
    rare = [0.5 * (min(COUNTS) / count) ** 0.25 for count in COUNTS]
    for config, margins in ((BALANCED, [1.0] * 5), (IMBALANCED, rare)):
        loss = ClassificationLoss(config, 5, COUNTS)
        torch.manual_seed(1)
        value = loss(logits, labels)
        torch.manual_seed(1)
        assert value.item() == pytest.approx(slow_topk(logits, labels, 2, 1.0, margins), rel=1e-5)


@pytest.mark.parametrize("config", [BALANCED, IMBALANCED])
def test_topk_gradients(config):
    """For one draw of the noise the loss is piecewise linear, so finite differences give its gradient exactly."""
    logits, labels = batch()
    loss = ClassificationLoss(config, 5, COUNTS)

    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return loss(x, labels)

    # pytopk computes in fp32, hence the tolerance.
    assert torch.autograd.gradcheck(seeded, [logits.requires_grad_()], atol=1e-5)
    (gradient,) = torch.autograd.grad(seeded(logits), logits)
    assert (gradient[range(4), labels] <= 0).all()


def test_topk_without_noise_forgives_the_best_k():
    loss = ClassificationLoss(replace(BALANCED, topk_epsilon=0.0), 5)
    logits = torch.tensor([[5.0, 4.0, 1.0, 0.0, -1.0]])
    assert loss(logits, torch.tensor([1])) == 0
    assert loss(logits, torch.tensor([2])) == 1
    assert loss(logits, torch.tensor([4])) == 3


def test_topk_training_goes_down():
    torch.manual_seed(0)
    inputs, labels = torch.randn(40, 8), torch.arange(40) % 5
    weight = torch.zeros(8, 5, requires_grad=True)
    loss = ClassificationLoss(BALANCED, 5)
    optimiser = torch.optim.SGD([weight], lr=0.5)
    values = []
    for _ in range(60):
        value = loss(inputs @ weight, labels)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert sum(values[-10:]) < 0.8 * sum(values[:10])


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (replace(BALANCED, topk=5), "loss.classification.topk must be below the 5 classes"),
        (replace(BALANCED, mixup=0.2), "loss.classification.mixup"),
        (replace(IMBALANCED, cutmix=1.0), "loss.classification.cutmix"),
        (replace(BALANCED, label_smoothing=0.1), "loss.classification.label_smoothing"),
        (replace(CE, kind="hinge"), "loss.classification.kind 'hinge'"),
        (replace(BALANCED, cutmix_minmax=(0.2, 0.8)), "loss.classification.cutmix_minmax needs"),
        (replace(CE, cutmix_minmax=(0.8, 0.2)), "loss.classification.cutmix_minmax=[0.8, 0.2]"),
        (replace(CE, mixup_mode="elem"), "loss.classification.mixup_mode has no effect without"),
        (replace(CE, bce_sum=True), "loss.classification.bce_sum needs loss.classification.kind bce"),
        (replace(CE, bce_pos_weight=2.0), "loss.classification.bce_pos_weight needs"),
    ],
)
def test_keys_that_cannot_be_combined(config, key):
    with pytest.raises(UserError) as error:
        ClassificationLoss(config, 5, COUNTS)
    assert key in str(error.value)


@pytest.mark.parametrize("counts", [None, [1, 2], [3, 0, 3, 3, 3]])
def test_imbalanced_needs_counts(counts):
    with pytest.raises(UserError, match="imbalanced_topk"):
        ClassificationLoss(IMBALANCED, 5, counts)


def test_wrong_inputs():
    logits, labels = batch()
    with pytest.raises(ValueError, match="logits"):
        ClassificationLoss(CE, 6)(logits, labels)
    with pytest.raises(ValueError, match="float targets"):
        ClassificationLoss(CE, 5)(logits, labels.float())
    with pytest.raises(ValueError, match="class targets"):
        ClassificationLoss(BALANCED, 5)(logits, logits.softmax(1))


def test_mixup_off_changes_nothing():
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    mix = Mixup(CE, 5)
    state = torch.get_rng_state()
    mixed, targets = mix(images, labels)
    assert not mix.active
    assert mixed is images
    assert targets is labels
    assert torch.equal(state, torch.get_rng_state())


@given(
    st.sampled_from([(0.8, 0.0), (0.0, 1.0), (0.4, 1.0)]),
    st.integers(1, 7),
    st.integers(0, 99),
    st.sampled_from([0.0, 0.1]),
)
def test_probabilities_match_what_was_mixed(alphas, size, seed, smoothing):
    """Constant images of their own label: the mean of a mixed image is the mean label under its probabilities."""
    config = replace(CE, mixup=alphas[0], cutmix=alphas[1])
    labels = torch.arange(size)
    images = labels.float().view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
    before = images.clone()
    mixed, probabilities = Mixup(config, 7)(images, labels, seed)
    assert torch.equal(images, before)  # the batch is unchanged
    assert probabilities.shape == (size, 7)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(size))
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), probabilities @ torch.arange(7.0))
    if size % 2:
        assert torch.equal(mixed[-1], images[-1])
        assert probabilities[-1, size - 1] == 1
    _, smooth = Mixup(replace(config, label_smoothing=smoothing), 7)(images, labels, seed)
    torch.testing.assert_close(smooth, (1 - smoothing) * probabilities + smoothing / 7)


def test_mixing_follows_its_seed_and_does_not_change_numpys_state():
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    mix = Mixup(replace(CE, mixup=0.5, cutmix=0.5), 5)
    np.random.seed(11)
    expected = np.random.rand(3)
    np.random.seed(11)
    first = mix(images, labels, 4)
    assert np.array_equal(np.random.rand(3), expected)
    second = mix(images, labels, 4)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], mix(images, labels, 5)[1])
    torch.manual_seed(2)
    third = mix(images, labels)
    following = mix(images, labels)
    torch.manual_seed(2)
    assert torch.equal(third[1], mix(images, labels)[1])
    assert not torch.equal(third[1], following[1])


@pytest.mark.parametrize(
    ("dials", "kind"),
    [({"mixup_switch_prob": 0.0}, "mixup"), ({"mixup_switch_prob": 1.0}, "cutmix"), ({"mixup_prob": 0.0}, "none")],
)
def test_the_probabilities_of_mixing(dials, kind):
    images, labels = torch.rand(6, 3, 16, 16), torch.arange(6) % 5
    kinds = set()
    for seed in range(8):
        mixed, _ = Mixup(replace(CE, mixup=0.5, cutmix=1.0, **dials), 5)(images, labels, seed)
        pasted = torch.isin(mixed, images).all().item()  # cutmix takes pixels over as they are
        kinds.add("none" if torch.equal(mixed, images) else "cutmix" if pasted else "mixup")
    assert kinds == {kind}


@pytest.mark.parametrize(("mode", "draws"), [("batch", 1), ("pair", 3), ("elem", 6)])
def test_the_mode_says_how_many_draws_a_batch_has(mode, draws):
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6)
    _, targets = Mixup(replace(CE, mixup=1.0, mixup_mode=mode), 6)(images, labels, 3)
    own = targets[torch.arange(6), labels]  # the weight of each image's own label
    # A pair has one draw; as the reverse of the batch its second image comes last.
    assert len({round(value, 5) for value in own.tolist()}) == draws


def test_cutmix_minmax_bounds_the_sides_of_the_box():
    images, labels = torch.stack([torch.zeros(3, 20, 40), torch.ones(3, 20, 40)]), torch.arange(2)
    config = replace(CE, cutmix_minmax=(0.25, 0.75))
    for seed in range(20):
        mixed, targets = Mixup(config, 2)(images, labels, seed)
        rows, columns = mixed[0, 0].amax(1).sum().item(), mixed[0, 0].amax(0).sum().item()
        assert 5 <= rows <= 15 and 10 <= columns <= 30
        assert targets[0, 1].item() == pytest.approx(rows * columns / 800)
    with pytest.raises(UserError, match="less than a pixel"):
        Mixup(replace(CE, cutmix_minmax=(0.25, 0.26)), 2)(images, labels)


def test_the_dials_of_binary_cross_entropy():
    """Against the formula: -w y log p - (1 - y) log(1 - p), mean over images, sum over classes."""
    logits, labels = batch()
    hot = torch.nn.functional.one_hot(labels, 5).double()
    config = replace(BCE, bce_sum=True, bce_pos_weight=3.0)

    def by_formula(targets):
        p = logits.sigmoid()
        return (-3 * targets * p.log() - (1 - targets) * (1 - p).log()).sum(1).mean().item()

    assert ClassificationLoss(config, 5)(logits, labels).item() == pytest.approx(by_formula(hot))
    assert ClassificationLoss(config, 5)(logits, hot.bool()).item() == pytest.approx(by_formula(hot))
    threshold = replace(config, bce_target_threshold=0.3, label_smoothing=0.1)
    assert ClassificationLoss(threshold, 5)(logits, labels).item() == pytest.approx(by_formula(hot))
    mixed = 0.6 * hot + 0.4 * hot.flip(0)
    above = (mixed > 0.3).double()
    assert ClassificationLoss(threshold, 5)(logits, mixed).item() == pytest.approx(by_formula(above))


@pytest.mark.parametrize("config", [CE, BCE])
def test_mixed_targets_go_into_the_loss(config):
    config = replace(config, mixup=0.5, label_smoothing=0.1)
    images, labels = torch.rand(5, 3, 8, 8), torch.arange(5)
    _, probabilities = Mixup(config, 5)(images, labels, 0)
    logits = torch.randn(5, 5, requires_grad=True)
    ClassificationLoss(config, 5)(logits, probabilities).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("config", [CE, BCE])
def test_multi_label_targets_are_binary_cross_entropy(config):
    logits, _ = batch()
    present = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) > 0.5
    loss = ClassificationLoss(config, 5)(logits, present)
    assert loss.item() == pytest.approx(slow_bce(logits, present.double()))


def test_keys_that_multi_label_targets_refuse():
    logits, _ = batch()
    present = torch.ones(4, 5, dtype=torch.bool)
    with pytest.raises(UserError, match="loss.classification.label_smoothing=0.1 is for images of one class"):
        ClassificationLoss(replace(CE, label_smoothing=0.1), 5)(logits, present)
    with pytest.raises(UserError, match="loss.classification.kind=balanced_topk is for images of one class"):
        ClassificationLoss(BALANCED, 5)(logits, present)
    with pytest.raises(UserError, match="loss.classification.mixup and cutmix are for images of one class"):
        Mixup(replace(CE, mixup=0.2), 5)(torch.zeros(4, 3, 8, 8), present)
