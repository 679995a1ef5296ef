"""README.md files beside what is exported, with the front matter that the hub reads. Licences are the user's words alone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml
from pydantic import BaseModel

from raypref.artifacts import read_manifest
from raypref.config import RunConfig
from raypref.recipes import RECIPES
from raypref.report import table

if TYPE_CHECKING:
    from raypref.exports import Options
    from raypref.exports.finished import Finished
    from raypref.exports.pairs import Told

GRID = "grid.png"
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def write_model_card(finished: Finished, folder: Path, options: Options, form: str) -> None:
    """README.md of exported weights, and the run's sample grid beside it when there is one."""
    run, config, chain = finished.run, finished.config, finished.chain()
    adapter = finished.stage.output == "lora" and form != "pipeline"
    if run.exists(GRID):
        (folder / GRID).write_bytes(run.read(GRID))
    rows = run.read_json("summary.json")["stages"] if run.exists("summary.json") else []
    kinds = dict.fromkeys(config.stages[name].objective.kind for name in chain)
    front = {
        **hub_link(config.model.base, "adapter" if adapter else "finetune"),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", *(["lora"] if adapter else []), *kinds],
        **_license(options),
        **({"instance_prompt": config.data.token} if config.data.token else {}),
    }
    values = {
        "form": form,
        "whole": finished.stage.output == "unet",
        "grid": GRID if (folder / GRID).exists() else None,
        "metrics": table([row for row in rows if row["name"] in ("base", *chain)]) if rows else None,
        "settings": _settings({name: config.stages[name] for name in chain}),
    }
    _write(folder, "model_card.md.j2", front, _common(finished, options) | values)


def write_dataset_card(finished: Finished, folder: Path, options: Options, told: Told, histogram: str) -> None:
    """README.md of exported pairs. `histogram`: of their score gaps, as text."""
    sizes = [name for limit, name in _SIZES if told.rows < limit]
    front = {
        "pretty_name": f"Preference pairs {finished.title}",
        **_license(options),
        "task_categories": ["text-to-image"],
        "tags": ["preference", "dpo", "image"],
        "size_categories": [sizes[0] if sizes else "10M<n<100M"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    }
    statistics = read_manifest(finished.run, finished.task.spec["pairs"])["statistics"]
    values = {
        "told": told,
        "sources": told.sources.most_common(),
        "dropped": statistics.get("dropped", {}),
        "stage_rule": finished.stage.pairs,
        "rule": _settings({"pairs": finished.stage.pairs}),
        "histogram": histogram,
    }
    _write(folder, "dataset_card.md.j2", front, _common(finished, options) | values)


def _common(finished: Finished, options: Options) -> dict[str, Any]:
    """What both cards say of the run."""
    config = finished.config
    recipe = RECIPES.get(config.recipe)
    return {
        "title": finished.title,
        "stage": finished.name,
        "config": config,
        "base": public_name(config.model.base),
        "begun": _begun(config),
        "recipe": recipe.__doc__.strip().splitlines()[0] if recipe else "",
        "data": data_sources(config),
        "license": options.license or "Not stated.",
        "notes": options.source_notes,
    }


def _begun(config: RunConfig) -> str:
    """What the run made of a LoRA that its base had from the start."""
    if not config.model.lora:
        return ""
    name = public_name(config.model.lora)
    if config.model.lora_mode == "continue":
        return f"The training went on from the LoRA `{name}`, whose weights are part of this one."
    return f"The base model had the LoRA `{name}` merged into its weights; merge it first (`load_lora_weights`, `fuse_lora`)."


def data_sources(config: RunConfig) -> dict[str, str]:
    """The run's sources by their role, without the folders of this computer."""
    found = {}
    for role in type(config.data).model_fields:
        source = getattr(config.data, role)
        if hasattr(source, "kind"):
            where = f" `{public_name(source.path)}`" if hasattr(source, "path") else ""
            found[role] = f"{source.kind}{where}"
    return found


def public_name(location: str) -> str:
    """A hub id or URI as it is; of a local path its last part alone, since cards are published."""
    local = os.path.isabs(location) or location.startswith((".", "~")) or os.path.exists(location)
    return os.path.basename(location.rstrip("/")) if local else location


def hub_link(base: str, relation: str) -> dict[str, str]:
    """The hub's link to a base model that is on it: a folder's name would link to nothing."""
    hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) and not os.path.exists(base)
    return {"base_model": base, "base_model_relation": relation} if hub else {}


def _license(options: Options) -> dict[str, str]:
    return {"license": options.license} if options.license else {}


def _write(folder: Path, template: str, front: dict, values: dict) -> None:
    loader = jinja2.PackageLoader(__package__, "")
    environment = jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    text = environment.get_template(template).render(values)
    (folder / "README.md").write_text(f"---\n{_yaml(front)}---\n\n{text.strip()}\n", encoding="utf-8")


def _settings(parts: dict[str, BaseModel]) -> str:
    """Parts of a configuration, what is not set left out, short lists and mappings on one line."""
    tree = {name: part.model_dump(mode="json", exclude_none=True) for name, part in parts.items()}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
