"""The training loop of one stage. It knows neither Ray nor DeepSpeed: it talks to an Engine and a Context.

    Engine   forward, backward, step, save and load of a sharded or plain model
    Context  who am I, how do workers agree

Every worker runs `train_stage` alike; rank 0 alone writes what concerns all.
"""

from __future__ import annotations

import math
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from raypref import checkpoints, losses, noising
from raypref.adapters import adapter_state, export, export_unet, read_adapter, take_adapter
from raypref.artifacts import Store
from raypref.batches import Batch, Pairs, micro_batches
from raypref.denoiser import POLICY, REFERENCE, Adapter, Denoiser, add_adapters, train_whole
from raypref.journal import MetricsLog
from raypref.models import load_pipeline, token_ids
from raypref.monitoring import HeldOut
from raypref.seeds import seed_of
from raypref.stages import Optim, Stage, Statistics
from raypref.validation import Looks
from raypref.workers import Context, Engine, Job

MakeEngine = Callable[[Denoiser, Job, int, Context], Engine]
Write = Callable[[str, dict[str, Tensor]], None]  # whole parameters by name, as users get them, into a folder


@dataclass
class _Loop:
    """What changes while the loop runs."""

    step: int = 0
    average: dict[str, Tensor] | None = None  # EMA of the trainable parameters
    pending: list[tuple[int, list[str], Tensor]] = field(
        default_factory=list
    )  # losses whose finiteness is not seen yet
    sums: dict[str, Tensor] = field(default_factory=dict)
    micro: int = 0
    logged: int = 0
    clock: float = field(default_factory=time.perf_counter)


def train_stage(job: Job, context: Context, make_engine: MakeEngine) -> None:
    """Train a stage from its newest complete checkpoint to its last step and export what it trained.

    Raises FloatingPointError on a loss that is not finite, naming step and pairs.
    """
    stage, training, store = job.row, job.config.training, Store(job.run)
    pipeline = load_pipeline(job.config.model, context.device, dtype=torch.float32)
    base = take_adapter(pipeline, job.config.model)
    denoiser = Denoiser(pipeline)
    write = _make_trainable(job, denoiser, store, base)
    if training.gradient_checkpointing:
        denoiser.unet.enable_gradient_checkpointing()
    denoiser.train()
    accumulation = stage.batch_size // (context.world * training.micro_batch)
    engine = make_engine(denoiser, job, accumulation, context)
    loop = _Loop()
    if stage.optim.ema:
        loop.average = {name: value.float().clone() for name, value in engine.whole().items()}
    loop.step = loop.logged = checkpoints.resume(store, job.path, engine, context, loop.average)
    pairs = Pairs(store, job.pairs, seed_of(job.config.seed, job.stage), stage.batch_size)
    held_out = HeldOut(job, denoiser, pipeline, context)
    log = MetricsLog(job, context, loop.step)
    looks = Looks(job, denoiser, pipeline, context, loop.step) if stage.validation else None
    export_to = partial(_export, loop, engine, write, store, context)
    while loop.step < stage.steps and not (looks and looks.stopped):
        _optimizer_step(job, loop, engine, denoiser, pipeline, pairs, context)
        looked = {}
        if looks and looks.due(loop.step):
            clock = time.perf_counter()
            looked = looks.look(loop.step, export_to)
            loop.clock += time.perf_counter() - clock  # a look is no training time
        done = loop.step == stage.steps or (looks is not None and looks.stopped)
        save = done or loop.step % training.checkpoint_every == 0
        validate = done or loop.step % training.validate_every == 0
        if save or validate or looked or loop.step % training.log_every == 0:
            row = _metrics(loop, stage, context) | looked
            if validate:
                row |= held_out.accuracy(engine)
            log.write(loop.step, row)
        if done or (training.sample_every and loop.step % training.sample_every == 0):
            held_out.samples(loop.step)
        if save:
            log.close_part(loop.step)
            checkpoints.save(store, job.path, loop.step, engine, context, loop.average, training.keep_checkpoints)
        if save or validate:
            loop.clock = time.perf_counter()  # what came between steps is no training time
    if looks is None:
        export_to(f"{job.path}/{stage.output}")
    elif context.rank == 0:
        store.write_json(f"{job.path}/chosen.json", looks.verdict(loop.step))
        with tempfile.TemporaryDirectory() as folder:
            store.pull(looks.choose(), folder)
            store.push(folder, f"{job.path}/{stage.output}")
    log.close()


def _make_trainable(job: Job, denoiser: Denoiser, store: Store, base: Adapter | None) -> Write:
    """Put the stage's policy and reference into the denoiser; what writes the trained weights."""
    stage = job.row
    if stage.lora is None:
        train_whole(denoiser)
        return lambda folder, values: export_unet(folder, denoiser.unet, values)
    with tempfile.TemporaryDirectory() as folder:
        start = base
        if job.start:
            store.pull(f"{job.start}/lora", folder)
            start = read_adapter(folder)
    settings = add_adapters(denoiser, stage.lora, seed_of(job.config.seed, job.stage, "lora"), start, base)
    trained = {name: settings[name] for name in stage.lora.modules}
    # now, since ZeRO-3 shards it and bfloat16 rounds it: what this stage's LoRA holds and does not train
    kept = adapter_state(denoiser, {name: settings[name] for name in settings if name not in trained})
    return lambda folder, values: export(
        folder, adapter_state(denoiser, trained, values) | kept, settings, job.config.model.base
    )


