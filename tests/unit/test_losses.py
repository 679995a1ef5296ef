"""Every loss against values worked by hand, and against an independent implementation in float64."""

import math

import numpy as np
import pytest
import torch

from raypref import losses

LN2 = math.log(2)


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_denoising_error_is_the_mean_over_everything_but_the_batch():
    # image 0: differences 1, 1, 1, 3 -> (1 + 1 + 1 + 9) / 4 = 3; image 1: 0
    output = torch.tensor([[[[1.0, 1.0], [1.0, 3.0]]], [[[2.0, 2.0], [2.0, 2.0]]]])
    target = torch.tensor([[[[0.0, 2.0], [0.0, 0.0]]], [[[2.0, 2.0], [2.0, 2.0]]]])
    assert losses.denoising_error(output, target).tolist() == [3.0, 0.0]


def test_denoising_error_is_reduced_in_float32():
    # in float16 the squares of 300 overflow (90000 > 65504), and in bfloat16 the mean of 1.01 squared would lose digits
    output = torch.full((1, 4, 8, 8), 300.0, dtype=torch.float16)
    error = losses.denoising_error(output, torch.zeros_like(output))
    assert error.dtype == torch.float32
    assert error.item() == 90000


def test_dpo_with_a_certain_label():
    # k = 4 / 2 = 2. Pair 0: chosen = -2 (0.5 - 1.0) = 1, rejected = -2 (1.5 - 1.0) = -1, margin = 2
    #                Pair 1: chosen = -2 (1.0 - 1.0) = 0, rejected = -2 (0.5 - 1.0) = 1, margin = -1
    # loss = mean(ln(1 + e^-2), ln(1 + e^1)) = (0.126928 + 1.313262) / 2 = 0.720095
    loss, metrics = losses.dpo(t(0.5, 1.0), t(1.5, 0.5), t(1.0, 1.0), t(1.0, 1.0), beta=4.0)
    assert loss.item() == pytest.approx(0.720095, abs=1e-6)
    assert metrics["rewards/chosen"].item() == pytest.approx(0.5)  # (1 + 0) / 2
    assert metrics["rewards/rejected"].item() == pytest.approx(0.0)  # (-1 + 1) / 2
    assert metrics["rewards/margins"].item() == pytest.approx(0.5)  # (2 - 1) / 2
    assert metrics["rewards/accuracies"].item() == 0.5  # one of two margins is positive
    assert metrics["error/winner"].item() == 0.75  # (0.5 + 1) / 2
    assert metrics["error/loser"].item() == 1.0  # (1.5 + 0.5) / 2
    assert metrics["error/winner_reference"].item() == metrics["error/loser_reference"].item() == 1.0


def test_dpo_with_soft_labels():
    # k = 1, both margins 1 - (-1) = 2. Labels 0.75 and 0:
    # pair 0: 0.75 ln(1 + e^-2) + 0.25 ln(1 + e^2) = 0.75 * 0.126928 + 0.25 * 2.126928 = 0.626928
    # pair 1: ln(1 + e^2) = 2.126928; mean 1.376928
    arguments = t(0.0, 0.0), t(2.0, 2.0), t(1.0, 1.0), t(1.0, 1.0)
    loss, _ = losses.dpo(*arguments, beta=2.0, label_B=t(0.75, 0.0))
    assert loss.item() == pytest.approx(1.376928, abs=1e-6)
    # one label for all: 0.5 (ln(1 + e^-2) + ln(1 + e^2)) = 1.126928
    assert losses.dpo(*arguments, beta=2.0, label_B=0.5)[0].item() == pytest.approx(1.126928, abs=1e-6)


def test_policy_equal_to_reference_gives_ln_2():
    winner, loser = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    for label in (1.0, 0.3):
        loss, metrics = losses.dpo(winner, loser, winner, loser, beta=2500.0, label_B=label)
        assert loss.item() == pytest.approx(LN2, abs=1e-7)
        assert metrics["rewards/margins"] == 0
        assert metrics["rewards/accuracies"] == 0.5  # ties count half


