"""Index artifacts: what a source holds, listed once, so that shards are the same rows for every task and every run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pyarrow as pa
from pydantic import TypeAdapter

from raypref import sources
from raypref.artifacts import INDEX, Store, finished_shards, write_shard


def write_index(store: Store, path: str, fields: dict, fingerprint: str) -> int:
    """List a source into index shards, streaming; the number of shards. `fields`: of the index task (curriculum.py).

    Raises ValueError when nothing is left to list.
    """
    rows = _rows(fields)
    done = finished_shards(store, path, fingerprint)
    count = 0
    for count, chunk in enumerate(_chunks(rows, fields["shard_size"]), 1):
        if count - 1 not in done:
            good, rejected = _checked(chunk)
            write_shard(store, path, count - 1, pa.Table.from_pylist(good, INDEX), fingerprint, rejected)
    if not count:
        name, where = path.split("/")[-1].rpartition("-")[0], fields["source"].get("path", fields["source"]["kind"])
        if fields["part"] == "all":
            raise ValueError(f"data.{name}: {where} holds no rows; give a source that holds some")
        raise ValueError(
            f"data.{name}: no row of {where} falls into its {fields['part']} part at data.holdout={fields['holdout']}; set "
            "data.holdout nearer to 0.5, or give data.eval_prompts and data.eval_real"
        )
    return count


def _chunks(rows: Iterator[dict], size: int) -> Iterator[list[dict]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _checked(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    good, rejected = [], []
    for row in rows:
        ref = row.get("ref", {})
        error = row.get("error") or ref.get("error")
        if error:
            rejected.append(reject(row["id"], "malformed row", error))
        elif not row["prompt"].strip():
            rejected.append(reject(row["id"], "empty caption", ""))
        else:
            good.append({"id": row["id"], "prompt": row["prompt"], "ref": json.dumps(ref)})
    return good, rejected


def reject(id: str, reason: str, detail: str) -> dict:
    return {"id": id, "reason": reason, "detail": str(detail)[:300]}


def count_rows(fields: dict) -> int:
    """How many rows an index will have, without writing it (for a dry run)."""
    return sum(1 for _ in _rows(fields))


def _rows(fields: dict) -> Iterator[dict]:
    """The rows of a source that belong to an index."""
    prompts = fields["source"]["kind"] in ("prompts", "list")
    source = TypeAdapter(sources.PromptSource if prompts else sources.ImageSource).validate_python(fields["source"])
    rows = sources.iter_prompts(source) if prompts else sources.iter_references(source)
    if fields["part"] != "all":
        wanted = fields["part"] == "held_out"
        # a prompt that stands twice in a file falls on one side; photos are told apart by their ids
        key = "prompt" if prompts else "id"
        rows = (r for r in rows if sources.held_out(r[key], fields["holdout"], fields["seed"]) == wanted)
    return itertools.islice(rows, fields["limit"])
