"""What a sweep searches and what it compares trials by. Pure, so that a sweep that means nothing is refused before it runs.

The objective depends on nothing that is searched (a reward is monotone in its lambda and a DPO loss rescales with beta, so
that searching by them ends at an edge): held-out metrics, of models that neither pick pairs nor choose checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from raypref.cli import absolute, read_yaml
from raypref.config import RunConfig
from raypref.curriculum import plan
from raypref.overlays import closest, leaves, names
from raypref.recipes import configure

# Distributions of ray.tune by name, with their arguments
DISTRIBUTIONS = {
    "choice": "[value, ...]",
    "uniform": "[low, high]",
    "quniform": "[low, high, step]",
    "loguniform": "[low, high]",
    "qloguniform": "[low, high, step]",
    "randint": "[low, high] (high excluded)",
    "lograndint": "[low, high] (high excluded)",
}
# Fields that decide how trials are measured, which has to be alike for all
MEASURE = r"evaluation|scorers|sampling|model|recipe|seed|data\.(eval_\w+|validation_prompts|holdout|token|subject|class_noun)"
VALIDATION = r"stages\.[^.]+\.validation\.(select|lambdas|features|images|watch|every)"
_EXPONENT = re.compile(r"[-+]?\d+e[-+]?\d+", re.IGNORECASE)  # 1e-4 is a text in YAML 1.1, which wants 1.0e-4
Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: trials differ in `space`, and the best is sought in `objective` (metric to min or max)."""

    recipe: str | dict
    overlays: list[dict]
    assignments: list[str]
    space: dict[str, tuple[str, list]]  # path to distribution and arguments
    objective: dict[str, Mode]

    @property
    def seed(self) -> int:
        """Of the search: that of the run."""
        return self.config({}).seed

    def config(self, parameters: dict[str, Any]) -> RunConfig:
        """Of one trial. Raises ValueError as recipes.configure does."""
        config = configure(self.recipe, self.overlays, [*self.assignments, *assignments(parameters)])
        if not config.stages:
            raise ValueError("stages: none is left to train")
        return absolute(config)


def load(file: str, recipe: str | dict, overlays: list[dict], assignments: list[str]) -> Sweep:
    """A sweep from the file of --space. Raises ValueError with every problem: file, field, value, what is allowed."""
    content = _read(file)
    sweep = Sweep(recipe, overlays, assignments, {}, {})
    config = sweep.config({})  # what is wrong without the space is not said to be wrong in its file
    space, problems = {}, []
    for path, domain in content["space"].items():
        try:
            _known(str(path), config)
            space[str(path)] = _domain(str(path), domain)
        except ValueError as error:
            problems.append(str(error))
    sweep = replace(sweep, space=space)
    if not problems:
        configs, problems = _corners(sweep)
        problems += list(_measured_alike(sweep))
    if not problems:
        given = content.get("objective")
        try:
            sweep = replace(sweep, objective=default_objective(configs[0]) if given is None else given)
            problems = [p for config in configs for p in objective_problems(sweep.objective, config)]
        except ValueError as error:
            problems = [str(error)]
    if problems:
        raise ValueError(f"--space {file}:\n" + "\n".join(f"  {line}" for line in dict.fromkeys(problems)))
    return sweep


def _read(file: str) -> dict:
    content = read_yaml("--space", file)
    if not isinstance(content, dict) or not isinstance(content.get("space"), dict) or not content["space"]:
        raise ValueError(
            f"--space {file}: expected 'space:' with at least one path, such as\n"
            "space:\n  stages.rpo.objective.beta: {loguniform: [0.3, 3]}"
        )
    if unknown := set(content) - {"space", "objective"}:
        raise ValueError(f"--space {file}: unknown key {sorted(unknown)[0]!r}; there are space and objective")
    return content


def _known(path: str, config: RunConfig) -> None:
    """Raises ValueError for a stage that the recipe lacks, which would otherwise be a new and incomplete one."""
    top, _, rest = path.partition(".")
    stage = rest.partition(".")[0]
    if top == "stages" and stage and stage not in config.stages:
        hint = closest(stage, config.stages, f"there are {names(config.stages)}")
        raise ValueError(f"{path}: the recipe {config.recipe} has no stage {stage!r}; {hint}")


def _corners(sweep: Sweep) -> tuple[list[RunConfig], list[str]]:
    """Configurations that touch the ends of every range and every choice, and what is wrong with them."""
    ends = {path: _ends(kind, arguments) for path, (kind, arguments) in sweep.space.items()}
    configs, problems = [], []
    for number in range(max(map(len, ends.values()))):
        try:
            configs.append(sweep.config({path: values[min(number, len(values) - 1)] for path, values in ends.items()}))
        except ValueError as error:
            problems += _lines(error)
    return configs, problems


