"""Checkpoints of a stage: every rank's files first, a marker last. Only what has a marker is ever read."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from raypref.artifacts import Store

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.workers import Context, Engine

MARKER = "complete.json"


def _folder(path: str, step: int) -> str:
    return f"{path}/checkpoints/step_{step:06d}"


def complete(store: Store, path: str) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    names = store.names(f"{path}/checkpoints")
    steps = sorted(int(name.removeprefix("step_")) for name in names if name.startswith("step_"))
    return [step for step in steps if store.exists(f"{_folder(path, step)}/{MARKER}")]


def save(
    store: Store, path: str, step: int, engine: Engine, context: Context, average: dict[str, Tensor] | None, keep: int
) -> None:
    """Every rank writes its own files; the marker follows when all have; old checkpoints go when the new one stands."""
    target = _folder(path, step)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine.save(folder)
        if average is not None and context.rank == 0:
            from safetensors.torch import save_file  # here: a dry run lists checkpoints without loading torch

            save_file({key: value.contiguous() for key, value in average.items()}, folder / "average.safetensors")
        store.push(folder, target)
    context.barrier()
    if context.rank == 0:
        store.write_json(f"{target}/{MARKER}", {"step": step, "world": context.world, "layout": engine.layout})
        for old in complete(store, path)[:-keep]:
            store.delete(_folder(path, old))


def resume(store: Store, path: str, engine: Engine, context: Context, average: dict[str, Tensor] | None) -> int:
    """Load the newest complete checkpoint into engine and average; the step it is from (0 when there is none).

    Raises ValueError when it was written by another number of workers or another ZeRO stage.
    """
    steps = complete(store, path)
    if not steps:
        return 0
    source = _folder(path, steps[-1])
    marker = store.read_json(f"{source}/{MARKER}")
    if (marker["world"], marker["layout"]) != (context.world, engine.layout):
        raise ValueError(
            f"{store.uri}/{source} was written by {marker['world']} worker(s) with {marker['layout']} and cannot be read "
            f"by {context.world} with {engine.layout}: set training.workers and training.zero_stage back, or delete "
            f"{path}/checkpoints to begin the stage again"
        )
    with tempfile.TemporaryDirectory() as name:
        store.pull(source, name)
        engine.load(Path(name))
        if average is not None:
            from safetensors.torch import load_file

            for key, value in load_file(Path(name) / "average.safetensors").items():
                average[key].copy_(value)
    return steps[-1]