def test_ties_count_half_in_the_accuracy():
    # margins 1, 0, 0, -1: (1 + 0.5 + 0.5 + 0) / 4
    _, metrics = losses.dpo(t(0, 1, 1, 2), t(1, 1, 1, 1), t(1, 1, 1, 1), t(1, 1, 1, 1), beta=2.0)
    assert metrics["rewards/accuracies"].item() == 0.5
    _, metrics = losses.dpo(t(0, 0, 1, 1), t(1, 1, 1, 1), t(1, 1, 1, 1), t(1, 1, 1, 1), beta=2.0)
    assert metrics["rewards/accuracies"].item() == 0.75


def test_k_is_half_of_beta():
    # margin = -(beta / 2) ((1 - 1) - (1.002 - 1)) = 5 for beta 5000, so the gradient with respect to the winner's error
    # is k (1 - sigmoid(margin)) = 2500 * 0.0066929
    winner = t(1.0).requires_grad_()
    loss, metrics = losses.dpo(winner, t(1.002), t(1.0), t(1.0), beta=5000.0)
    loss.backward()
    assert metrics["rewards/margins"].item() == pytest.approx(5.0, abs=1e-3)
    assert winner.grad.item() == pytest.approx(2500 / (1 + math.exp(metrics["rewards/margins"].item())), rel=1e-5)


def test_gradient_lowers_the_winners_error_and_raises_the_losers():
    winner, loser = t(1.0).requires_grad_(), t(1.0).requires_grad_()
    losses.dpo(winner, loser, t(1.0), t(1.0), beta=4.0)[0].backward()
    # at margin 0: k (1 - sigmoid(0)) = 2 * 0.5
    assert winner.grad.item() == 1.0
    assert loser.grad.item() == -1.0


def test_identical_winner_and_loser_give_no_gradient():
    image = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.ones(4, 1, 1, requires_grad=True)
    error = [losses.denoising_error(weight * image, 0.5 * image) for _ in range(2)]
    reference = losses.denoising_error(0.9 * image, 0.5 * image)
    losses.dpo(*error, reference, reference, beta=2500.0)[0].backward()
    assert weight.grad.abs().max() == 0


@pytest.mark.parametrize("beta", [0.5, 50.0, 5000.0])
def test_dpo_equals_an_independent_implementation(beta):
    """In the form of the paper's eq. 14, with the losses averaged in float64."""
    rng = np.random.default_rng(int(beta))
    w, l, w_ref, l_ref = 1 + 0.01 * rng.normal(size=(4, 200))  # noqa: E741
    label = rng.uniform(size=200)
    label[:50] = 1
    inside = -(beta / 2) * ((w - w_ref) - (l - l_ref))
    preferred = np.logaddexp(0, -inside)  # -log sigmoid(x) = log(1 + e^-x)
    expected = np.mean(label * preferred + (1 - label) * np.logaddexp(0, inside))
    tensors = [torch.from_numpy(x) for x in (w, l, w_ref, l_ref)]
    loss, _ = losses.dpo(*tensors, beta, torch.from_numpy(label))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss, _ = losses.dpo(*[x.float() for x in tensors], beta, torch.from_numpy(label).float())
    assert loss.dtype == torch.float32
    # float32 errors of about 1 carry 6e-8, of which k makes the error of the margin
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=beta * 1e-7)


def test_dpo_stays_finite_where_a_product_of_probabilities_would_not():
    w = t(1.0).requires_grad_()
    loss, _ = losses.dpo(w, t(0.0), t(0.0), t(0.0), beta=2000.0)
    loss.backward()
    assert loss.item() == pytest.approx(1000.0)  # -log sigmoid(-1000)
    assert w.grad.item() == pytest.approx(1000.0)


def test_metrics_carry_no_gradient():
    w = t(1.0, 2.0).requires_grad_()
    for _, metrics in (losses.dpo(w, w, w, w, 1.0), losses.sft(w)):
        assert metrics and not any(value.requires_grad for value in metrics.values())


def test_sft_is_the_mean_error_of_the_winners():
    loss, metrics = losses.sft(t(1.0, 2.0, 6.0))
    assert loss.item() == metrics["error/winner"].item() == 3.0


