"""DeepSpeed ZeRO behind the training loop's Engine protocol."""

from __future__ import annotations

import os
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings

from raypref.denoiser import Denoiser, trainable
from raypref.workers import Context, Job, adamw


class ZeroEngine:
    """ZeRO stage 0 to 3 over the workers of a Ray Train group. Only the policy's parameters are optimized and saved."""

    def __init__(self, denoiser: Denoiser, job: Job, accumulation: int, context: Context):
        _skip_extension_build()
        training, optim = job.config.training, job.row.optim
        self.layout = f"ZeRO stage {training.zero_stage}"
        self.stage, self.accumulation, self.calls = training.zero_stage, accumulation, 0
        denoiser.to(context.device)
        half = training.precision == "bfloat16"
        # its forward reads the shape of a submodule's weight, which ZeRO-3 gathers only inside that submodule
        deepspeed.utils.set_z3_leaf_modules(denoiser, [CLIPTextEmbeddings])
        # reuses the process group that Ray Train has made
        deepspeed.init_distributed(dist_backend="nccl" if context.device.startswith("cuda") else "gloo", verbose=False)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=denoiser,
            optimizer=adamw(denoiser, job.row),
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": training.micro_batch,
                "gradient_accumulation_steps": accumulation,
                "train_batch_size": training.micro_batch * accumulation * context.world,
                "gradient_clipping": optim.max_grad_norm,
                "bf16": {"enabled": half},
                # sums of bfloat16 gradients would depend on micro_batch and workers (ZeRO-0 has no other type)
                **({"data_types": {"grad_accum_dtype": "fp32"}} if half and self.stage else {}),
                "zero_optimization": {"stage": self.stage},
                # a plain torch AdamW: DeepSpeed's own is compiled when first used
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
                "wall_clock_breakdown": False,
            },
        )
        self.parameters = trainable(self.engine.module)

    def __call__(self, z_t: Tensor, t: Tensor, ids: Tensor, sizes: Tensor, which: str) -> Tensor:
        return self.engine(z_t, t, ids, sizes, which)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)
        self.calls += 1
        if self.calls % self.accumulation:
            self.engine.step()  # inside an accumulation this only counts

    def step(self, lr: float) -> float | None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def whole(self) -> dict[str, Tensor]:
        if self.engine.bfloat16_enabled():  # the optimizer's float32 copies; the module's own are rounded
            return {name: safe_get_full_fp32_param(value).clone() for name, value in self.parameters.items()}
        with deepspeed.zero.GatheredParameters(
            list(self.parameters.values()), modifier_rank=None, enabled=self.stage == 3
        ):
            return {name: value.detach().clone() for name, value in self.parameters.items()}

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag="zero", exclude_frozen_parameters=True, save_latest=False)

    def load(self, folder: Path) -> None:
        path, _ = self.engine.load_checkpoint(
            str(folder), tag="zero", load_module_strict=False, load_lr_scheduler_states=False
        )
        if path is None:
            raise ValueError(f"{folder}: DeepSpeed found no checkpoint of ZeRO stage {self.stage} in it")


def _skip_extension_build() -> None:
    """On CPU DeepSpeed would compile a shared-memory collective (about a minute) that a few MB of gradients never repay."""
    operations = getattr(deepspeed.ops, "__compatible_ops__", None)
    if isinstance(operations, dict) and not torch.cuda.is_available():
        operations["deepspeed_shm_comm"] = False


def mean(values: list[float]) -> list[float]:
    """Mean over the workers of the same numbers."""
    if dist.get_world_size() == 1 or not values:
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return (tensor / dist.get_world_size()).tolist()
