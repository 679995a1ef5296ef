"""What a run is, as validated data: a model, its data, scorers and a curriculum of stages.

A recipe (recipes/) gives a whole `RunConfig`; a YAML overlay and `--set path=value` change fields of it. Stages are
a mapping of name to `Stage`, in order, so `stages.easy.objective.beta=2500` is a path like any other.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from raypref import overlays, subjects
from raypref.overlays import closest, names
from raypref.sources import ImageSource, PairSource, PromptSource
from raypref.stages import Domain, PairRule, Stage, Strict


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
        problems = list(_problems(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _problems(config: RunConfig):
    """Everything that the fields' types cannot say, each as one sentence."""
    if config.data.real is None and config.data.prompts is None and config.data.pairs is None:
        yield (
            "data: neither data.prompts nor data.real is given; give one (data.prompts.kind=prompts, .path=FILE), or "
            "data.subject=FOLDER, a subject's photos"
        )
    for role in ("preference", "features", "second"):
        name = getattr(config.evaluation, role)
        if name is not None and name not in config.scorers:
            yield f"evaluation.{role}: {name!r} is not in scorers ({names(config.scorers)}); {closest(name, config.scorers)}"
    if config.model.config and not config.model.base.endswith(".safetensors"):
        yield f"model.config: is for a base that is a .safetensors file, and model.base is {config.model.base!r}; remove it"
    if config.model.base.endswith(".safetensors"):
        for name in ("revision", "variant"):
            if getattr(config.model, name) is not None:
                yield f"model.{name}: is of pipelines on the hub, and model.base is a file ({config.model.base!r}); remove it"
    if config.resources.train.actors is not None:
        yield "resources.train.actors: the number of training workers is training.workers; remove this field"
    for role in ("scorers", "likeness"):
        for name in getattr(config.evaluation, role):
            if name not in config.scorers:
                yield f"evaluation.{role}: {name!r} is not in scorers ({names(config.scorers)})"
    yield from _rank_problems(config)
    if config.evaluation.likeness and config.data.real is None:
        yield "evaluation.likeness: needs real images; give data.real"
    if config.data.pairs and config.stages and not any(s.pairs.kind == "given" for s in config.stages.values()):
        yield "data.pairs: no stage trains on them; give winner, loser and pairs of a stage the kind given"
    known, chains = ["base"], {"base": []}
    for name, stage in config.stages.items():
        where = f"stages.{name}"
        if name in ("base", "start", "previous", "real") or not name.replace("_", "").replace("-", "").isalnum():
            yield f"{where}: a stage's name is letters, digits, _ and -, and none of base, start, previous, real"
        if stage.start not in ("previous", *known):
            yield f"{where}.start: {stage.start!r} is not base, previous or an earlier stage ({', '.join(known)})"
        yield from _domain_problems(config, where, stage, known)
        yield from _validation_problems(config, where, stage)
        yield from _batch_problems(config, where, stage)
        if stage.optim.warmup >= stage.steps:
            yield f"{where}.optim.warmup: {stage.optim.warmup} steps of warm-up leave none of {stage.steps} to train"
        start = known[-1] if stage.start == "previous" else stage.start
        if start in known:
            yield from _whole_problems(config, where, stage, start)
        for module, lora in stage.lora.modules.items() if stage.lora else ():
            loras = [earlier.lora for n in chains.get(start, []) if (earlier := config.stages[n]).lora]
            earlier = [one.modules[module] for one in loras if module in one.modules]
            if earlier and earlier[-1] != lora:
                yield f"{where}.lora.{module}: differs from that of an earlier stage, whose adapter it continues"
        chains[name] = [*chains.get(start, []), name]
        known.append(name)