# statistics matching

# channel 0 holds 0, 2, 0, 2: mean 1, variance 1; channel 1 holds 1, 1, 5, 5: mean 3, variance 4.
# covariance of the channels: mean of (-1)(-2), (1)(-2), (-1)(2), (1)(2) = 0
Z0 = torch.tensor([[[[0.0, 2.0], [0.0, 2.0]], [[1.0, 1.0], [5.0, 5.0]]]])
# the same with channel 0 moved by 3, and with channel 1 doubled (mean 6, variance 16)
MOVED = Z0 + torch.tensor([3.0, 0.0]).view(1, 2, 1, 1)
DOUBLED = Z0 * torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)


@pytest.mark.parametrize(
    "match, expected",
    [
        ("mean", [1.0, 3.0]),
        ("mean_std", [1.0, 3.0, 1.0, 2.0]),
        ("covariance", [1.0, 3.0, 1.0, 0.0, 0.0, 4.0]),
    ],
)
def test_channel_statistics(match, expected):
    assert losses.channel_statistics(Z0, match)[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "match, moved, doubled",
    [
        ("mean", 9 / 2, 9 / 2),  # means differ by (3, 0) and by (0, 3): 9 / 2
        ("mean_std", 9 / 4, (9 + 4) / 4),  # standard deviations by (0, 0) and by (0, 2)
        ("covariance", 9 / 6, (9 + 144) / 6),  # covariances by 0 and, of channel 1 with itself, by 12
    ],
)
def test_statistics_matching(match, moved, doubled):
    for changed, expected in ((MOVED, moved), (DOUBLED, doubled)):
        loss, metrics = losses.statistics(changed, Z0, match)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert metrics["stat_loss"].item() == loss.item()


def test_covariance_sees_what_the_other_statistics_do_not():
    # channel 1 in the order 1, 5, 1, 5: same mean and variance, covariance with channel 0 mean(2, 2, 2, 2) = 2;
    # twice 2 squared over 6 statistics = 8 / 6
    mixed = torch.tensor([[[[0.0, 2.0], [0.0, 2.0]], [[1.0, 5.0], [1.0, 5.0]]]])
    assert losses.statistics(mixed, Z0, "mean_std")[0].item() == 0
    assert losses.statistics(mixed, Z0, "covariance")[0].item() == pytest.approx(8 / 6)


def test_statistics_are_of_each_image_and_their_drift_of_the_batch():
    # images that drift by +3 and -3 in channel 0: the loss does not cancel (9 / 2), the drift of the batch does
    opposite = torch.cat([MOVED, 2 * Z0 - MOVED])
    loss, metrics = losses.statistics(opposite, Z0.repeat(2, 1, 1, 1))
    assert loss.item() == pytest.approx(9 / 2)
    assert metrics["stat_drift"].item() == 0
    assert losses.statistics(MOVED, Z0)[1]["stat_drift"].item() == pytest.approx(1.5)  # (3 + 0) / 2


@pytest.mark.parametrize("match", ["mean", "mean_std", "covariance"])
def test_statistics_of_equal_images_have_no_loss_and_a_finite_gradient(match):
    flat = torch.zeros(1, 2, 2, 2, requires_grad=True)  # no variance at all: a square root without care has no gradient
    loss, _ = losses.statistics(flat, torch.zeros(1, 2, 2, 2), match)
    loss.backward()
    assert loss.item() == 0
    assert flat.grad.isfinite().all()


def test_statistics_give_the_reference_no_gradient():
    z0, reference = MOVED.clone().requires_grad_(), Z0.clone().requires_grad_()
    losses.statistics(z0, reference)[0].backward()
    assert reference.grad is None
    # d/dz of mean over 2 channels of (mu - mu_ref)^2: 2 * 3 / 2 channels / 4 pixels in channel 0
    assert z0.grad[0, 0].flatten().tolist() == [0.75] * 4
    assert z0.grad[0, 1].abs().max() == 0


def test_unknown_statistics_are_refused():
    with pytest.raises(ValueError, match="match 'median': one of mean, mean_std, covariance"):
        losses.channel_statistics(Z0, "median")