def _optimizer_step(
    job: Job, loop: _Loop, engine: Engine, denoiser: Denoiser, pipeline, pairs: Pairs, context: Context
) -> None:
    stage = job.row
    for batch in micro_batches(
        pairs,
        loop.step,
        stage.batch_size,
        context.rank,
        context.world,
        job.config.training.micro_batch,
        denoiser.timesteps,
        stage.flip,
        getattr(stage.objective, "labels", None) == "sampled",
    ):
        loss, metrics = stage_loss(engine, denoiser, pipeline, batch, stage, context.device)
        engine.backward(loss)
        loop.pending.append((loop.step + 1, batch.pair_ids, loss.detach()))
        for name, value in (metrics | {"loss": loss.detach()}).items():
            loop.sums[name] = loop.sums.get(name, 0) + value
        loop.micro += 1
    norm = engine.step(learning_rate(stage.optim, loop.step, stage.steps))
    if norm is not None:
        loop.sums["grad_norm"] = norm
    loop.step += 1
    if loop.average is not None:
        for name, value in engine.whole().items():
            loop.average[name].lerp_(value.to(loop.average[name].dtype), 1 - stage.optim.ema)


def stage_loss(
    engine: Callable[..., Tensor], denoiser: Denoiser, pipeline, batch: Batch, stage: Stage, device: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics of one batch; policy and reference each see winners and losers in one forward pass."""
    objective = stage.objective
    sides = [batch.winner] if objective.kind == "sft" else [batch.winner, batch.loser]
    shared = len(sides) == 1 or batch.prompts == batch.loser_prompts
    ids = token_ids(pipeline, batch.prompts if shared else batch.prompts + batch.loser_prompts).to(device)
    z0, sizes = torch.cat(sides).to(device), batch.sizes[: len(sides) * len(batch.winner)].to(device)
    noise, t = batch.noise.to(device).repeat(len(sides), 1, 1, 1), batch.t.to(device).repeat(len(sides))
    alpha, sigma = noising.alpha_sigma(denoiser.alphas_cumprod, t)
    z_t = noising.add_noise(z0, noise, alpha, sigma)
    target = noising.target(z0, noise, alpha, sigma, denoiser.prediction)
    output = engine(z_t, t, ids, sizes, POLICY)
    errors = losses.denoising_error(output, target)
    if objective.kind == "sft":
        return losses.sft(errors)
    winner, loser = errors.chunk(2)
    if objective.kind == "dreambooth":
        return losses.dreambooth(winner, loser, objective.prior)
    with torch.no_grad():
        reference = engine(z_t, t, ids, sizes, REFERENCE)
    loss, metrics = losses.dpo(
        winner, loser, *losses.denoising_error(reference, target).chunk(2), objective.beta, batch.label.to(device)
    )
    if objective.kind == "rpo":
        return loss + objective.similarity * winner.mean(), metrics
    matching = objective.statistics or Statistics(weight=0)  # the drift is shown in any case
    with torch.set_grad_enabled(torch.is_grad_enabled() and matching.weight > 0):
        estimates = [
            noising.clean_estimate(z_t, out, alpha, sigma, denoiser.prediction, matching.max_gain)
            for out in (output, reference)
        ]
        stat_loss, stat_metrics = losses.statistics(*estimates, match=matching.match)
    if matching.weight > 0:
        loss = loss + matching.weight * stat_loss
    return loss, metrics | stat_metrics


def learning_rate(optim: Optim, step: int, total: int) -> float:
    """Of the optimizer step with 0-based index `step` of `total`: linear warm-up, then constant, cosine or linear to 0."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    progress = (step - optim.warmup) / max(1, total - optim.warmup)
    factor = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return optim.lr * factor[optim.schedule]


def _metrics(loop: _Loop, stage: Stage, context: Context) -> dict[str, float]:
    """Means since the last call over steps and workers. Losses are looked at here, not in every step, which would make
    the device wait for the host."""
    for step, pair_ids, loss in loop.pending:
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {step} (pairs {', '.join(pair_ids)}). Try a lower optim.lr, a smaller "
                "objective.beta, optim.warmup, or training.precision=float32. Checkpoints are from before this step."
            )
    names = sorted(loop.sums)
    means = context.mean([float(loop.sums[name]) / (1 if name == "grad_norm" else loop.micro) for name in names])
    now = time.perf_counter()
    memory = (
        torch.cuda.max_memory_allocated() / 2**20
        if torch.cuda.is_available()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )
    row = dict(zip(names, means, strict=True)) | {
        "lr": learning_rate(stage.optim, loop.step - 1, stage.steps),
        "memory_mb": memory,
        "pairs_per_s": (loop.step - loop.logged) * stage.batch_size / (now - loop.clock),
    }
    loop.pending, loop.sums, loop.micro, loop.logged, loop.clock = [], {}, 0, loop.step, now
    return row


def _export(loop: _Loop, engine: Engine, write: Write, store: Store, context: Context, target: str) -> None:
    """Write what the stage trained (the average of its weights, where one is kept); every rank calls, rank 0 writes."""
    values = engine.whole()
    if loop.average is not None:
        values = {name: loop.average[name] for name in values}
    if context.rank == 0:
        with tempfile.TemporaryDirectory() as folder:
            write(folder, values)
            store.push(folder, target)
    context.barrier()
