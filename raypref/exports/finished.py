"""A stage that a run has finished, found by its name."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raypref.artifacts import Store, read_manifest
from raypref.config import RunConfig
from raypref.consistency import start_of
from raypref.curriculum import plan
from raypref.rundir import read_config
from raypref.stages import Stage
from raypref.tasks import Task


@dataclass(frozen=True)
class Finished:
    """A stage, its run, and its train task, which names the pairs."""

    run: Store
    config: RunConfig
    name: str
    task: Task

    @property
    def stage(self) -> Stage:
        return self.config.stages[self.name]

    @property
    def title(self) -> str:
        """For files and headings: the recipe's name and the stage's."""
        return f"{self.config.recipe}_{self.name}"

    def chain(self) -> list[str]:
        """The stages whose work the weights hold, in order: those that the stage goes on from, then itself."""
        names = [self.name]
        while (start := start_of(self.config, names[0])) != "base":
            names.insert(0, start)
        return names

    @contextlib.contextmanager
    def weights(self, kind: Literal["lora", "unet"]) -> Iterator[Path]:
        """The local folder of what the stage has trained. Raises ValueError where that is no LoRA and should be one."""
        if self.stage.output != kind:
            raise ValueError(
                f"stage {self.name} has trained all of the U-Net, which has no such form; use --as diffusers or pipeline"
            )
        path = f"{self.task.path}/{kind}"
        if self.run.local is not None:
            yield self.run.local / path
            return
        with tempfile.TemporaryDirectory() as folder:
            self.run.pull(path, folder)
            yield Path(folder)


def find(run: Store, name: str | None, kind: Literal["train", "pairs"], base: str | None = None) -> Finished:
    """The stage of that name, or the last one whose training (or `kind` pairs) is finished.

    `base`: where the base model is now. Raises ValueError that lists the stages that there are.
    """
    config = read_config(run)
    tasks = {task.model: task for task in plan(config) if task.kind == "train"}
    paths = {stage: task.path if kind == "train" else task.spec["pairs"] for stage, task in tasks.items()}
    done = [stage for stage, path in paths.items() if read_manifest(run, path) is not None]
    chosen = name or (done[-1] if done else None)
    if chosen not in done:
        word = {"train": "trained", "pairs": "paired"}[kind]
        there = ", ".join(f"{stage} ({'' if stage in done else 'not '}{word})" for stage in tasks) or "none"
        problem = (
            f"--stage {name}: no such stage is finished in {run.uri}" if name else f"{run.uri}: no stage is finished"
        )
        raise ValueError(f"{problem}; its stages: {there}")
    task = tasks[chosen]  # with the settings it was made with: only now may the base model's place change
    if base is not None:
        config = config.model_copy(update={"model": config.model.model_copy(update={"base": base})})
    return Finished(run, config, chosen, task)
