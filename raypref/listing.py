"""Index artifacts: what a source holds, listed once, so that shards are the same rows for every task and every run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pyarrow as pa
from pydantic import TypeAdapter

from raypref import sources
from raypref.artifacts import INDEX, Store, finished_shards, shard_name, write_shard


def write_index(store: Store, path: str, fields: dict, fingerprint: str) -> int:
    """List a source into index shards, streaming; the number of shards. `fields`: of the index task (curriculum.py).

    Raises ValueError when nothing is left to list.
    """
    rows = _rows(fields)
    done = finished_shards(store, path, fingerprint)
    count = 0
    for count, chunk in enumerate(_chunks(rows, fields["shard_size"]), 1):
        if count - 1 not in done:
            good, rejected, statistics = _checked(chunk)
            write_shard(store, path, count - 1, pa.Table.from_pylist(good, INDEX), fingerprint, rejected, statistics)
    name, where = path.split("/")[-1].rpartition("-")[0], fields["source"].get("path", fields["source"]["kind"])
    if count and not any(_rows_of(store, path, number) for number in range(count)):
        raise ValueError(f"data.{name}: no row of {where} holds a preference; see ties, and has_label in the data")
    if not count:
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


def _rows_of(store: Store, path: str, shard: int) -> int:
    """How many rows a shard has, those that were set aside included."""
    summary = store.read_json(f"{path}/{shard_name(shard)}.json")
    return summary["rows"] + len(summary["rejected"])


def _checked(rows: list[dict]) -> tuple[list[dict], list[dict], dict]:
    """Good rows, rows set aside, and of pairs how many sound ones hold no preference, by reason ("dropped")."""
    good, rejected, dropped = [], [], {}
    for row in rows:
        ref = row.get("ref", {})
        error = row.get("error") or ref.get("error")
        if reason := ref.get("dropped"):
            dropped[reason] = dropped.get(reason, 0) + 1
        elif error:
            rejected.append(reject(row["id"], "malformed row", error))
        elif not row["prompt"].strip():
            rejected.append(reject(row["id"], "empty caption", ""))
        else:
            good.append({"id": row["id"], "prompt": row["prompt"], "ref": json.dumps(ref)})
    return good, rejected, {"dropped": dropped} if dropped else {}


def reject(id: str, reason: str, detail: str) -> dict:
    return {"id": id, "reason": reason, "detail": str(detail)[:300]}


def count_rows(fields: dict) -> int:
    """How many rows an index will have, without writing it (for a dry run)."""
    return sum("dropped" not in row.get("ref", {}) for row in _rows(fields))


def _rows(fields: dict) -> Iterator[dict]:
    """The rows of a source that belong to an index. The held-out part of pairs is their prompts, each once."""
    kind, held_out = fields["source"]["kind"], fields["part"] == "held_out"
    prompts, pairs = kind in ("prompts", "list"), kind in sources.PAIR_KINDS
    type = sources.PromptSource if prompts else sources.PairSource if pairs else sources.ImageSource
    source = TypeAdapter(type).validate_python(fields["source"])
    read = sources.iter_prompts if prompts else sources.iter_pairs if pairs else sources.iter_references
    rows = read(source)
    if fields["part"] != "all":
        # a prompt that stands twice in a file falls on one side; photos are told apart by their ids
        key = "prompt" if prompts or pairs else "id"
        rows = (r for r in rows if sources.held_out(r[key], fields["holdout"], fields["seed"]) == held_out)
    if pairs and held_out:
        rows = _prompts_once(rows)
    return itertools.islice(rows, fields["limit"])


def _prompts_once(pairs: Iterator[dict]) -> Iterator[dict]:
    seen: set[str] = set()
    for row in pairs:
        if "images" in row["ref"] and row["prompt"] not in seen:
            seen.add(row["prompt"])
            yield {"id": row["id"], "prompt": row["prompt"]}
