"""The units of a plan, and how they are taken: what an artifact needs, and which tasks run as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from raypref.artifacts import digest

KINDS = ("index", "pool", "score", "pairs", "train", "evaluate")


@dataclass(frozen=True)
class Task:
    """One unit of the plan. It makes the artifact at `path` from the artifacts at `parents`."""

    kind: str  # of KINDS
    name: str
    path: str  # relative to the pool store (index, pool, score) or to the run directory
    fields: dict  # what decides the content, hashes of parents included
    parents: tuple[str, ...] = ()
    model: str | None = None  # 'base' or a stage: whose weights it needs or makes
    spec: dict[str, Any] = field(default_factory=dict)  # what the task does with them

    @property
    def shared(self) -> bool:
        """Whether it lives in the pool store, which several runs may share."""
        return self.kind in ("index", "pool", "score")


_FOLDERS = {
    "index": "sources",
    "pool": "pools",
    "score": "scores",
    "pairs": "pairs",
    "train": "train",
    "evaluate": "eval",
}


def make_task(
    kind: str,
    name: str,
    fields: dict,
    parents: tuple[str, ...] = (),
    model: str | None = None,
    spec: dict | None = None,
) -> Task:
    return Task(kind, name, f"{_FOLDERS[kind]}/{name}-{digest(fields)[:8]}", fields, parents, model, spec or {})


def images_a_row(fields: dict) -> int:
    """Images a prompt of a pool, from its task's fields."""
    return fields.get("count") or len(fields.get("strengths", [0]))


def waves(tasks: list[Task]) -> Iterator[list[Task]]:
    """Tasks in groups that run as one: pools of one model with their scores stream through the same actors."""
    group: list[Task] = []
    for task in tasks:
        images = task.kind in ("pool", "score")
        inside = {t.path for t in group}
        needs = inside.intersection(task.parents) if task.kind == "pool" else set()
        if group and not (images and task.model == group[0].model and not needs):
            yield group
            group = []
        if images:
            group.append(task)
        else:
            yield [task]
    if group:
        yield group


def needed(tasks: list[Task], kind: str) -> list[Task]:
    """The tasks of a kind and those whose artifacts they need, in the plan's order."""
    paths: set[str] = set()
    for task in reversed(tasks):
        if task.kind == kind or task.path in paths:
            paths |= {task.path, *task.parents}
    return [task for task in tasks if task.path in paths]