def _measured_alike(sweep: Sweep) -> Iterator[str]:
    """The searched paths that change on which images, references or scores trials are measured."""
    for path, (kind, arguments) in sweep.space.items():
        found = []
        for value in _ends(kind, arguments):
            with contextlib.suppress(ValueError):  # alone it may be wrong: the corners tell
                tasks = plan(sweep.config({path: value}))
                scores = [task.spec["scores"] for task in tasks if task.kind == "evaluate" and task.model == "base"]
                found.append(scores + [task.spec["validation"] for task in tasks if task.kind == "train"])
        if any(other != found[0] for other in found):
            yield f"{path}: changes the images or references that trials are measured on, which have to be alike for all"


def check(sweep: Sweep, drawn: dict[str, dict[str, Any]]) -> None:
    """Raises ValueError with every trial whose parameters, each allowed, do not go together."""
    problems = []
    for name, parameters in drawn.items():
        try:
            sweep.config(parameters)
        except ValueError as error:
            problems += [f"trial {name}: {line}" for line in _lines(error)]
    if problems:
        raise ValueError("the space gives trials that cannot be run:\n" + "\n".join(f"  {line}" for line in problems))


def _lines(error: ValueError) -> list[str]:
    first, *rest = str(error).splitlines()
    return [line.strip() for line in rest or [first]]


def _domain(path: str, domain: Any) -> tuple[str, list]:
    """(distribution, arguments) of one entry of the space. Raises ValueError."""
    if isinstance(domain, list):
        domain = {"choice": domain}
    values = domain.get("choice") if isinstance(domain, dict) else None
    # a choice between mappings changes the fields below
    for leaf in dict.fromkeys(
        x for value in (values if isinstance(values, list) else [0]) for x in leaves(value, path)
    ):
        _searchable(leaf)
    if not isinstance(domain, dict) or len(domain) != 1 or not isinstance(next(iter(domain.values())), list):
        raise ValueError(f"{path}: {domain!r} is no distribution; give a list of values, or one of {_forms()}")
    kind, arguments = next(iter(domain.items()))
    arguments = [float(a) if isinstance(a, str) and _EXPONENT.fullmatch(a) else a for a in arguments]
    if kind not in DISTRIBUTIONS:
        raise ValueError(
            f"{path}: {kind!r} is no distribution; {closest(str(kind), DISTRIBUTIONS, f'one of {_forms()}')}"
        )
    if kind == "choice":
        if not arguments:
            raise ValueError(f"{path}: choice needs at least one value")
        return kind, arguments
    form = DISTRIBUTIONS[kind]
    numbers = all(isinstance(a, int | float) and math.isfinite(a) for a in arguments)
    if not numbers or len(arguments) != form.count(",") + 1:
        raise ValueError(f"{path}: {kind}: {arguments!r}; expected the numbers {form}")
    if len(arguments) == 3:
        step, (low, high) = arguments[2], arguments[:2]
        if step <= 0 or any(abs(end / step - round(end / step)) > 1e-9 for end in (low, high)):
            raise ValueError(f"{path}: {kind}: {arguments!r}; step must be above 0 and divide both ends")
    if arguments[0] >= arguments[1] or ("log" in kind and arguments[0] <= 0):
        raise ValueError(f"{path}: {kind}: {arguments!r}; low must be below high" + " and above 0" * ("log" in kind))
    return kind, arguments


def _searchable(path: str) -> None:
    if match := re.match(rf"({MEASURE})\b", path):
        raise ValueError(f"{path}: trials are compared by what {match[1]} decides, so it has to be alike for all")
    if match := re.match(rf"{VALIDATION}\b", path):
        hint = "; a run follows every lambda_val already, and the sweep reports the whole curve"
        raise ValueError(
            f"{path}: cannot be searched{hint if match[1] in ('select', 'lambdas') else ', it decides what is measured'}"
        )


def _forms() -> str:
    return ", ".join(f"{{{name}: {form}}}" for name, form in DISTRIBUTIONS.items())


def assignments(parameters: dict[str, Any]) -> list[str]:
    return [f"{path}={json.dumps(value)}" for path, value in parameters.items()]


def _ends(kind: str, arguments: list) -> list:
    if kind == "choice":
        return arguments
    low, high = arguments[:2]
    return [low, high - 1] if "randint" in kind else [float(low), float(high)]


# what metrics are measured with


def metrics(config: RunConfig) -> dict[str, tuple[Mode, str | None]]:
    """Of every metric that a run reports of a model: what is better, and the scorer (an entry of `scorers`) behind it."""
    e = config.evaluation
    named = e.preference if e.preference in e.scorers else "preference_score"
    found: dict[str, tuple[Mode, str | None]] = {
        named: ("max", e.preference),
        "win_rate_vs_base": ("max", e.preference),
    }
    if e.second:
        found["second_win_rate"] = ("max", e.second)
    if e.features and config.data.real:
        found |= dict.fromkeys(("frechet_distance", "cmmd"), ("min", e.features))
    found |= {name: ("max", name) for name in (*e.scorers, *e.likeness)}
    return found | {"color_drift": ("min", None), "latent_mean_drift": ("min", None)}


