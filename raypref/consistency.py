"""What the fields' types cannot say of a run: whether its parts go together, each problem as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from raypref.overlays import closest, names
from raypref.stages import Domain, PairRule, Stage

if TYPE_CHECKING:
    from raypref.config import RunConfig


def problems(config: RunConfig) -> Iterator[str]:
    """Everything that the fields' types cannot say, each as one sentence."""
    yield from _data_problems(config)
    yield from _model_problems(config)
    if config.resources.train.actors is not None:
        yield "resources.train.actors: the number of training workers is training.workers; remove this field"
    yield from _evaluation_problems(config)
    yield from _rank_problems(config)
    known, chains = ["base"], {"base": []}
    for name, stage in config.stages.items():
        start = known[-1] if stage.start == "previous" else stage.start
        yield from _stage_problems(config, name, stage, known, start, chains.get(start, []))
        chains[name] = [*chains.get(start, []), name]
        known.append(name)


def _data_problems(config: RunConfig) -> Iterator[str]:
    data = config.data
    if data.real is None and data.prompts is None and data.pairs is None:
        yield (
            "data: neither data.prompts nor data.real is given; give one (data.prompts.kind=prompts, .path=FILE), or "
            "data.subject=FOLDER, a subject's photos"
        )
    if data.pairs and config.stages and not any(stage.pairs.kind == "given" for stage in config.stages.values()):
        yield "data.pairs: no stage trains on them; give winner, loser and pairs of a stage the kind given"


def _model_problems(config: RunConfig) -> Iterator[str]:
    model = config.model
    for name in ("base", "lora"):
        if (getattr(model, name) or "").endswith((".ckpt", ".pt", ".pth", ".bin")):
            yield (
                f"model.{name}: {getattr(model, name)!r} is not a .safetensors file, and others (pickles) can run code when they "
                "are loaded; convert it to safetensors"
            )
    if not model.base.endswith(".safetensors"):
        if model.config:
            yield f"model.config: is for a base that is a .safetensors file, and model.base is {model.base!r}; remove it"
        return
    for name in ("revision", "variant"):
        if getattr(model, name) is not None:
            yield f"model.{name}: is of pipelines on the hub, and model.base is a file ({model.base!r}); remove it"


def _evaluation_problems(config: RunConfig) -> Iterator[str]:
    evaluation = config.evaluation
    for role in ("preference", "features", "second"):
        name = getattr(evaluation, role)
        if name is not None and name not in config.scorers:
            yield f"evaluation.{role}: {name!r} is not in scorers ({names(config.scorers)}); {closest(name, config.scorers)}"
    for role in ("scorers", "likeness"):
        for name in getattr(evaluation, role):
            if name not in config.scorers:
                yield f"evaluation.{role}: {name!r} is not in scorers ({names(config.scorers)})"
    if evaluation.likeness and config.data.real is None:
        yield "evaluation.likeness: needs real images; give data.real"


def _stage_problems(
    config: RunConfig, name: str, stage: Stage, known: list[str], start: str, chain: list[str]
) -> Iterator[str]:
    """`known`: models that there are before the stage; `chain`: the stages whose work it goes on from, by way of `start`."""
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
    if start in known:
        yield from _whole_problems(config, where, stage, start)
    for module, lora in stage.lora.modules.items() if stage.lora else ():
        loras = [earlier.lora for n in chain if (earlier := config.stages[n]).lora]
        same = [one.modules[module] for one in loras if module in one.modules]
        if same and same[-1] != lora:
            yield f"{where}.lora.{module}: differs from that of an earlier stage, whose adapter it continues"


def _rank_problems(config: RunConfig) -> Iterator[str]:
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


def _whole_problems(config: RunConfig, where: str, stage: Stage, start: str) -> Iterator[str]:
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


def _domain_problems(config: RunConfig, where: str, stage: Stage, known: list[str]) -> Iterator[str]:
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


def _given_problems(config: RunConfig, where: str, stage: Stage) -> Iterator[str]:
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


def _rule_problems(config: RunConfig, where: str, stage: Stage, rule: PairRule) -> Iterator[str]:
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


def _validation_problems(config: RunConfig, where: str, stage: Stage) -> Iterator[str]:
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


def _batch_problems(config: RunConfig, where: str, stage: Stage) -> Iterator[str]:
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
