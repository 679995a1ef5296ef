"""The training loop on one process: what must not change the numbers does not, and what is frozen stays so."""

import json
import math

import numpy as np
import pytest
import torch

from raypref import artifacts, checkpoints
from raypref.adapters import read_adapter
from raypref.artifacts import Store
from raypref.batches import Pairs
from raypref.denoiser import POLICY, REFERENCE
from raypref.journal import read_parts
from raypref.models import load_pipeline
from raypref.seeds import seed_of
from raypref.workers import Alone, TorchEngine
from tests.conftest import make_config, make_job, make_pairs, read_rows, train

LR = 5e-3  # of the test runs: an Adam update is about this large, so differences are judged against it


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def plain(run, tiny):
    """The uninterrupted run with micro-batches of 4 that others are compared with: (job, its final parameters)."""
    job = make_job(run, make_config(tiny), path="train/plain")
    return job, train(job).whole()


def assert_close(a: dict, b: dict, atol: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def assert_same(a: dict, b: dict) -> None:
    assert_close(a, b, 0)


def training_names(exported: dict[str, dict]) -> dict[str, torch.Tensor]:
    """An exported adapter of the U-Net under the names that its parameters had in training."""
    return {f"unet.{k}".replace(".weight", f".{POLICY}.weight"): v for k, v in exported["unet"].items()}


class Watched(TorchEngine):
    """Keeps a copy of every weight and flag as the stage found them."""

    def __init__(self, denoiser, *arguments):
        super().__init__(denoiser, *arguments)
        self.first = {name: p.detach().clone() for name, p in denoiser.named_parameters()}
        self.flags = [{name: p.requires_grad for name, p in denoiser.named_parameters()}]

    def step(self, lr):
        self.flags.append({name: p.requires_grad for name, p in self.denoiser.named_parameters()})
        return super().step(lr)


class Dies(TorchEngine):
    """Raises in the middle of its fifth step."""

    steps = 0

    def step(self, lr):
        self.steps += 1
        if self.steps == 5:
            raise InterruptedError("killed")
        return super().step(lr)


class Counts(TorchEngine):
    steps = 0

    def step(self, lr):
        self.steps += 1
        return super().step(lr)


# what must not matter


def test_training_starts_at_ln_2_and_learns(plain):
    rows = read_rows(plain[0])
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["rewards/accuracies"] == 0.5
    assert rows[0]["stat_drift"] == 0
    assert rows[-1]["loss"] < 0.6
    assert rows[-1]["validation/accuracy"] > 0.9


@pytest.mark.parametrize("micro", [1, 8])
def test_accumulation_equals_a_large_batch(run, tiny, plain, micro):
    job = make_job(run, make_config(tiny, f"training.micro_batch={micro}"), path=f"train/micro{micro}")
    assert_close(train(job).whole(), plain[1], 1e-3 * LR)
    for mine, theirs in zip(read_rows(job), read_rows(plain[0]), strict=True):
        for name in ("loss", "rewards/margins", "grad_norm", "validation/accuracy"):
            if name in theirs:
                assert mine[name] == pytest.approx(theirs[name], abs=2e-5), (name, mine["step"])


def test_gradient_checkpointing_changes_nothing(run, tiny, plain):
    """In a stage with two adapters, since what is computed again in the backward pass must use the policy's."""
    found = []
    for on in (False, True):
        config = make_config(tiny, f"training.gradient_checkpointing={str(on).lower()}")
        engine = train(make_job(run, config, "hard", plain[0].path, f"train/recompute_{on}"))
        found.append(engine.whole())
        assert engine.denoiser.unet.is_gradient_checkpointing == on
    assert_close(*found, 1e-3 * LR)


def test_same_seed_same_adapter_other_seed_another(run, tiny, plain):
    again = train(make_job(run, make_config(tiny), path="train/again")).whole()
    assert_same(again, plain[1])
    other = train(make_job(run, make_config(tiny, "seed=6"), path="train/other_seed")).whole()
    assert max((other[name] - plain[1][name]).abs().max() for name in other) > LR


@pytest.mark.parametrize("setting", ["sampling.steps=2", "training.log_every=4", "training.validate_every=1"])
def test_looking_at_a_run_does_not_change_it(run, tiny, plain, setting):
    job = make_job(run, make_config(tiny, setting, "training.sample_every=2"), path=f"train/look_{setting}")
    assert_same(train(job).whole(), plain[1])
    assert Store(str(run)).names(f"{job.path}/samples") == [f"step_{n:06d}.png" for n in (2, 4, 6)]


# stopping and going on


@pytest.mark.parametrize("ema", ["null", "0.5"])
def test_resumed_run_equals_an_uninterrupted_one(run, tiny, ema):
    config = make_config(tiny, f"stages.easy.optim.ema={ema}", "stages.easy.optim.schedule=cosine")
    whole = make_job(run, config, path=f"train/whole_{ema}")
    engine = train(whole)
    job = make_job(run, config, path=f"train/stopped_{ema}")
    with pytest.raises(InterruptedError):
        train(job, engine=Dies)
    store = Store(job.run)
    assert checkpoints.complete(store, job.path) == [3]
    store.write(f"{job.path}/checkpoints/step_000004/state.pt", b"cut short")  # no marker: it must not be read
    resumed = train(job, engine=Counts)
    assert resumed.steps == 3
    assert_same(resumed.whole(), engine.whole())
    _, exported = read_adapter(run / job.path / "lora")
    _, expected = read_adapter(run / whole.path / "lora")
    assert_same(exported["unet"], expected["unet"])
    timed = ("time", "memory_mb", "pairs_per_s")
    rows = [[{k: v for k, v in row.items() if k not in timed} for row in read_rows(j)] for j in (job, whole)]
    assert rows[0] == rows[1]


def test_average_of_weights_is_exported(run, tiny):
    """EMA with decay 0.5 of parameters p_0, p_1, ...: e_n = 0.5 e_(n-1) + 0.5 p_n, e_0 = p_0."""

    class Records(TorchEngine):
        history = ()

        def step(self, lr):
            self.history = self.history or (self.copy(),)
            norm = super().step(lr)
            self.history += (self.copy(),)
            return norm

        def copy(self):
            return {name: value.clone() for name, value in self.whole().items()}

    config = make_config(tiny, "stages.easy.optim.ema=0.5")
    job = make_job(run, config, path="train/ema")
    engine = train(job, engine=Records)
    average = engine.history[0]
    for parameters in engine.history[1:]:
        average = {name: 0.5 * average[name] + 0.5 * parameters[name] for name in average}
    _, exported = read_adapter(run / job.path / "lora")
    assert_close(training_names(exported), average, 1e-6)
    assert max((average[name] - engine.whole()[name]).abs().max() for name in average) > 1e-3 * LR


def test_old_checkpoints_go(run, tiny):
    config = make_config(tiny, "training.checkpoint_every=1", "training.keep_checkpoints=2")
    job = make_job(run, config, path="train/keep")
    train(job)
    assert Store(job.run).names(f"{job.path}/checkpoints") == ["step_000005", "step_000006"]


def test_checkpoint_of_another_number_of_workers_is_refused(run, tiny):
    class One(Alone):
        world = 2

    job = make_job(run, make_config(tiny), path="train/world")
    with pytest.raises(InterruptedError):
        train(job, engine=Dies)
    with pytest.raises(ValueError, match=r"written by 1 worker\(s\) with plain torch and cannot be read by 2"):
        train(job, One())


def test_checkpoint_of_another_zero_stage_is_refused(run, tiny):
    class Other(TorchEngine):
        layout = "ZeRO stage 2"

    job = make_job(run, make_config(tiny), path="train/layout")
    with pytest.raises(InterruptedError):
        train(job, engine=Dies)
    with pytest.raises(ValueError, match=r"with plain torch and cannot be read by 1 with ZeRO stage 2: set training"):
        train(job, engine=Other)


def test_metrics_are_read_from_the_newest_part_that_can_hold_news(run, tiny):
    job = make_job(run, make_config(tiny, "training.checkpoint_every=2"), path="train/parts")
    train(job)
    store = Store(job.run)
    steps = [[json.loads(line)["step"] for line in read_parts(store, job.path, n).splitlines()] for n in (-1, 0, 3, 4)]
    assert steps == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [3, 4, 5, 6], [5, 6]]