def searched_by(config: RunConfig) -> dict[tuple, str]:
    """Models that pick pairs, give labels or choose checkpoints: {identity: where}."""
    uses = {}
    for name, stage in config.stages.items():
        roles = {f"stages.{name}.pairs": stage.pairs.scorer}
        if stage.validation:
            roles[f"stages.{name}.validation.features"] = stage.validation.features
        uses |= {
            identity: where
            for where, scorer in roles.items()
            if scorer
            for identity in _identities(config.scorers[scorer].model_dump())
        }
    return uses


def _identities(scorer: dict) -> list[tuple]:
    """What makes two scorers the same model, whatever they are called and whichever of its outputs they use; of each part."""
    args = scorer.get("args") or {}
    if isinstance(parts := args.get("parts"), list):
        return [identity for part in parts if isinstance(part, dict) for identity in _identities(part)]
    model = str(args.get("model", args.get("url", scorer.get("kind"))))
    # a folder or hub id has weights of its own, and `pretrained` says nothing
    return [(model, None if any(sign in model for sign in "/:") else args.get("pretrained"))]


def objective_problems(objective: Any, config: RunConfig) -> Iterator[str]:
    """Why an objective does not stand on its own, each as one sentence."""
    if not isinstance(objective, dict) or not objective:
        yield f"objective: {objective!r}; expected metrics with min or max, such as {{frechet_distance: min}}"
        return
    known, uses = metrics(config), searched_by(config)
    if set(objective) <= {"color_drift", "latent_mean_drift"}:
        yield f"objective: {names(objective)} alone is best for a model that learned nothing; add another metric"
    for metric, mode in objective.items():
        if mode not in ("min", "max"):
            yield f"objective.{metric}: {mode!r} must be min or max"
        elif re.search(r"loss|grad_norm|accurac|margin", metric) and metric not in known:
            yield (
                f"objective.{metric}: is a part of the training objective, which rescales with what is searched (beta, the "
                f"learning rate, the pairs); choose from {names(known)}"
            )
        elif re.search(r"reward|s_img|s_txt", metric) and metric not in known:
            yield (
                f"objective.{metric}: is the reward that training is labelled or its checkpoints are chosen by; it is "
                f"monotone in lambda, so its best is always at an edge; choose from {names(known)}"
            )
        elif metric not in known:
            yield f"objective.{metric}: is not measured; {closest(metric, known, 'there are ' + names(known))}"
        elif mode != known[metric][0]:
            yield f"objective.{metric}: {mode!r}, but better is {known[metric][0]!r}"
        elif metric == "latent_mean_drift" and any(
            getattr(s.objective, "statistics", None) for s in config.stages.values()
        ):
            yield f"objective.{metric}: is what the statistics loss lowers, so its best is always at an edge"
        elif (scorer := known[metric][1]) and (
            where := next((uses[i] for i in _identities(config.scorers[scorer].model_dump()) if i in uses), None)
        ):
            yield (
                f"objective.{metric}: is measured by scorers.{scorer}, the model that {where} uses, so training would be "
                "judged by what it was trained for; choose a metric of another model"
            )


def default_objective(config: RunConfig) -> dict[str, Mode]:
    """What validations watch (RPO: image and text); else Frechet distance and the second scorer's win rate (HG-DPO)."""
    known = metrics(config)
    watched = [name for stage in config.stages.values() if stage.validation for name in stage.validation.watch]
    found = {name: known[name][0] for name in watched or ("frechet_distance", "second_win_rate") if name in known}
    found = {name: mode for name, mode in found.items() if not list(objective_problems({name: mode}, config))}
    if not found:
        raise ValueError(
            "objective: there is no default, since nothing is measured that the search does not use; give one, from "
            f"{names(known)}, or add scorers to evaluation.scorers, evaluation.second or evaluation.features"
        )
    return found


def watching(objective: dict[str, Mode], config: RunConfig) -> str | None:
    """The stage whose validations measure the whole objective as it trains, where there is one: the last."""
    name, stage = list(config.stages.items())[-1]
    return name if stage.validation and set(objective) <= set(stage.validation.watch) else None


def rungs(objective: dict[str, Mode], config: RunConfig) -> int:
    """How often a trial can be compared with others: validations of its stage, or stages."""
    name = watching(objective, config)
    if name is None:
        return len(config.stages)
    stage = config.stages[name]
    return -(-stage.steps // stage.validation.every)
