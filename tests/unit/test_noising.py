"""The forward process: its identities hold exactly, and noise and seeds belong to things."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from raypref import noising
from raypref.seeds import seed_of

T = 1000
SHAPE = (4, 8, 8)
SD = DDPMScheduler(num_train_timesteps=T, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ZERO_SNR = DDIMScheduler(num_train_timesteps=T, beta_schedule="scaled_linear", rescale_betas_zero_snr=True)


def batch(schedule=SD, t=(0, 1, 500, T - 1)):
    t = torch.tensor(t)
    z0, noise = noising.gaussian(SHAPE, list(range(len(t)))), noising.gaussian(SHAPE, list(range(100, 100 + len(t))))
    alpha, sigma = noising.alpha_sigma(schedule.alphas_cumprod, t)
    return z0, noise, t, alpha, sigma


def test_zero_snr_schedule_ends_in_pure_noise():
    assert ZERO_SNR.alphas_cumprod[-1] == 0  # what the tests below are about


@pytest.mark.parametrize("schedule", [SD, ZERO_SNR])
def test_alpha_and_sigma(schedule):
    alpha, sigma = noising.alpha_sigma(schedule.alphas_cumprod, torch.arange(T))
    assert alpha.shape == sigma.shape == (T, 1, 1, 1)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(T, 1, 1, 1))
    torch.testing.assert_close(alpha.flatten() ** 2, schedule.alphas_cumprod)
    assert (alpha.flatten().diff() < 0).all()


def test_alpha_and_sigma_are_float32_whatever_the_schedule_is():
    alpha, _ = noising.alpha_sigma(SD.alphas_cumprod.double(), torch.tensor([3]))
    assert alpha.dtype == torch.float32


def test_noise_and_velocity_equal_diffusers():
    z0, noise, t, alpha, sigma = batch()
    torch.testing.assert_close(noising.add_noise(z0, noise, alpha, sigma), SD.add_noise(z0, noise, t))
    velocity = noising.target(z0, noise, alpha, sigma, "v_prediction")
    torch.testing.assert_close(velocity, SD.get_velocity(z0, noise, t))
    assert noising.target(z0, noise, alpha, sigma, "epsilon") is noise


@pytest.mark.parametrize("prediction, t", [("v_prediction", (0, 1, 500, T - 1)), ("epsilon", (0, 1, 300))])
def test_the_targets_estimate_is_the_clean_latent(prediction, t):
    z0, noise, _, alpha, sigma = batch(t=t)
    z_t = noising.add_noise(z0, noise, alpha, sigma)
    output = noising.target(z0, noise, alpha, sigma, prediction)
    estimate = noising.clean_estimate(z_t, output, alpha, sigma, prediction, max_gain=1e9)
    torch.testing.assert_close(estimate, z0, atol=1e-5, rtol=1e-5)


def test_a_bound_on_the_gain_changes_nothing_below_it():
    z0, noise, _, alpha, sigma = batch(t=(0, 200, 500))
    assert (sigma / alpha).max() < 4
    z_t, output = noising.add_noise(z0, noise, alpha, sigma), noising.gaussian(SHAPE, [7, 8, 9])
    estimates = [noising.clean_estimate(z_t, output, alpha, sigma, "epsilon", gain) for gain in (4.0, 1e9)]
    assert torch.equal(*estimates)


@pytest.mark.parametrize("schedule", [SD, ZERO_SNR])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_clean_estimate_is_bounded_at_the_last_timestep(schedule, prediction):
    z0, noise, _, alpha, sigma = batch(schedule, (T - 1,))
    z_t = noising.add_noise(z0, noise, alpha, sigma)
    output = noise.clone().requires_grad_()
    estimate = noising.clean_estimate(z_t, output, alpha, sigma, prediction, max_gain=4.0)
    estimate.sum().backward()
    assert estimate.isfinite().all() and output.grad.isfinite().all()
    # an error of the output is amplified by no more than the bound: sigma / (sigma / 4) = 4
    assert output.grad.abs().max() <= 4.0 + 1e-5


def test_unknown_prediction_type_is_refused():
    z0, noise, _, alpha, sigma = batch()
    with pytest.raises(ValueError, match="prediction_type 'sample' of the scheduler: epsilon and v_prediction"):
        noising.target(z0, noise, alpha, sigma, "sample")


def test_noise_of_a_seed_does_not_depend_on_the_batch():
    together = noising.gaussian(SHAPE, [5, 6, 7])
    assert together.shape == (3, *SHAPE)
    assert torch.equal(together[1], noising.gaussian(SHAPE, [6])[0])
    assert torch.equal(together.flip(0), noising.gaussian(SHAPE, [7, 6, 5]))
    assert not torch.equal(together[0], together[1])
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    noising.gaussian(SHAPE, [2**63 - 1])  # the largest seed that seed_of gives
    assert torch.equal(torch.random.get_rng_state(), before)


def test_noise_is_standard_normal():
    values = noising.gaussian((100, 100), [seed_of("normal", i) for i in range(10)])
    assert values.mean().item() == pytest.approx(0, abs=0.01)
    assert values.std().item() == pytest.approx(1, abs=0.01)


def test_timesteps_are_uniform_and_each_seeds_own():
    seeds = [seed_of("t", i) for i in range(4000)]
    t = noising.timesteps(seeds, 20)
    assert t.dtype == torch.int64 and t.shape == (4000,)
    counts = torch.bincount(t, minlength=20)
    assert len(counts) == 20  # within [0, 20)
    assert counts.min() > 140 and counts.max() < 260  # 200 expected, standard deviation 14
    assert noising.timesteps(seeds[7:8], 20)[0] == t[7]
    assert noising.timesteps([3], 1).tolist() == [0]


def test_seed_of_is_stable():
    """Pinned: other values would make other data of the same run seed."""
    assert seed_of(0, "generated", "prompts", "00000000", 0) == 82069721652540941
    assert 0 <= seed_of("x") < 2**63


def test_seed_of_depends_on_every_part():
    seeds = [
        seed_of(0, "a", 1),
        seed_of(0, "a", 2),
        seed_of(1, "a", 1),
        seed_of(0, "b", 1),
        seed_of(0, "a"),
        seed_of(0),
    ]
    # the parts are kept apart
    seeds += [seed_of("ab", "c"), seed_of("a", "bc"), seed_of("abc")]
    assert len(set(seeds)) == len(seeds)