# what is trained and what is not


def test_only_the_policy_changes(run, tiny):
    engine = train(make_job(run, make_config(tiny), path="train/watched"), engine=Watched)
    changed = {n for n, p in engine.denoiser.named_parameters() if not torch.equal(p, engine.first[n])}
    assert changed == set(engine.parameters)
    assert all(f".{POLICY}." in name for name in changed)
    # a gradient that had reached a frozen weight would be left behind
    assert not [n for n, p in engine.denoiser.named_parameters() if p.grad is not None and n not in changed]


def test_a_stage_goes_on_from_the_adapter_of_the_stage_before(run, tiny, plain):
    job = make_job(run, make_config(tiny), "hard", plain[0].path, "train/hard")
    engine = train(job, engine=Watched)
    _, start = read_adapter(run / plain[0].path / "lora")
    assert any(value.abs().max() > 0 for name, value in start["unet"].items() if "lora_B" in name)
    for name, value in start["unet"].items():
        for adapter in (POLICY, REFERENCE):
            assert torch.equal(engine.first[f"unet.{name}".replace(".weight", f".{adapter}.weight")], value)
    assert read_rows(job)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # the reference is the start, not the base
    assert read_rows(job)[-1]["loss"] < 0.65
    for name, p in engine.denoiser.named_parameters():
        assert torch.equal(p, engine.first[name]) == (f".{POLICY}." not in name), name
    _, exported = read_adapter(run / job.path / "lora")
    assert_same(training_names(exported), engine.whole())


