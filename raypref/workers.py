"""What the training loop asks of its surroundings: two protocols, the job itself, and the plain-torch engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from raypref.config import RunConfig
from raypref.denoiser import Denoiser, trainable
from raypref.stages import Stage


class Engine(Protocol):
    """A model with its optimizer. `step` acts once every `accumulation` calls of `backward`."""

    layout: str  # how `save` lays out a checkpoint: only an engine of the same layout can load it

    def __call__(self, z_t: Tensor, t: Tensor, ids: Tensor, sizes: Tensor, which: str) -> Tensor: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self, lr: float) -> float | None:
        """Clip, update, zero the gradients; the gradient norm before clipping where it is known."""

    def whole(self) -> dict[str, Tensor]:
        """All trainable parameters, gathered (call on every rank)."""

    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


class Context(Protocol):
    rank: int
    world: int
    device: str

    def barrier(self) -> None: ...
    def mean(self, values: list[float]) -> list[float]:
        """Of the same numbers over all workers."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to train one stage; plain values only."""

    config: RunConfig
    stage: str
    path: str  # of the training artifact in the run directory
    pairs: str
    held_out: str
    start: str | None  # path of the training artifact whose LoRA this stage continues
    run: str  # URI of the run directory
    pools: str | None = None  # URI of the pool store, where a validation finds what it reads
    validation: dict[str, str] = field(default_factory=dict)  # paths: prompts, references/<feature model>

    @property
    def row(self) -> Stage:
        return self.config.stages[self.stage]


class Alone:
    """The context of a single process."""

    rank, world = 0, 1

    def __init__(self, device: str = "cpu"):
        self.device = device

    def barrier(self) -> None:
        pass

    def mean(self, values: list[float]) -> list[float]:
        return values


def adamw(denoiser: Denoiser, stage: Stage) -> torch.optim.AdamW:
    optim = stage.optim
    return torch.optim.AdamW(
        [p for p in denoiser.parameters() if p.requires_grad],
        lr=optim.lr,
        betas=optim.betas,
        weight_decay=optim.weight_decay,
    )


class TorchEngine:
    """One process, no sharding: the baseline that every other engine has to equal."""

    layout = "plain torch"

    def __init__(self, denoiser: Denoiser, job: Job, accumulation: int, context: Context):
        self.denoiser = denoiser.to(context.device)
        half = job.config.training.precision == "bfloat16"
        whole = half and job.row.output == "unet"
        for parameter in self.denoiser.parameters() if half else ():
            if not parameter.requires_grad:  # what is trained stays in float32, as ZeRO's master weights do
                parameter.data = parameter.data.bfloat16()
            elif whole:  # but begins where its reference is, and computes as that does
                parameter.data = parameter.data.bfloat16().float()
        self.autocast = partial(torch.autocast, torch.device(context.device).type, torch.bfloat16, whole)
        self.accumulation, self.max_grad_norm = accumulation, job.row.optim.max_grad_norm
        self.parameters = trainable(denoiser)
        self.optimizer = adamw(denoiser, job.row)

    def __call__(self, z_t: Tensor, t: Tensor, ids: Tensor, sizes: Tensor, which: str) -> Tensor:
        with self.autocast():
            return self.denoiser(z_t, t, ids, sizes, which)

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()

    def step(self, lr: float) -> float | None:
        for parameter in self.parameters.values():
            if parameter.grad is None:  # took no part; under ZeRO, too, it decays
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def whole(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.parameters.items()}

    def save(self, folder: Path) -> None:
        torch.save({"weights": self.whole(), "optimizer": self.optimizer.state_dict()}, folder / "state.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, value in state["weights"].items():
                self.parameters[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
