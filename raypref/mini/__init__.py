"""The miniature world: a procedural renderer of captioned people and tiny checkpoints in real formats."""

from __future__ import annotations

from pathlib import Path


def locate(name: str) -> str:
    """`mini:pipeline` as the folder of the weights that ship with raypref; any other name as it is."""
    if not name.startswith("mini:"):
        return name
    folder = Path(__file__).parent / "weights" / name.removeprefix("mini:")
    if not folder.is_dir():
        shipped = ", ".join(sorted(f"mini:{p.name}" for p in folder.parent.iterdir() if p.is_dir()))
        raise ValueError(f"{name!r} does not ship with raypref; there are {shipped}")
    return str(folder)