def _rank_problems(config: RunConfig):
    """Of ranks, which are among the candidates of one prompt in one domain, and elsewhere say nothing."""
    evaluation, used = config.evaluation, {}
    for role in ("preference", "features", "second", "scorers", "likeness"):
        found = getattr(evaluation, role)
        used[f"evaluation.{role}"] = found if isinstance(found, tuple) else (found,)
    for name, stage in config.stages.items():
        if stage.validation is not None:
            used[f"stages.{name}.validation.features"] = (stage.validation.features,)
        if stage.pairs.kind == "reward" or stage.loser not in (None, stage.winner):
            used[f"stages.{name}.pairs"] = (stage.pairs.scorer,)
    for where, names_of in used.items():
        for name in names_of:
            if name in config.scorers and config.scorers[name].kind == "rank_average":
                yield (
                    f"{where}: {name!r} is a rank_average, which orders the candidates of one prompt and domain and cannot be "
                    "compared beyond; choose a scorer whose values can, such as a weighted_sum"
                )


def _whole_problems(config: RunConfig, where: str, stage: Stage, start: str):
    """Of stages that train all of the U-Net (a lora of none), and of those that start from one."""
    given = f"{stage.start!r}" if stage.start == start else f"{stage.start!r} ({start})"
    if stage.lora is None and config.model.lora and config.model.lora_mode == "continue":
        yield f"{where}.lora: none trains all of the U-Net and cannot continue model.lora; set model.lora_mode=merge"
    elif stage.lora is None and start != "base":
        yield f"{where}.start: {given} is not base, where a stage without lora starts; set start=base, or give a lora"
    elif start != "base" and config.stages[start].lora is None:
        yield (
            f"{where}.start: {given} trains all of the U-Net (it has no lora), which no stage goes on from; set start=base or "
            "an earlier stage with a lora"
        )


def _domain_problems(config: RunConfig, where: str, stage: Stage, known: list[str]):
    rule = stage.pairs
    for role in ("winner", "loser"):
        domain = getattr(stage, role)
        if domain is None:
            if stage.objective.kind != "sft":
                yield f"{where}.loser: is required; only the objective sft trains on winners alone"
            continue
        model = getattr(domain, "model", "start")
        if model not in ("start", *known):
            yield f"{where}.{role}.model: {model!r} is not start, base or an earlier stage ({', '.join(known)})"
        needs_real = domain.kind in ("reconstructed", "real") or getattr(domain, "prompts", None) == "real"
        if needs_real and config.data.real is None:
            yield f"{where}.{role}: needs real images; give data.real"
        elif domain.kind == "generated" and config.data.pairs and not (config.data.prompts or config.data.real):
            yield f"{where}.{role}: needs prompts; give data.prompts, or data.real for its captions"
    if rule.scorer is not None and rule.scorer not in config.scorers:
        field, hint = "features" if rule.kind == "reward" else "scorer", closest(rule.scorer, config.scorers)
        yield f"{where}.pairs.{field}: {rule.scorer!r} is not in scorers ({names(config.scorers)}); {hint}"
    if rule.kind == "reward" and config.model.buckets:
        yield f"{where}.pairs: a reward compares every real image with every negative, so all are square; set model.buckets=false"
    if "given" in (rule.kind, stage.winner.kind, getattr(stage.loser, "kind", "")):
        yield from _given_problems(config, where, stage)
    elif rule.kind == "score":
        yield from _rule_problems(config, where, stage, rule)


def _given_problems(config: RunConfig, where: str, stage: Stage):
    kinds = {
        role: part.kind
        for role in ("winner", "loser", "pairs")
        if (part := getattr(stage, role)) and part.kind != "given"
    }
    if kinds:
        found = ", ".join(f"{role} is {kind}" for role, kind in kinds.items())
        yield f"{where}: pairs that are given have winner, loser and pairs of the kind given, but {found}; set them alike"
    if config.data.pairs is None:
        yield f"{where}: needs preference pairs; give data.pairs (kind and path)"
    if stage.objective.kind not in ("dpo", "sft"):
        yield f"{where}.objective: {stage.objective.kind} is not for pairs that are given; choose dpo or sft"


