"""How a stage is judged while it trains: preference accuracy on held-out pairs, and sample images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor

from raypref import losses, noising
from raypref.artifacts import Store, iter_rows
from raypref.batches import COLUMNS, make_batch
from raypref.denoiser import BASE, POLICY, Denoiser, active
from raypref.generation import latent_shape, sample
from raypref.images import encode, grid, to_uint8
from raypref.models import decode_latents, token_ids
from raypref.seeds import seed_of
from raypref.workers import Context, Job

TIMESTEPS = 4  # noise levels at which a held-out pair is judged
SAMPLES = 8  # images of the sample grid


class HeldOut:
    """Held-out pairs and prompts of a stage, the same at every look."""

    def __init__(self, job: Job, denoiser: Denoiser, pipeline, context: Context):
        self.job, self.denoiser, self.pipeline, self.context = job, denoiser, pipeline, context
        self.store = Store(job.run)
        self.base: list[Tensor] | None = None  # the base model's gaps, which never change
        rows = list(islice(iter_rows(self.store, job.held_out, COLUMNS), job.config.training.validate_pairs))
        shapes = Counter(tuple(row["latent_shape"]) for row in rows)
        # of one size, since they share forward passes
        self.rows = [row for row in rows if tuple(row["latent_shape"]) == shapes.most_common(1)[0][0]]

    @torch.no_grad()
    def accuracy(self, engine: Callable[..., Tensor]) -> dict[str, float]:
        """Share of held-out pairs whose winner the policy has come to prefer: the DPO margin against the base model, meaned
        over a few fixed noise levels, is positive. 0.5 is chance; it does not depend on beta."""
        if not self.rows:
            return {}
        per_rank = -(-len(self.rows) // self.context.world)
        mine = self.rows[self.context.rank * per_rank :][:per_rank]
        # every rank makes equally many forward passes, since under ZeRO-3 they are collective
        padded = mine + self.rows[: per_rank - len(mine)]
        size = self.job.config.training.micro_batch
        parts = [padded[i : i + size] for i in range(0, per_rank, size)]
        if self.base is None:
            self.base = [self._gaps(engine, part, BASE) for part in parts]
        policy = [self._gaps(engine, part, POLICY) for part in parts]
        margins = (torch.cat(self.base) - torch.cat(policy))[: len(mine)]
        right = ((margins > 0).float() + 0.5 * (margins == 0).float()).sum().item()
        right, number = self.context.mean([right, float(len(mine))])
        return {"validation/accuracy": right / number}

    def _gaps(self, engine: Callable[..., Tensor], rows: list[dict], which: str) -> Tensor:
        """Winner's error minus loser's, meaned over fixed noise levels: [len(rows)]."""
        device, total = self.context.device, self.denoiser.timesteps
        ids = token_ids(self.pipeline, [row["prompt"] for row in rows]).to(device)
        batch = make_batch(rows, [seed_of("held out", row["pair_id"]) for row in rows], total)
        z0, noise = torch.cat([batch.winner, batch.loser]).to(device), batch.noise.repeat(2, 1, 1, 1).to(device)
        sizes = batch.sizes.to(device)
        gaps = torch.zeros(len(rows))
        for level in range(TIMESTEPS):
            t = torch.full((2 * len(rows),), total * (2 * level + 1) // (2 * TIMESTEPS), device=device)
            alpha, sigma = noising.alpha_sigma(self.denoiser.alphas_cumprod, t)
            z_t = noising.add_noise(z0, noise, alpha, sigma)
            target = noising.target(z0, noise, alpha, sigma, self.denoiser.prediction)
            winner, loser = losses.denoising_error(engine(z_t, t, ids, sizes, which), target).chunk(2)
            gaps += (winner - loser).cpu() / TIMESTEPS
        return gaps

    def samples(self, step: int) -> None:
        """Write a grid of images of the first held-out prompts as `samples/step_NNNNNN.png`."""
        rows = self.rows[:SAMPLES]
        if not rows:
            return
        self.denoiser.eval()
        shape = latent_shape(self.pipeline, self.job.config.model.resolution)
        with active(self.denoiser, POLICY):
            latents = sample(
                self.pipeline,
                [row["prompt"] for row in rows],
                [seed_of("samples", row["pair_id"]) for row in rows],
                self.job.config.sampling,
                shape,
            )
        self.denoiser.train()
        if self.context.rank == 0:
            with torch.inference_mode():
                images = to_uint8(decode_latents(self.pipeline, latents))
            self.store.write(f"{self.job.path}/samples/step_{step:06d}.png", encode(grid([images], pad=2), "png"))