def test_requires_grad_is_never_toggled(run, tiny, plain):
    config = make_config(tiny, "training.validate_every=1", "training.sample_every=1")
    engine = train(make_job(run, config, "hard", plain[0].path, "train/flags"), engine=Watched)
    assert len(engine.flags) == 7
    assert all(flags == engine.flags[0] for flags in engine.flags)
    assert {name for name, flag in engine.flags[0].items() if flag} == set(engine.parameters)
    assert {n for n, p in engine.denoiser.named_parameters() if p.requires_grad} == set(engine.parameters)


def test_text_encoder_stage_trains_only_the_text_encoder(run, tiny, plain):
    job = make_job(run, make_config(tiny), "text_encoder", plain[0].path, "train/text")
    engine = train(job, engine=Watched)
    changed = {n for n, p in engine.denoiser.named_parameters() if not torch.equal(p, engine.first[n])}
    assert changed and changed == set(engine.parameters)
    assert all(n.startswith("text_encoder.") and f".{POLICY}." in n for n in changed)
    rows = read_rows(job)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[-1]["loss"] < rows[0]["loss"] - 1e-3
    settings, exported = read_adapter(run / job.path / "lora")
    _, start = read_adapter(run / plain[0].path / "lora")
    assert_same(exported["unet"], start["unet"])
    assert settings["text_encoder"] == {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]}
    assert any(value.abs().max() > 0 for name, value in exported["text_encoder"].items() if "lora_B" in name)
    # and a U-Net stage after it goes on with the U-Net's part alone
    after = make_job(run, make_config(tiny), "hard", job.path, "train/after_text")
    assert all(name.startswith("unet.") for name in train(after).parameters)
    _, final = read_adapter(run / after.path / "lora")
    assert_same(final["text_encoder"], exported["text_encoder"])
    assert read_rows(after)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_sft_lowers_the_error_of_winners_alone(run, tiny):
    """Against a run that stands still (lr about 0), which sees the same pairs, noise and timesteps."""
    rows = {}
    for lr in (5e-3, 1e-12):
        sft = ("stages.easy.objective={kind: sft}", "stages.easy.steps=12", f"stages.easy.optim.lr={lr}")
        job = make_job(run, make_config(tiny, *sft), path=f"train/sft_{lr}")
        train(job)
        rows[lr] = read_rows(job)
    learned, still = ([row["error/winner"] for row in rows[lr]] for lr in (5e-3, 1e-12))
    assert learned[0] == still[0]
    assert np.mean(learned[-3:]) < np.mean(still[-3:]) - 0.03
    assert rows[5e-3][-1]["loss"] == pytest.approx(learned[-1])
    assert "rewards/margins" not in rows[5e-3][0]


def test_statistics_matching_holds_the_statistics(run, tiny):
    """A heavy L_stat leaves less drift of the channel means than none; its weight is what the loss grows by."""
    drift = {}
    for weight in (0.0, 300.0):
        statistics = f"stages.easy.objective.statistics={{weight: {weight}}}"
        job = make_job(run, make_config(tiny, statistics, "stages.easy.steps=12"), path=f"train/stat_{weight}")
        train(job)
        rows = read_rows(job)
        drift[weight] = np.mean([row["stat_drift"] for row in rows[-4:]])
    assert drift[300.0] < 0.6 * drift[0.0]
    margin, stat = rows[-1]["rewards/margins"], rows[-1]["stat_loss"]
    # -log sigmoid is convex: the mean of losses is at least the loss of the mean margin, and the rest is 300 L_stat
    assert rows[-1]["loss"] >= math.log1p(math.exp(-margin)) + 300 * stat - 1e-4


