"""From a recipe's plain data, YAML overlays and `path=value` assignments to one validated model, or one clear error."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

Config = TypeVar("Config", bound=BaseModel)


def build(
    schema: type[Config],
    recipe: dict,
    overlays: list[dict] | None,
    assignments: list[str] | None,
    expand: Callable[[dict, list[dict]], dict] = lambda tree, changes: tree,
) -> Config:
    """Merge YAML overlays and `path=value` assignments into a recipe's fields and validate the whole against a schema.

    `expand` turns shorthands of the merged tree into fields, seeing what the changes said. Raises ValueError with every
    problem, one a line, each naming field, value, and what is allowed.
    """
    changes = [*(overlays or []), *map(assignment, assignments or [])]
    tree = expand(reduce(merge, changes, recipe), changes)
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ValueError(explain(schema, error, tree, recipe)) from None


def merge(base: Any, change: Any) -> Any:
    """`change` laid over `base`. Mappings merge by key (None removes), unless their `kind` differs; the rest replaces."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    if "kind" in change and "kind" in base and change["kind"] != base["kind"]:
        base = {}
    merged = {key: value for key, value in base.items() if not (key in change and change[key] is None)}
    for key, value in change.items():
        if value is not None or not isinstance(base.get(key), dict):
            merged[key] = merge(base.get(key), value)
    return merged


def leaves(tree: Any, path: str = "") -> list[str]:
    """The fields that a change names: 'a.b' for {'a': {'b': 1}}."""
    if not isinstance(tree, dict) or not tree:
        return [path]
    return [leaf for key, value in tree.items() for leaf in leaves(value, f"{path}.{key}" if path else str(key))]


def assignment(text: str) -> dict:
    """'a.b=1' as {'a': {'b': 1}}; the value is YAML, so lists, null and true are what they look like."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"--set {text!r}: expected path=value, such as stages.easy.steps=100")
    try:
        tree = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {text!r}: the value is not valid YAML ({str(error).splitlines()[0]})") from None
    for key in reversed(keys):
        tree = {key: tree}
    return tree


def explain(schema: type[BaseModel], error: ValidationError, tree: dict, recipe: dict) -> str:
    """All problems of a validation, one a line: field, what is wrong, the value, and a suggestion for unknown keys (and
    for new entries of a mapping, such as stages, that lack fields and are nearly called as one of the recipe's)."""
    lines = []
    for item in error.errors():
        path = ".".join(_path(tree, item["loc"]))
        if item["type"] == "value_error":
            lines += [f"{path}: {line}" if path else line for line in str(item["ctx"]["error"]).splitlines()]
        elif item["type"] == "extra_forbidden":
            allowed = list(_fields(schema, item["loc"][:-1]))
            lines.append(f"{path}: unknown key; {closest(str(item['loc'][-1]), allowed, 'allowed: ' + names(allowed))}")
        elif item["type"] == "missing":
            lines.append(f"{path}: is required{_misspelt(item['loc'], recipe)}")
        elif item["type"] == "union_tag_invalid":
            tags = [tag.strip("' ") for tag in item["ctx"]["expected_tags"].split(",")]
            hint = closest(item["ctx"]["tag"], tags, "one of " + names(tags))
            lines.append(f"{path}.kind: {item['ctx']['tag']!r} is unknown; {hint}")
        else:
            lines.append(f"{path}: {item['msg']} (given: {item['input']!r})")
    return f"{len(lines)} problem(s) in the configuration:\n" + "\n".join(f"  {line}" for line in lines)


def _misspelt(loc: tuple, recipe: dict) -> str:
    group = recipe.get(loc[0])
    if len(loc) < 3 or not isinstance(group, dict) or loc[1] in group:
        return ""
    match = difflib.get_close_matches(str(loc[1]), list(group), n=1)
    return f"; did you mean {loc[0]}.{match[0]}?" if match else ""


def _path(tree: Any, loc: tuple) -> list[str]:
    """Pydantic's location without the tags of unions, which are no part of the path that a user writes."""
    path = []
    for part in loc:
        if isinstance(tree, dict) and part not in tree and part == tree.get("kind"):
            continue
        path.append(str(part))
        tree = tree.get(part) if isinstance(tree, dict) else None
    return path


def _fields(kind: Any, loc: tuple) -> dict:
    """The fields that are allowed at a location."""
    for part in loc:
        options = [kind, *_leaves(kind)]
        models = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        tagged = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == part]
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        # a mapping's values (stages, scorers) are looked through by their annotation
        kind = tagged[0] if tagged else fields[0] if fields else kind
    models = [o for o in [kind, *_leaves(kind)] if isinstance(o, type) and issubclass(o, BaseModel)]
    return models[0].model_fields if models else {}


def _leaves(annotation: Any) -> list:
    return [leaf for arg in get_args(annotation) for leaf in [arg, *_leaves(arg)]]


def names(mapping) -> str:
    return ", ".join(mapping)


def closest(name: str, options, otherwise: str = "add it there or choose one of these") -> str:
    match = difflib.get_close_matches(name, list(options), n=1)
    return f"did you mean {match[0]!r}?" if match else otherwise
