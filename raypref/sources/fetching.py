"""The bytes of images, from the references that `raypref.sources.iter_references` lists."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raypref.images import BadImage, encode
from raypref.sources.paths import THREADS, place
from raypref.sources.tables import open_mapped

MAX_BYTES = 1 << 28  # bytes of one image file


def fetch(refs: Sequence[dict]) -> list[bytes | Exception]:
    """Encoded image bytes of each reference, in their order, or a BadImage in the place of one that fails.

    Opens each file once and reads each Parquet row group once, many files at a time.
    """
    results: list[Any] = [None] * len(refs)
    groups: dict[tuple, list[int]] = {}
    for position, ref in enumerate(refs):
        groups.setdefault((ref.get("kind"), ref.get("path")), []).append(position)

    def read(group: tuple[tuple, list[int]]) -> None:
        (kind, path), positions = group
        wanted = {position: refs[position] for position in positions}
        try:
            for position, value in _READERS.get(kind, _read_nothing)(path, wanted):
                results[position] = value
        except Exception as error:  # the file as a whole; what was read of it stays
            for position in positions:
                if results[position] is None:
                    results[position] = _bad(error, refs[position])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, groups.items()))
    return results


def _bad(error: Exception, ref: dict) -> BadImage:
    if isinstance(error, BadImage):
        return error
    reason = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
    return BadImage(reason, f"image cannot be read from {ref}: {type(error).__name__}: {error}")


def _read_files(path: str, wanted: dict[int, dict]) -> Iterator[tuple[int, Any]]:
    """Whole files, and members of archives by their offset and length."""
    filesystem, inner = place(path)
    with filesystem.open_input_file(inner) as file:
        size = file.size()
        for position, ref in wanted.items():
            offset, length = ref.get("offset", 0), ref.get("length", size)
            if length > MAX_BYTES:
                yield position, BadImage("too_large", f"image file of {length} bytes is over {MAX_BYTES}: {ref}")
            elif offset + length > size:
                yield position, BadImage("truncated", f"archive ends at byte {size}, inside of the image {ref}")
            else:
                file.seek(offset)
                yield position, file.read(length)


def _read_parquet(path: str, wanted: dict[int, dict]) -> Iterator[tuple[int, Any]]:
    filesystem, inner = place(path)

    def where(item: tuple[int, dict]) -> tuple[int, str]:
        return item[1]["row_group"], item[1]["column"]

    with filesystem.open_input_file(inner) as handle:
        file = pq.ParquetFile(handle)
        for (group, column), items in itertools.groupby(sorted(wanted.items(), key=where), key=where):
            rows: dict[int, list[int]] = {}
            for position, ref in items:
                rows.setdefault(ref["row"], []).append(position)
            try:
                yield from _read_row_group(file, group, column, rows)
            except Exception as error:  # other row groups may be sound
                yield from ((p, _bad(error, wanted[p])) for positions in rows.values() for p in positions)


def _read_row_group(file: pq.ParquetFile, group: int, column: str, rows: dict[int, list[int]]) -> Iterator:
    """rows: row of the group -> positions that want it; rows are taken out as they are read.

    Reads in small batches, as a row group may be gigabytes.
    """
    start = 0
    for batch in file.iter_batches(64, row_groups=[group], columns=[column]):
        for row in range(start, start + len(batch)):
            if row in rows:
                value = _cell(batch.column(0)[row - start].as_py(), f"row {row} of row group {group}", column)
                yield from ((position, value) for position in rows.pop(row))
        start += len(batch)
        if not rows:
            return
    raise IndexError(f"row group {group} has only {start} rows")


def _cell(value: Any, where: str, column: str) -> bytes | BadImage:
    value = value.get("bytes") if isinstance(value, dict) else value
    return BadImage("missing", f"image of {where} is null in {column!r}") if value is None else value


def _read_arrow(path: str, wanted: dict[int, dict]) -> Iterator[tuple[int, Any]]:
    batches: dict[int, list[int]] = {}
    for position, ref in wanted.items():
        batches.setdefault(ref["row_group"], []).append(position)
    with open_mapped(*place(path)) as handle:
        for number, batch in enumerate(pa.ipc.open_stream(handle)):
            for position in batches.pop(number, ()):
                row, column = wanted[position]["row"], wanted[position]["column"]
                yield position, _cell(batch.column(column)[row].as_py(), f"row {row} of batch {number}", column)
            if not batches:
                return
    raise IndexError(f"file has no batches {sorted(batches)}")


def _read_renderer(path: None, wanted: dict[int, dict]) -> Iterator[tuple[int, Any]]:
    from raypref.mini.renderer import person

    for position, ref in wanted.items():
        yield position, encode(person(ref["seed"], ref["index"], identity=ref.get("identity"))[1], "png")


def _read_nothing(path: Any, wanted: dict[int, dict]) -> Iterator[tuple[int, Any]]:
    for position, ref in wanted.items():
        yield position, BadImage("refused", ref.get("error") or f"not a reference of a known kind: {ref}")


_READERS = {"file": _read_files, "parquet": _read_parquet, "arrow": _read_arrow, "renderer": _read_renderer}
