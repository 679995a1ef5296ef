"""Rows of preference pairs that people bring: a winner, a loser and their prompt.

A label is the probability that the first image is preferred, as Pick-a-Pic's label_0 (arXiv 2305.01569): 1, 0, or 0.5 for
no difference; anything between is a share of votes. The preferred image comes out first. To train on pairs alone:

jobs/hgdpo.py --recipe diffusion_dpo_sd15 --set data.pairs.kind=pick_a_pic --set 'data.pairs.path=DATA/train-*.parquet' \\
  --set stages.dpo.winner.kind=given --set stages.dpo.loser.kind=given --set stages.dpo.pairs.kind=given
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from raypref.sources.files import IMAGE_SUFFIXES, Row, find_files, is_blank, parse_json, read_lines
from raypref.sources.folders import folder_rows
from raypref.sources.kinds import FromPath, PairFolders, PairJsonl, PairWebDataset, PickAPic, wrong
from raypref.sources.paths import address_of, leaves, place
from raypref.sources.tables import holds_bytes, records
from raypref.sources.tars import read_tars

TEXTS = ("text", "caption", "prompt", "original_prompt")  # what a caption is called
_ROLES = {name: number for number in (0, 1) for name in (f"{number}", f"jpg_{number}", ("winner", "loser")[number])}


def judged(images: list[dict], row: dict, ties: str) -> dict:
    """The reference of a pair from those of its images 0 and 1 and a row with label_0 (label_1, has_label if there)."""
    if row.get("has_label") in (False, 0):
        return {"dropped": "no label"}
    try:
        label, other = float(row["label_0"]), row.get("label_1")
        other = 1 - label if other is None else float(other)
    except (KeyError, TypeError, ValueError):
        return {
            "error": f"label_0 {row.get('label_0')!r}, label_1 {row.get('label_1')!r}: a label is missing or no number"
        }
    if not (0 <= label <= 1 and abs(label + other - 1) < 1e-3):
        return {
            "error": f"label_0 {label:g}, label_1 {other:g}: probabilities of the two images that do not add up to 1"
        }
    if label == 0.5 and ties == "drop":
        return {"dropped": "tie"}
    return {"images": images if label >= 0.5 else images[::-1], "label": max(label, 1 - label)}


def pick_a_pic_pairs(source: PickAPic) -> Iterator[Row]:
    filesystem, paths = find_files(source, (".parquet", ".arrow"))
    paths = [path for path in paths if not posixpath.basename(path).startswith("cache-")]  # left by `datasets`
    _refuse_splits(source, paths)

    def check(path: str, schema: pa.Schema) -> None:
        if missing := [name for name in ("jpg_0", "jpg_1", "label_0", "caption") if name not in schema.names]:
            raise wrong(source, "path", f"holds {path} without {', '.join(missing)}; it has: {', '.join(schema.names)}")
        for name in ("jpg_0", "jpg_1"):
            if not holds_bytes(schema.field(name).type):
                raise wrong(source, "path", f"holds {path} with {name} of {schema.field(name).type}, not encoded bytes")

    columns = ["caption", "id", "label_0", "label_1", "has_label"]
    for row, ref in records(source, filesystem, paths, check, columns):
        images = [ref | {"column": name} for name in ("jpg_0", "jpg_1")]
        yield row.get("id"), row["caption"], judged(images, row, source.ties)


def _refuse_splits(source: PickAPic, paths: list[str]) -> None:
    """Raises ValueError for files of more than one split: one would train on the test split without a word."""
    shard = re.compile(r"-\d+-of-\d+[^/]*$")
    splits = sorted({shard.sub("", path) for path in paths if shard.search(path)})
    if len(splits) > 1:
        several = ", ".join(splits)
        raise wrong(
            source, "path", f"holds several splits; give the files of one, such as {splits[0]}-* (of {several})"
        )


def tar_pairs(source: PairWebDataset) -> Iterator[Row]:
    return read_tars(source, _called, partial(_sample, ties=source.ties))


def _called(suffix: str) -> str:
    """'winner.jpg' and the like by the name, other images not at all; 'label_0.txt' as 'label_0', 'txt' as 'text'."""
    name, _, kind = suffix.rpartition(".")
    if f".{kind}" in IMAGE_SUFFIXES:
        return name if name in _ROLES else ""
    if kind == "txt":
        return name if name in (*TEXTS, "label_0", "label_1") else "" if name else "text"
    return suffix if suffix in ("caption", "json") else ""


def _sample(id: str, address: str, found: dict[str, Any], ties: str) -> Iterator[Row]:
    row, problem = parse_json(found["json"]) if "json" in found else ({}, "")
    row |= found
    text = _text(row)
    images = {
        _ROLES[name]: {"kind": "file", "path": address, "offset": value[0], "length": value[1]}
        for name, value in found.items()
        if name in _ROLES
    }
    if not images and text is None and "error" not in found:
        return
    if "error" in found or problem:
        ref = {"error": found.get("error") or f"sample {id}: its .json {problem}"}
    elif len(images) < 2:
        ref = {"error": f"sample {id} has not two images (.winner and .loser, .0 and .1, or .jpg_0 and .jpg_1)"}
    else:
        label = {"label_0": 1} if "winner" in found else {}
        ref = judged([images[0], images[1]], label or row, ties)
    yield id, text, ref


def _text(row: dict) -> Any:
    return next((row[name] for name in TEXTS if not is_blank(row.get(name))), None)


def jsonl_pairs(source: PairJsonl) -> Iterator[Row]:
    filesystem, paths = find_files(source, ("metadata.jsonl",))
    for path in paths:
        known = False
        for number, line in read_lines(filesystem, path):
            row, problem = parse_json(line)
            if row and not known and not ({"winner", "loser"} <= row.keys() and row.keys() & set(TEXTS)):
                needed = "winner, loser and text (or caption, prompt)"
                raise wrong(source, "path", f"holds {path}, whose lines need {needed}; the first has: {', '.join(row)}")
            known = known or bool(row)
            problem = problem or _name_problem(row)
            if problem:
                ref = {"error": f"{posixpath.basename(path)} line {number} {problem}"}
            else:
                files = [posixpath.normpath(f"{posixpath.dirname(path)}/{row[role]}") for role in ("winner", "loser")]
                ref = _certain([{"kind": "file", "path": address_of(source.path, file)} for file in files])
            yield row.get("id"), _text(row), ref


def _name_problem(row: dict) -> str:
    for role in ("winner", "loser"):
        name = row.get(role)
        if not (isinstance(name, str) and name):
            return f"has no file name as {role}"
        if leaves(name):
            return f"has a {role} that leaves the folder: {name!r}"
    return ""


def folder_pairs(source: PairFolders) -> Iterator[Row]:
    home, away = _folder(source, "path"), _folder(source, "losers")
    if home == away:
        raise wrong(source, "losers", "is the folder of the winners, too; give another")
    losers = {path[len(away) :]: path for path in find_files(source, IMAGE_SUFFIXES, "losers")[1]}
    met = set()
    for id, text, ref in folder_rows(source):
        if "path" in ref:
            name = place(ref["path"])[1].removeprefix(home)
            met.add(name)
            other = {"kind": "file", "path": address_of(source.losers, losers.get(name, ""))}
            missing = {"error": f"the winner {name[1:]!r} has no loser of that name in {source.losers}"}
            ref = _certain([ref, other]) if name in losers else missing
        yield id, text, ref
    for name in sorted(losers.keys() - met):
        yield None, None, {"error": f"the loser {name[1:]!r} has no winner of that name in {source.path}"}


def _folder(source: FromPath, field: str) -> str:
    """Inner path of the folder that a field names."""
    try:
        filesystem, path = place(getattr(source, field))
        kind = filesystem.get_file_info(path).type
    except (OSError, pa.ArrowInvalid) as error:
        raise wrong(source, field, f"cannot be read: {error}") from error
    if kind != pafs.FileType.Directory:
        raise wrong(source, field, "is no folder; check the spelling, and that this machine can see it")
    return path


def _certain(images: list[dict]) -> dict:
    return {"images": images, "label": 1.0}