def _rule_problems(config: RunConfig, where: str, stage: Stage, rule: PairRule):
    if stage.objective.kind == "rpo":
        yield f"{where}.pairs: the objective rpo needs labels from rewards; give pairs.kind=reward and pairs.features"
    if rule.scorer is None and (rule.winner != "random" or rule.loser != "random" or rule.min_gap > 0):
        yield f"{where}.pairs.scorer: {rule.winner} against {rule.loser} needs a scorer ({names(config.scorers)})"
    if (rule.winner == "top") != (rule.loser == "bottom"):
        yield f"{where}.pairs: winner=top goes with loser=bottom, and only with it"
    if rule.k > 1 and rule.winner != "top":
        yield f"{where}.pairs.k: {rule.k} needs winner=top and loser=bottom"
    if rule.ranks is not None:
        if rule.ranks[0] > rule.ranks[1]:
            yield f"{where}.pairs.ranks: {list(rule.ranks)} must be [least, most]"
        if (
            stage.winner != stage.loser
            or rule.scorer is None
            or (rule.winner, rule.loser, rule.k) != ("best", "worst", 1)
        ):
            yield (
                f"{where}.pairs.ranks: compares images of one domain by a scorer; give winner and loser the same domain, a "
                "scorer, and neither pairs.winner, .loser nor .k"
            )
    if stage.loser is None:
        return
    if prompt_set(stage.winner, config) != prompt_set(stage.loser, config):
        yield (
            f"{where}: winner and loser are of different prompts ({prompt_set(stage.winner, config)} and "
            f"{prompt_set(stage.loser, config)}); set {where}.loser.prompts or .winner.prompts so that they agree"
        )
    elif stage.winner == stage.loser:
        size = len(getattr(stage.winner, "strengths", ())) or getattr(stage.winner, "count", 1)
        size = min(size, rule.first or size)
        if rule.ranks and size <= rule.ranks[0]:
            yield f"{where}: ranks of {size} candidate(s) a prompt never differ by {rule.ranks[0]}; raise count"
        elif size < 2 * rule.k:
            yield f"{where}: {size} candidate(s) a prompt cannot give {rule.k} pair(s) within one domain; raise count"


def _validation_problems(config: RunConfig, where: str, stage: Stage):
    if stage.validation is None:
        return
    name = stage.validation.features
    if name not in config.scorers:
        hint = closest(name, config.scorers)
        yield f"{where}.validation.features: {name!r} is not in scorers ({names(config.scorers)}); {hint}"
    for name in {"step", "s_img", "s_txt", "reward"}.intersection(stage.validation.watch):
        yield f"{where}.validation.watch: {name!r} is what the validation itself stores; call the scorer something else"
    for name in stage.validation.watch:
        if name not in (known := [*config.evaluation.scorers, *config.evaluation.likeness]):
            yield f"{where}.validation.watch: {name!r} is not in evaluation.scorers or .likeness ({names(known)})"
    if stage.optim.ema is not None:
        yield f"{where}.optim.ema: {stage.optim.ema} exports an average that no validation has seen; leave one of them out"
    for field in ("validation_prompts", "real"):
        if getattr(config.data, field) is None:
            yield f"{where}.validation: needs data.{field}"


def _batch_problems(config: RunConfig, where: str, stage: Stage):
    per_forward = config.training.workers * config.training.micro_batch
    if stage.batch_size % per_forward:
        yield (
            f"{where}.batch_size: {stage.batch_size} pairs cannot be split over training.workers={config.training.workers} "
            f"x training.micro_batch={config.training.micro_batch}; make it a multiple of {per_forward}"
        )


def prompt_set(domain: Domain, config: RunConfig) -> str:
    """'prompts', 'real' or 'pairs': which list of prompts a domain's rows are of."""
    if domain.kind == "given":
        return "pairs"
    if domain.kind != "generated" or config.data.prompts is None:
        return "real"
    return domain.prompts


def start_of(config: RunConfig, name: str) -> str:
    """The model ('base' or a stage's name) that stage `name` starts from, which is also its reference."""
    names = ["base", *config.stages]
    start = config.stages[name].start
    return names[names.index(name) - 1] if start == "previous" else start


def build(recipe: dict, changes: list[dict] | None = None, assignments: list[str] | None = None) -> RunConfig:
    """A validated run from a recipe's fields, YAML overlays and `path=value` assignments. Raises ValueError (all problems)."""
    return overlays.build(RunConfig, recipe, changes, assignments, subjects.expand)
