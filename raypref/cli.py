"""Options that every job shares, and how a job ends when something is wrong: one message, not a traceback."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import yaml

from raypref.config import RunConfig
from raypref.recipes import RECIPES, configure

LOCAL = ("model", "weights", "tokenizer", "processor")  # arguments of scorers that may name files here


def parser(description: str, default_recipe: str | None) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--recipe", default=default_recipe, help="name of a recipe; see --list-recipes")
    options.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="YAML laid over the recipe; repeatable"
    )
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        dest="assignments",
        help="one field, such as stages.easy.objective.beta=2500; repeatable",
    )
    options.add_argument("--run-dir", help="local folder or URI (s3://, gs://) for everything the run makes")
    options.add_argument(
        "--pools", help="folder or URI of pools and scores shared by several runs; default: the run's own"
    )
    options.add_argument(
        "--dry-run", action="store_true", help="print what there is to do (tasks, or trials), and run nothing"
    )
    options.add_argument("--list-recipes", action="store_true", help="print the recipes, one a line")
    return options


def list_recipes() -> None:
    for name, recipe in RECIPES.items():
        print(f"{name:<22} {recipe.__doc__.strip().splitlines()[0]}")


def load_configs(arguments: argparse.Namespace, untrained: bool = False) -> dict[str, RunConfig]:
    """One configuration, under the name '', or one for each folder where `data.subject` is a pattern such as photos/*.

    `untrained`: a curriculum without stages is no error.
    """
    pattern = next((a.partition("=")[2] for a in reversed(arguments.assignments) if a.startswith("data.subject=")), "")
    if not any(sign in pattern for sign in "*?["):
        return {"": load_config(arguments, untrained)}
    folders = [folder for folder in sorted(glob.glob(os.path.expanduser(pattern))) if os.path.isdir(folder)]
    if not folders:
        raise ValueError(f"data.subject={pattern!r} matches no folder")
    configs = {}
    for folder in folders:
        one = argparse.Namespace(**vars(arguments))
        one.assignments = [*arguments.assignments, f"data.subject={json.dumps(folder)}"]
        configs[os.path.basename(folder)] = load_config(one, untrained)
    return configs


def load_config(arguments: argparse.Namespace, untrained: bool = False) -> RunConfig:
    """Recipe, overlays and assignments as one validated configuration. Raises ValueError."""
    config = configure(*read_overlays(arguments), arguments.assignments)
    if not (config.stages or untrained or "stages=null" in arguments.assignments):
        raise ValueError(
            "stages: none is left to train; --set stages=null says so, and evaluates the base model as it is"
        )
    return absolute(config)


def read_overlays(arguments: argparse.Namespace) -> tuple[str | dict, list[dict]]:
    """The recipe (its name, or the whole of a run) and the overlays of --config. Raises ValueError naming the file."""
    base, overlays = arguments.recipe, []
    for name in arguments.config:
        overlay = read_yaml("--config", name)
        if not isinstance(overlay, dict):
            raise ValueError(f"--config {name}: expected a mapping of fields, such as 'seed: 1'")
        if "recipe" in overlay:  # the whole of a run, as its config.json: laid over nothing
            base, overlays = overlay, []
        else:
            overlays.append(overlay)
    return base, overlays


def read_yaml(option: str, file: str) -> Any:
    """Content of the file that an option names. Raises ValueError naming both."""
    try:
        with open(file) as stream:
            return yaml.safe_load(stream)
    except OSError as error:
        raise ValueError(f"{option} {file}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{option} {file}: not valid YAML: {error}") from None


def absolute(config: RunConfig) -> RunConfig:
    """Local folders and files by absolute paths, since workers have other working directories than the job."""
    data = {
        name: source.model_copy(
            update={f: location(getattr(source, f)) for f in ("path", "losers") if hasattr(source, f)}
        )
        for name in type(config.data).model_fields
        if hasattr(source := getattr(config.data, name), "path")
    }
    scorers = {
        name: scorer.model_copy(update={"args": _arguments(scorer.args)}) for name, scorer in config.scorers.items()
    }
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "model": config.model.model_copy(
                update={field: _local(getattr(config.model, field)) for field in ("base", "config", "lora")}
            ),
            "scorers": scorers,
        }
    )


def _local(value: Any) -> Any:
    """The name of a local file or folder made absolute; anything else, such as a hub id, as it is."""
    return location(value) if isinstance(value, str) and os.path.exists(os.path.expanduser(value)) else value


def _arguments(args: dict) -> dict:
    """A scorer's arguments, and those of its parts, with local files and folders made absolute."""
    found = {key: _local(value) if key in LOCAL else value for key, value in args.items()}
    if isinstance(parts := args.get("parts"), list):
        found["parts"] = [
            part | {"args": _arguments(part["args"])} if isinstance(part, dict) and part.get("args") else part
            for part in parts
        ]
    return found


def location(uri: str) -> str:
    """A URI as it is, a local path made absolute, since workers have other working directories."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def guarded(work: Callable[[], None], again: str = "the same command") -> int:
    """Run a job; the exit status. What a user can mend is one message; RAYPREF_DEBUG=1 shows the traceback.

    `again`: what goes on after an interruption.
    """
    try:
        work()
        return 0
    except KeyboardInterrupt:
        print(f"\ninterrupted; {again} goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("RAYPREF_DEBUG"):
            traceback.print_exc()
        print(f"\nerror: {root(error)}", file=sys.stderr)
        return 1


def root(error: BaseException) -> str:
    """The message of what went wrong, without the wrappers that Ray puts around it."""
    seen = set()
    while id(error) not in seen:
        seen.add(id(error))
        failures = getattr(error, "worker_failures", None)
        cause = next(iter(failures.values())) if failures else getattr(error, "cause", None)
        kind = type(cause or error).__name__
        if kind == "UserCodeException":  # itself the last part of the text
            return _told(str(error).rpartition("\n\nThe above exception was the direct cause")[0])
        if kind == "ActorDiedError":
            return _told(str(error))
        error = cause or error
    name = type(error).__name__
    text = str(error) or name
    return text if isinstance(error, _CLEAR) else f"{name}: {text}"


_CLEAR = (ValueError, RuntimeError, FloatingPointError)  # whose messages say enough without the type's name


def _told(text: str) -> str:
    """The message of an error that comes from a Ray Data actor as the text of a traceback alone."""
    lines = text.strip().splitlines()
    frames = [i for i, line in enumerate(lines) if line.startswith("  ") or "ray::" in line]
    message = "\n".join(lines[max(frames, default=-1) + 1 :])
    name, _, rest = message.partition(": ")
    return rest if name in [kind.__name__ for kind in _CLEAR] else message
