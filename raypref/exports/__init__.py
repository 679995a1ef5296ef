"""What users take away from a finished run: adapters, whole pipelines and pairs in the formats of other tools.

Each format is one file of this package, with one function that writes it into a folder. Nothing here starts Ray.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from raypref.artifacts import Store
from raypref.exports.finished import find

FORMATS = {  # name -> module of this package and function(finished, folder, options); loaded when it is asked for
    "kohya": "kohya:write",
    "diffusers": "copies:diffusers",
    "peft": "copies:peft",
    "pipeline": "pipeline:write",
    "pairs": "pairs:write",
}


@dataclass(frozen=True)
class Options:
    """What the user says about an export. Nothing about rights is ever guessed."""

    base: str | None = None  # where the base model is now, if not where the run had it
    dtype: str = "float32"  # of the weights of kohya files and pipelines
    license: str | None = None  # identifier, as on the hub
    source_notes: tuple[str, ...] = ()  # sources and attribution, a sentence each


def export(
    run: Store, formats: Sequence[str], out: str | Path, stage: str | None = None, options: Options | None = None
) -> Path:
    """Write a stage of a run (default: the last trained one) into the new folder `out`; its path.

    One format fills the folder itself, each of several a folder of its name in it. Raises ValueError for an `out` that
    is not empty and for a stage that is not there; then, and on any other error, nothing is left behind.
    """
    out, formats, options = _new_folder(out), list(dict.fromkeys(formats)), options or Options()
    finished = find(run, stage, "pairs" if formats == ["pairs"] else "train", options.base)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        for name in formats:
            folder = temporary / name if len(formats) > 1 else temporary
            folder.mkdir(parents=True)
            module, function = FORMATS[name].split(":")
            write = getattr(import_module(f"{__name__}.{module}"), function)
            write(finished, folder, options)
        os.replace(temporary, out)  # takes the place of an empty folder, too
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _new_folder(out: str | Path) -> Path:
    if "://" in str(out):
        raise ValueError(f"--out {out}: must be a local folder; copy it from there to where it shall go")
    folder = Path(out).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out {out}: exists and is not an empty folder; choose another")
    return folder