def test_bfloat16_keeps_adapter_and_average_in_float32(run, tiny):
    """In bfloat16 a weight of 0.1 cannot change by 1e-5, and an average with decay 0.999 stands still."""
    final = {}
    for precision in ("float32", "bfloat16"):
        settings = (f"training.precision={precision}", "stages.easy.optim.lr=1e-5", "stages.easy.optim.ema=0.9")
        job = make_job(run, make_config(tiny, *settings), path=f"train/{precision}")
        engine = train(job, engine=Watched)
        changed = [(value != engine.first[name]).float().mean() for name, value in engine.whole().items()]
        assert min(changed) > 0.9
        final[precision] = engine.whole(), read_adapter(run / job.path / "lora")[1]["unet"], read_rows(job)
    assert_close(final["float32"][0], final["bfloat16"][0], 6e-5)  # six steps of 1e-5 at most
    averages = [training_names({"unet": final[p][1]}) for p in final]
    assert_close(*averages, 6e-5)
    assert all(value.abs().max() > 0 for name, value in averages[1].items() if "lora_B" in name)
    for one, other in zip(final["float32"][2], final["bfloat16"][2], strict=True):
        assert one["error/winner"] == pytest.approx(other["error/winner"], rel=0.02)


def test_epsilon_model_trains(run, tiny_epsilon):
    config = make_config(tiny_epsilon, "stages.easy.objective.statistics={weight: 1.0}", "stages.easy.steps=16")
    job = make_job(run, config, path="train/epsilon")
    train(job)
    rows = read_rows(job)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert np.mean([row["loss"] for row in rows[-4:]]) < 0.64
    assert all(math.isfinite(row["stat_loss"]) for row in rows)


# what goes wrong

NOWHERE = "stages={easy: LORA, hard: LORA}".replace("LORA", "{lora: {unet: {targets: [nowhere]}}}")


@pytest.mark.parametrize("log_every", [1, 6])
def test_non_finite_loss_stops_and_names_step_and_pair(tmp_path, tiny, log_every):
    config = make_config(tiny, "training.micro_batch=1", f"training.log_every={log_every}", "training.validate_every=6")
    make_pairs(tmp_path, "pairs/train", 11)
    pairs = Pairs(Store(str(tmp_path)), "pairs/train", seed_of(5, "easy"))
    position = 8 * 4 + 5  # the sixth pair of the fifth step
    pair = pairs.at(position)["pair_id"]
    assert pair not in [pairs.at(i)["pair_id"] for i in range(position)]
    poison(tmp_path, pair)
    job = make_job(tmp_path, config)
    with pytest.raises(FloatingPointError, match=rf"loss is nan at step 5 \(pairs {pair}\)"):
        train(job)
    assert checkpoints.complete(Store(job.run), job.path) == [3]
    assert not (tmp_path / job.path / "lora").exists()


def poison(run, pair: str) -> None:
    """Put NaN into the winner's latent of one pair."""
    store = Store(str(run))
    for index, file in enumerate(artifacts.read_manifest(store, "pairs/train")["files"]):
        table = store.read_table(f"pairs/train/{file['file']}")
        rows = table.to_pylist()
        for row in rows:
            if row["pair_id"] == pair:
                row["winner_latent"] = np.full(row["latent_shape"], np.nan, np.float16).tobytes()
        artifacts.write_shard(store, "pairs/train", index, table.from_pylist(rows, artifacts.PAIRS), "test")
    artifacts.finalize(store, "pairs/train", "pairs", {"seed": 11}, 2)


def test_no_pairs_to_train_on_is_said(tmp_path, tiny):
    make_pairs(tmp_path, "pairs/train", 11, rows=0)
    artifacts.finalize(Store(str(tmp_path)), "pairs/train", "pairs", {}, 0)
    with pytest.raises(ValueError, match=r"no pairs to train on.*min_gap"):
        train(make_job(tmp_path, make_config(tiny)))


@pytest.mark.parametrize(
    "assignment, message",
    [
        (NOWHERE, r"lora\.unet\.targets=\['nowhere'\]: no such layers in UNet2DConditionModel"),
        ("model.resolution=17", "model.resolution=17 is not a multiple of the VAE's factor 2"),
        ("model.base=/no/such/folder", "model.base='/no/such/folder': there is no such file or folder on this machine"),
    ],
)
def test_impossible_models_are_said(run, tiny, assignment, message):
    with pytest.raises(ValueError, match=message):
        train(make_job(run, make_config(tiny, assignment), path="train/impossible"))


def test_pipeline_is_frozen_and_in_evaluation_mode(tiny):
    pipeline = load_pipeline(make_config(tiny).model)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())
