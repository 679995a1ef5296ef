"""Recipes: named functions that give a whole run as plain data, validated by config.build."""

from __future__ import annotations

from collections.abc import Callable

from raypref.config import RunConfig, build
from raypref.recipes import miniature, sd15, sdxl

RECIPES: dict[str, Callable[[], dict]] = {f.__name__: f for f in (*miniature.RECIPES, *sd15.RECIPES, *sdxl.RECIPES)}


def configure(
    recipe: str | dict, overlays: list[dict] | None = None, assignments: list[str] | None = None
) -> RunConfig:
    """The validated configuration of a recipe (its name, or the fields of a whole run) with overlays and `path=value`
    assignments laid over it.

    Raises ValueError with every problem at once.
    """
    if isinstance(recipe, dict):
        return build(recipe, overlays, assignments)
    return build(fields(recipe), overlays, assignments)


def fields(recipe: str) -> dict:
    """The fields of a recipe by its name. Raises ValueError."""
    if recipe not in RECIPES:
        raise ValueError(f"--recipe {recipe!r}: there are {', '.join(RECIPES)}")
    return {"recipe": recipe, **RECIPES[recipe]()}
