"""From a configuration to tasks: pure, so that a plan can be printed, checked, skipped and resumed.

Every artifact's path ends in the hash of all that decides its content (its own fields and its parents' hashes), so
a changed setting makes new artifacts beside the old ones, and equal settings find what exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raypref.artifacts import digest
from raypref.config import RunConfig, Scorer
from raypref.consistency import prompt_set, start_of
from raypref.stages import Domain, PairRule, Stage
from raypref.tasks import Task, make_task, needed

REFERENCES = ("base", "real", "real", ())  # the pool of real images, which validations compare with
COLORS = "color_statistics"  # always measured on evaluation images, beside the configured scorers


def plan(config: RunConfig, trained: dict[str, Task] | None = None) -> list[Task]:
    """All tasks of a run in an order in which parents come first.

    `trained`: train tasks of another plan by model, which a configuration without stages evaluates.
    """
    tasks = list(_Planner(config, trained or {}).tasks())
    return tasks if config.stages else needed(tasks, "evaluate")


class _Planner:
    """Remembers the tasks made so far by role; lives for one call of `plan`."""

    def __init__(self, config: RunConfig, trained: dict[str, Task]):
        self.config = config
        self.indexes: dict[str, Task] = {}
        own = {"base", "revision", "variant", "dtype"} | ({"config"} if config.model.config else set())
        self.encoder = digest(config.model.model_dump(include=own))  # what encodes real images: no LoRA touches the VAE
        own |= {"lora", "lora_mode"} if config.model.lora else set()
        self.models = {"base": digest(config.model.model_dump(include=own))}
        self.models |= {name: digest(task.fields) for name, task in trained.items()}
        self.trained = dict(trained)
        self.pools: dict[tuple, Task] = {}
        self.scores: dict[tuple[str, str], Task] = {}
        self.counts = self._pool_sizes()

    def tasks(self) -> Iterator[Task]:
        yield from self._index_tasks()
        held_out = None
        for number, model in enumerate(["base", *self.trained, *self.config.stages]):
            if stage := self.config.stages.get(model):
                pairs = self._pairs(f"{number}-{model}", stage, start_of(self.config, model))
                yield pairs
                yield self._train(number, model, stage, pairs, held_out)
            yield from self._images(model)
            if model == "base":
                held_out = self._held_out_pairs()
                yield held_out
            yield self._evaluate(number, model)

    # sources

    def _index_tasks(self) -> Iterator[Task]:
        data = self.config.data
        for name, source, other in (("prompts", data.prompts, data.eval_prompts), ("real", data.real, data.eval_real)):
            if source is not None:
                yield self._index(name, source, "all" if other else "train", None)
            if other or source:
                # without prompts of their own, evaluation prompts are the captions of the held-out real images
                yield self._index(f"eval_{name}", other or source, "all" if other else "held_out", data.eval_limit)
        if data.pairs is not None:
            needed = not {"eval_prompts", "eval_real"} & self.indexes.keys()  # as nobody else gives evaluation prompts
            yield self._index("pairs", data.pairs, "train" if needed else "all", None)
            if needed:
                yield self._index("eval_prompts", data.pairs, "held_out", data.eval_limit)
        if data.validation_prompts and any(stage.validation for stage in self.config.stages.values()):
            yield self._index("validation_prompts", data.validation_prompts, "all", None)

    def _index(self, name: str, source: Any, part: str, limit: int | None) -> Task:
        data = self.config.data
        fields = {"source": source.model_dump(mode="json"), "part": part, "limit": limit, "shard_size": data.shard_size}
        if part != "all":
            fields |= {"holdout": data.holdout, "seed": self.config.seed}
        self.indexes[name] = make_task("index", name, fields, spec={"set": name})
        return self.indexes[name]

    @property
    def eval_prompts(self) -> str:
        return "eval_prompts" if "eval_prompts" in self.indexes else "eval_real"

    # images and scores

    def _pool_sizes(self) -> dict[tuple, int]:
        """Images a prompt of every generated pool: the largest count that a stage asks for."""
        counts: dict[tuple, int] = {}
        for name, stage in self.config.stages.items():
            for domain in (stage.winner, stage.loser):
                if domain and domain.kind == "generated":
                    key = self._key(domain, start_of(self.config, name))
                    counts[key] = max(counts.get(key, 0), domain.count)
        return counts

    def _key(self, domain: Domain, start: str) -> tuple:
        """What identifies a domain's pool within the run: (model, kind, prompt set, strengths)."""
        images = prompt_set(domain, self.config)
        if domain.kind in ("real", "given"):
            return ("base", domain.kind, images, ())
        model = start if domain.model == "start" else domain.model
        return (model, domain.kind, images, getattr(domain, "strengths", ()))

    def _images(self, model: str) -> Iterator[Task]:
        """Pools that need this model's weights, each followed by its scores."""
        wanted: dict[tuple, dict[str, Scorer]] = {}
        evaluation = self._evaluation_scorers()
        if model == "base":
            for name in ("real", "eval_real"):
                if name in self.indexes:
                    wanted[("base", "real", name, ())] = evaluation if name == "eval_real" else {}
        for name, stage in self.config.stages.items():
            domains = filter(None, (stage.winner, stage.loser))
            needs = [(self._key(domain, start_of(self.config, name)), stage.pairs.scorer) for domain in domains]
            needs += [(REFERENCES, scorer) for scorer in self._reference_features(stage)]
            for key, scorer in needs:
                if key[0] == model:
                    wanted[key] = wanted.get(key, {}) | ({scorer: self.config.scorers[scorer]} if scorer else {})
        wanted[(model, "generated", self.eval_prompts, ())] = evaluation
        for key, scorers in wanted.items():
            yield self._pool(key)
            for scorer, settings in scorers.items():
                yield self._score(key, scorer, settings)

    def _evaluation_scorers(self) -> dict[str, Scorer]:
        evaluation, scorers = self.config.evaluation, self.config.scorers
        names = [evaluation.preference, *evaluation.scorers, *evaluation.likeness]
        names += filter(None, (evaluation.features, evaluation.second))
        return {name: scorers[name] for name in names} | {COLORS: Scorer(kind=COLORS)}

    def _pool(self, key: tuple) -> Task:
        model, kind, images, strengths = key
        config, data = self.config, self.config.data
        spec = {"domain": kind, "set": images, "seed": config.seed}
        fields = {
            "kind": kind,
            "set": images,
            "index": self.indexes[images].fields,
            "model": self.encoder if kind in ("real", "given") else self.models[model],
            "resolution": config.model.resolution,
            "seed": config.seed,
        }
        if kind == "generated":
            # the base's held-out images come in twos at least, to make held-out pairs
            twos = model == "base" and bool(self.config.stages or self.trained)
            least = max(self.config.evaluation.images, 1 + twos) if images == self.eval_prompts else 1
            spec["count"] = max(self.counts.get(key, 1), least)
            fields["count"] = spec["count"]
        if kind == "given":
            fields["count"] = 2  # winner and loser
        if kind == "reconstructed":
            spec["strengths"] = fields["strengths"] = list(strengths)
        if kind != "generated":
            fields["checks"] = {"max_pixels": data.max_pixels, "min_side": data.min_side}
        if kind not in ("real", "given"):
            fields["sampling"] = config.sampling.model_dump(include={"steps", "guidance", "guidance_rescale"})
        fields["encoding"] = {"format": data.image_format, "quality": data.image_quality}
        parents = [self.indexes[images].path, *([self.trained[model].path] if model != "base" else [])]
        if model != "base":
            trained = self.trained[model]
            spec["weights"] = f"{trained.path}/{trained.spec['weights']}"
        # held-out real images are square where they are compared with images of other prompts, which are
        if config.model.buckets and images in ("real", "pairs", *({"eval_real"} & {self.eval_prompts})):
            fields["buckets"] = True
        if kind == "reconstructed" or (kind == "generated" and "buckets" in fields):
            real = self.pools[("base", "real", images, ())]
            parents.append(real.path)
            spec["real"] = real.path
            if kind == "generated":
                fields["real"] = digest(real.fields)  # which images there are decides sizes
        name = kind if kind in ("real", "given") else f"{model}-{kind}"
        task = make_task("pool", f"{name}-{images}" if name != images else name, fields, tuple(parents), model, spec)
        self.pools[key] = task
        return task

    def _score(self, key: tuple, name: str, scorer: Scorer) -> Task:
        pool = self.pools[key]
        token = {"token": self.config.data.token} if self.config.data.token else {}  # never shown to a scorer
        settings = scorer.model_dump(mode="json", include={"kind", "args"}) | token
        fields = {"pool": digest(pool.fields), "scorer": settings}
        task = make_task(
            "score",
            f"{pool.path.removeprefix('pools/')}/{name}",
            fields,
            (pool.path,),
            pool.model,
            {"pool": pool.path, "scorer": name, "settings": scorer.model_dump(mode="json") | token},
        )
        self.scores[(pool.path, name)] = task
        return task

    # pairs, training, evaluation

    def _pairs(self, name: str, stage: Stage, start: str) -> Task:
        if stage.pairs.kind == "given":
            return self._given_pairs(name, stage)
        sides, parents = {}, []
        for role in ("winner", "loser"):
            domain = getattr(stage, role) or stage.winner  # winners alone: each is its own loser, which sft never reads
            pool = self.pools[self._key(domain, start)]
            score = self.scores[(pool.path, stage.pairs.scorer)] if stage.pairs.scorer else None
            first = [n for n in (stage.pairs.first, getattr(domain, "count", None)) if n]
            sides[role] = {
                "pool": pool.path,
                "scores": score.path if score else None,
                "source": pool.name,
                "first": min(first) if first and domain.kind == "generated" else None,
            }
            parents += [pool.path, *([score.path] if score else [])]
        rule = stage.pairs.model_dump(mode="json")
        alone = stage.loser is None
        same = not alone and sides["winner"]["pool"] == sides["loser"]["pool"]
        return self._pairs_task(name, sides, rule, same, tuple(dict.fromkeys(parents)))

    def _given_pairs(self, name: str, stage: Stage) -> Task:
        """The user's pairs: both images of a row of one pool, with the labels of its index."""
        pool, index = self.pools[self._key(stage.winner, "base")], self.indexes["pairs"].path
        side = {"pool": pool.path, "scores": None, "source": pool.name, "first": None, "index": index}
        rule = stage.pairs.model_dump(mode="json")
        return self._pairs_task(name, {"winner": side, "loser": side}, rule, True, (index, pool.path))

    def _held_out_pairs(self) -> Task:
        """Best against worst of the base model's images of each evaluation prompt, for preference accuracy."""
        pool = self.pools[("base", "generated", self.eval_prompts, ())]
        score = self.scores[(pool.path, self.config.evaluation.preference)]
        side = {"pool": pool.path, "scores": score.path, "source": pool.name, "first": None}
        rule = PairRule(scorer=self.config.evaluation.preference).model_dump(mode="json")
        return self._pairs_task("held_out", {"winner": side, "loser": side}, rule, True, (pool.path, score.path))

    def _pairs_task(self, name: str, sides: dict, rule: dict, same: bool, parents: tuple[str, ...]) -> Task:
        """`same`: winners and losers are picked from one pool, so that no image may meet itself."""
        fields = {"sides": sides, "rule": rule, "same": same, "seed": self.config.seed}
        return make_task("pairs", name, fields, parents, None, {**sides, **fields})

    def _train(self, number: int, name: str, stage: Stage, pairs: Task, held_out: Task) -> Task:
        start = start_of(self.config, name)
        settings = stage.model_dump(mode="json", exclude={"winner", "loser", "pairs", "start"})
        validation = self._validation(stage)
        fields = {
            "stage": settings,
            "pairs": digest(pairs.fields),
            "start": self.models[start],
            "seed": self.config.seed,
            "precision": self.config.training.precision,
            "validation": {name: digest(task.fields) for name, task in validation.items()},
        }
        parents = (pairs.path, held_out.path, *([self.trained[start].path] if start != "base" else []))
        parents += tuple(task.path for task in validation.values())
        task = make_task(
            "train",
            f"{number}-{name}",
            fields,
            parents,
            name,
            {
                "stage": name,
                "pairs": pairs.path,
                "held_out": held_out.path,
                "start": self.trained[start].path if start != "base" else None,
                "weights": stage.output,
                "validation": {name: task.path for name, task in validation.items()},
            },
        )
        self.models[name], self.trained[name] = digest(fields), task
        return task

    def _validation(self, stage: Stage) -> dict[str, Task]:
        """What a stage's validation reads: its prompts, and the features of the reference images."""
        if stage.validation is None:
            return {}
        features = self._reference_features(stage)
        return {"prompts": self.indexes["validation_prompts"]} | {
            f"references/{name}": self.scores[(self.pools[REFERENCES].path, name)] for name in features
        }

    def _reference_features(self, stage: Stage) -> list[str]:
        """The feature models that a stage's validation compares images with the references by."""
        if stage.validation is None:
            return []
        watched = [name for name in stage.validation.watch if name in self.config.evaluation.likeness]
        return list(dict.fromkeys([stage.validation.features, *watched]))

    def _evaluate(self, number: int, model: str) -> Task:
        pools = {
            "images": self.pools[(model, "generated", self.eval_prompts, ())],
            "base": self.pools[("base", "generated", self.eval_prompts, ())],
            "real": self.pools.get(("base", "real", "eval_real", ())),
        }
        scores = {
            role: {name: self.scores[(pool.path, name)].path for name in self._evaluation_scorers()}
            for role, pool in pools.items()
            if pool
        }
        spec = {
            "model": model,
            "pools": {role: pool.path for role, pool in pools.items() if pool},
            "scores": scores,
            "training": self.trained[model].path if model != "base" else None,
        }
        evaluation = self.config.evaluation.model_dump(mode="json", exclude={"grid"})
        fields = {
            "pools": {role: digest(pool.fields) for role, pool in pools.items() if pool},
            "evaluation": evaluation,
            "scorers": {n: s.model_dump(include={"kind", "args"}) for n, s in self._evaluation_scorers().items()},
        }
        parents = [path for paths in scores.values() for path in paths.values()]
        return make_task("evaluate", f"{number}-{model}", fields, tuple(dict.fromkeys(parents)), model, spec)
