"""What a run is, as validated data: a model, its data, scorers and a curriculum of stages.

A recipe (recipes/) gives a whole `RunConfig`; a YAML overlay and `--set path=value` change fields of it. Stages are
a mapping of name to `Stage`, in order, so `stages.easy.objective.beta=2500` is a path like any other.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from raypref import overlays, subjects
from raypref.consistency import problems
from raypref.sources import ImageSource, PairSource, PromptSource
from raypref.stages import Stage, Strict


class Model(Strict):
    base: str = Field(description="Diffusers pipeline: hub id, local folder, .safetensors file, or mini:pipeline")
    config: str | None = Field(
        None,
        description="of a .safetensors file: folder or hub id of a pipeline of its kind; none: Diffusers' guess, on the hub",
    )
    lora: str | None = Field(
        None, description="LoRA that the base has from the start: safetensors file, folder or hub id"
    )
    lora_mode: Literal["merge", "continue"] = Field(
        "merge",
        description="merge: into the base's weights; continue: stages go on training it, on the layers that it has",
    )
    revision: str | None = Field(None, description="hub revision")
    variant: str | None = Field(None, description="weight variant on the hub, such as fp16")
    resolution: int = Field(512, ge=16, description="side of square training images, pixels; see buckets")
    buckets: bool = Field(
        False,
        description="real images keep their aspect ratio, up to 1:2, in the nearest of several sizes of equal area",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of weights when sampling, scoring")


class Data(Strict):
    """Where prompts and real images come from; `eval_*` are never trained on."""

    prompts: PromptSource | None = Field(None, description="prompts of generated pools; none: captions of `real`")
    real: ImageSource | None = Field(None, description="real images with captions")
    pairs: PairSource | None = Field(None, description="preference pairs, for stages of the kind given")
    eval_prompts: PromptSource | None = Field(None, description="none: a held-out share of prompts, `real` or `pairs`")
    eval_real: ImageSource | None = Field(None, description="none: a held-out share of `real`")
    validation_prompts: PromptSource | None = Field(None, description="of stages with a validation; in no other set")
    token: str | None = Field(None, min_length=1, description="rare word that names the subject; scorers never see it")
    holdout: float = Field(0.05, gt=0, lt=1, description="share held out where no eval source is given")
    eval_limit: int = Field(1000, ge=2, description="most prompts and real images to evaluate on")
    shard_size: int = Field(64, ge=1, description="prompts a shard: the unit of work, of resuming and of a file")
    max_rejected: float = Field(0.05, ge=0, le=1, description="share of bad rows above which a job stops")
    max_pixels: int = Field(64_000_000, ge=256, description="larger images are set aside")
    min_side: int = Field(16, ge=1, description="smaller images are set aside, pixels")
    image_format: Literal["webp", "png", "jpeg"] = Field("webp", description="of generated images")
    image_quality: int = Field(95, ge=1, le=100, description="for webp and jpeg")


class Sampling(Strict):
    """DPM-Solver++ (2M), deterministic given the initial noise."""

    steps: int = Field(25, ge=1, description="solver steps")
    guidance: float = Field(7.5, ge=1, description="classifier-free guidance scale")
    guidance_rescale: float = Field(0.0, ge=0, le=1, description="0.7 for models trained with zero terminal SNR")
    batch_size: int = Field(16, ge=1, description="images a forward pass")


class Scorer(Strict):
    kind: str = Field(description="a name of raypref.scorers.TABLE, or package.module:Class")
    args: dict[str, Any] = Field(default_factory=dict, description="arguments of that class")
    batch_size: int = Field(64, ge=1, description="images a forward pass")


class Evaluation(Strict):
    preference: str = Field("preference", description="scorer whose mean and win rate are reported")
    features: str | None = Field(None, description="feature model (an entry of scorers) for the Frechet distance, CMMD")
    scorers: tuple[str, ...] = Field((), description="further entries of `scorers`, whose means are reported")
    likeness: tuple[str, ...] = Field((), description="feature models (entries of scorers) for likeness to `real`")
    second: str | None = Field(
        None, description="a second preference scorer, best one that picks no pairs: its win rate"
    )
    images: int = Field(1, ge=1, description="a prompt; DreamBench has 4")
    grid: int = Field(12, ge=1, description="prompts in the report's image grid")


class Training(Strict):
    """How training runs; nothing here but `precision` and `zero_stage` touches the numbers beyond rounding."""

    workers: int = Field(1, ge=1, description="data-parallel workers")
    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="DeepSpeed ZeRO stage")
    precision: Literal["float32", "bfloat16"] = "float32"
    micro_batch: int = Field(1, ge=1, description="pairs a forward pass and worker; the rest is accumulated")
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")
    checkpoint_every: int = Field(500, ge=1, description="steps")
    keep_checkpoints: int = Field(2, ge=1)
    log_every: int = Field(10, ge=1, description="steps")
    validate_every: int = Field(500, ge=1, description="steps; preference accuracy on held-out pairs")
    validate_pairs: int = Field(256, ge=1, description="most held-out pairs")
    sample_every: int | None = Field(None, ge=1, description="steps; a grid of sample images; none: at the end only")
    max_failures: int = Field(3, ge=0, description="restarts of a stage before the job gives up")
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)


class Resource(Strict):
    """Of one kind of task. `actors`: a number; [least, most] for as many as the work keeps busy, for which an autoscaler
    may bring nodes up; or none for as many as the cluster has room for."""

    cpus: float = Field(1, gt=0, description="CPUs an actor or worker")
    gpus: float | None = Field(None, ge=0, description="GPUs an actor or worker; none: decided by what there is")
    actors: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None

    @field_validator("actors", mode="before")
    @classmethod
    def _ordered(cls, actors):
        ends = actors if isinstance(actors, list | tuple) and len(actors) == 2 else (actors, actors)
        if actors is not None and not (all(type(end) is int for end in ends) and 1 <= ends[0] <= ends[1]):
            raise ValueError(f"{actors!r} must be a number of 1 or more, or [least, most]")
        return actors


class Resources(Strict):
    generate: Resource = Resource()
    score: Resource = Resource()
    train: Resource = Resource()
    wait_s: float = Field(600, gt=0, description="how long to wait for resources that the cluster lacks, seconds")


class RunConfig(Strict):
    """A whole run. `config.json` in a run directory is this, and replays the run exactly."""

    recipe: str = Field(description="name of the recipe this was made from")
    seed: int = Field(0, ge=0)
    model: Model
    data: Data
    sampling: Sampling = Sampling()
    scorers: dict[str, Scorer]
    stages: dict[str, Stage] = Field(
        default_factory=dict,
        description="none (stages=null): the base model, and model.lora, are evaluated as they are",
    )
    evaluation: Evaluation = Evaluation()
    training: Training = Training()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        found = list(problems(self))
        if found:
            raise ValueError("\n".join(found))
        return self


def build(recipe: dict, changes: list[dict] | None = None, assignments: list[str] | None = None) -> RunConfig:
    """A validated run from a recipe's fields, YAML overlays and `path=value` assignments. Raises ValueError (all problems)."""
    return overlays.build(RunConfig, recipe, changes, assignments, subjects.expand)
