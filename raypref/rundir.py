"""A run directory belongs to one configuration; only how a run works may change when it goes on."""

from __future__ import annotations

import json
import re

from raypref.artifacts import Store, differences
from raypref.config import RunConfig, build

# Fields that a run may change when it goes on: how it runs, not what it makes.
FREE = (
    "resources",
    "training.workers",
    "training.zero_stage",
    "training.micro_batch",
    "training.trackers",
    "training.max_failures",
    "training.log_every",
    "training.validate_every",
    "training.validate_pairs",
    "training.sample_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.gradient_checkpointing",
    "scorers.[^.]+.batch_size",
    "data.max_rejected",
    "sampling.batch_size",
)
_FREE = re.compile(f"({'|'.join(FREE)})\\b")
MADE = ("pools", "scores", "pairs", "train", "eval")  # folders that hold work


def contents(run: Store, record: str) -> list[str]:
    """Names in a run directory. Raises ValueError when it is no folder, or holds other things and not the file `record`."""
    try:
        names = run.names()
    except OSError as error:
        raise ValueError(f"--run-dir {run.uri} cannot be read as a folder ({error}); choose another") from None
    if record not in names and (others := [name for name in names if not name.endswith(".log")]):
        raise ValueError(
            f"--run-dir {run.uri} is not empty and holds no {record} ({', '.join(others[:3])}); use another"
        )
    return names


def check(config: RunConfig, run: Store) -> bool:
    """Whether a configuration has to be written into the run directory.

    Raises ValueError when the directory belongs to another one (naming the fields that differ), or to something else.
    """
    names = contents(run, "config.json")
    if "config.json" not in names:
        return True
    new = json.loads(config.model_dump_json())
    changed = [line for line in differences(run.read_json("config.json"), new) if not _FREE.match(line)]
    if changed and not set(MADE).isdisjoint(names):
        raise ValueError(
            f"--run-dir {run.uri} belongs to a run with another configuration:\n  "
            + "\n  ".join(changed)
            + "\nUse another --run-dir (with --pools to take over what can be), or set the fields back."
        )
    return bool(changed)  # nothing was made yet: a first attempt that failed binds nobody


def claim(config: RunConfig, run: Store) -> None:
    """Write config.json of a new run directory; check that of an old one. Raises ValueError as `check`."""
    if check(config, run):
        run.write_json("config.json", json.loads(config.model_dump_json()))


def read_config(run: Store) -> RunConfig:
    """What a run directory's run is. Raises ValueError where it holds none, naming the runs of subjects below it."""
    if not run.exists("config.json"):
        subjects = [run.join(f"subjects/{name}") for name in run.names("subjects")]
        hint = f"; it holds runs of subjects: name one of {', '.join(subjects[:3])}" if subjects else ""
        raise ValueError(f"{run.uri}: holds no run (config.json){hint}")
    return build(run.read_json("config.json"))
