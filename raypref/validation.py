"""RPO's validation: images of the validation prompts from the weights of the moment choose the checkpoint.

Similarities are stored raw, so one run follows every lambda_val: a checkpoint is kept as long as it is the best of one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from raypref import rewards, scorers
from raypref.artifacts import Store, iter_rows
from raypref.denoiser import POLICY, Denoiser, active
from raypref.generation import latent_shape, sample
from raypref.images import encode, grid, to_uint8
from raypref.looks import by_lambda, read_looks, reward_curve
from raypref.models import decode_latents
from raypref.scoring import without_token
from raypref.seeds import seed_of
from raypref.workers import Context, Job

SHOWN = 8  # images of a look that are kept to be seen


class Looks:
    """The validations of a stage so far, {"step", "s_img": [images], "s_txt": [images]} each; files in the run directory."""

    def __init__(self, job: Job, denoiser: Denoiser, pipeline, context: Context, step: int):
        self.job, self.denoiser, self.pipeline, self.context = job, denoiser, pipeline, context
        self.settings, self.store = job.row.validation, Store(job.run)
        self.folder = f"{job.path}/validation"
        self.history = [look for look in read_looks(self.store, job.path) if look["step"] <= step]
        pools = Store(job.pools)
        rows = iter_rows(pools, job.validation["prompts"], ["id", "prompt"])
        self.items = [
            (row["prompt"], seed_of(job.config.seed, "validation", row["id"], number))
            for row in rows
            for number in range(self.settings.images)
        ]
        self.references = {
            path.partition("/")[2]: np.array(
                [v for row in iter_rows(pools, job.validation[path]) for v in row["values"] if np.isfinite(v).all()]
            )
            for path in job.validation
            if path.startswith("references/")
        }
        self.scorers = {
            name: scorers.load(job.config.scorers[name].kind, job.config.scorers[name].args, context.device)
            for name in (self.settings.features, *self.settings.watch)
        }

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        settings = self.settings
        if settings.patience is None:
            return False
        lambdas = [settings.select, *(settings.lambdas if settings.stop == "all" else ())]
        return all(rewards.stalled(reward_curve(self.history, lam), settings.patience) for lam in lambdas)

    def due(self, step: int) -> bool:
        return step % self.settings.every == 0 or step == self.job.row.steps

    def look(self, step: int, export: Callable[[str], None]) -> dict[str, float]:
        """Draw, reward and remember; metrics of the look. Every rank calls; `export` writes the weights to a path."""
        mine = self._measure(step)
        name = f"{self.folder}/step_{step:06d}"
        self.store.write_json(f"{name}/rank_{self.context.rank:03d}.json", mine)
        self.context.barrier()
        parts = [self.store.read_json(f"{name}/rank_{rank:03d}.json") for rank in range(self.context.world)]
        # the last ranks may have drawn a few images twice, so that all made as many forward passes
        row = {key: [x for part in parts for x in part[key]][: len(self.items)] for key in mine}
        self.history.append({"step": step} | row)
        export(f"{name}/{self.job.row.output}")
        if self.context.rank == 0:
            self.store.write_json(f"{name}/look.json", self.history[-1])
            self._prune()
        self.context.barrier()
        rewarded = {
            lam: reward_curve(self.history[-1:], lam)[0] for lam in (self.settings.select, *self.settings.lambdas)
        }
        return (
            {f"validation/{key}": float(np.mean(values)) for key, values in row.items()}
            | {f"validation/reward_{lam:g}": reward for lam, reward in rewarded.items()}
            | {"validation/reward": rewarded[self.settings.select]}
        )

    def verdict(self, ended: int) -> dict:
        """{"step": of the checkpoint that is best for `select`, "lambda_val", "reward", "ended": last step trained,
        "lambdas": the same of every lambda_val (`by_lambda`)}.

        Raises FloatingPointError when no look has a reward that is a number.
        """
        curve = reward_curve(self.history, self.settings.select)
        chosen = rewards.best(curve)
        if chosen is None:
            raise FloatingPointError("no validation has a finite reward; try a lower optim.lr")
        step = self.history[chosen]["step"]
        found = {"step": step, "lambda_val": self.settings.select, "reward": curve[chosen], "ended": ended}
        return found | {"lambdas": by_lambda(self.history, self.settings.lambdas)}

    def choose(self) -> str:
        """Path of the LoRA (or U-Net) that is best for `select`."""
        return f"{self.folder}/step_{self.verdict(0)['step']:06d}/{self.job.row.output}"

    def _measure(self, step: int) -> dict[str, list[float]]:
        """This rank's images: s_img, s_txt and what is watched, raw."""
        share = -(-len(self.items) // self.context.world)
        start = self.context.rank * share
        mine = [self.items[i % len(self.items)] for i in range(start, start + share)]
        config = self.job.config
        self.denoiser.eval()
        with active(self.denoiser, POLICY):
            latents = sample(
                self.pipeline, *map(list, zip(*mine, strict=True)), config.sampling,
                latent_shape(self.pipeline, config.model.resolution),
            )  # fmt: skip
        self.denoiser.train()
        prompts = [without_token(prompt, config.data.token) for prompt, _ in mine]
        with torch.inference_mode():
            parts = latents.split(config.sampling.batch_size)
            images = torch.cat([decode_latents(self.pipeline, part).cpu() for part in parts])
            broken = ~images.isfinite().flatten(1).all(1)  # of a model that diverges: their similarities are NaN
            images[broken] = 0
        found = {name: self._score(name, images, prompts) for name in self.scorers}
        if self.context.rank == 0:
            picture = encode(grid([to_uint8(images[:SHOWN])], pad=2), "png")
            self.store.write(f"{self.job.path}/samples/validation_{step:06d}.png", picture)
        image, text = np.split(found[self.settings.features], 2, axis=1)
        references = np.split(self.references[self.settings.features], 2, axis=1)[0]
        s_img = rewards.similarity(rewards.cosines(image, references)).mean(1)
        s_txt = rewards.similarity(np.einsum("nd,nd->n", rewards.unit(image), rewards.unit(text)))
        watched = {
            name: rewards.cosines(found[name], self.references[name]).mean(1)
            if name in self.references
            else found[name]
            for name in self.settings.watch
        }
        for name, values in watched.items():
            if values.ndim != 1:
                raise ValueError(
                    f"validation.watch: {name} gives {values.shape[1]} values an image, not a score; leave it out"
                )
        measured = {"s_img": s_img, "s_txt": s_txt, **watched}
        return {name: np.where(broken.numpy(), np.nan, values).tolist() for name, values in measured.items()}

    def _score(self, name: str, images: torch.Tensor, prompts: list[str]) -> np.ndarray:
        size = self.job.config.scorers[name].batch_size
        with torch.inference_mode():
            parts = [
                self.scorers[name](images[i : i + size], prompts[i : i + size]) for i in range(0, len(images), size)
            ]
        return torch.cat(parts).float().cpu().numpy()

    def _prune(self) -> None:
        """Delete the weights that are best for no lambda."""
        kept = {rewards.best(reward_curve(self.history, lam)) for lam in (self.settings.select, *self.settings.lambdas)}
        for i, look in enumerate(self.history):
            path = f"{self.folder}/step_{look['step']:06d}/{self.job.row.output}"
            if i not in kept and self.store.exists(path):
                self.store.delete(path)
