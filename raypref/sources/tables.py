"""Rows of files that hold many: prompts (.txt, .jsonl, .parquet, .csv, .tsv), and images in Parquet."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from raypref.sources.files import Row, find_files, parse_json, read_lines
from raypref.sources.kinds import FromPath, ImageParquet, PromptsFile, need, wrong
from raypref.sources.paths import address_of


def prompt_rows(source: PromptsFile) -> Iterator[Row]:
    readers = {".txt": _txt_rows, ".jsonl": _jsonl_rows, ".parquet": None, ".csv": _csv_rows, ".tsv": _csv_rows}
    suffix = PurePosixPath(urlsplit(source.path).path if "://" in source.path else source.path).suffix.lower()
    if suffix not in readers:
        raise wrong(source, "path", f"is of an unknown kind; give a file that ends in {', '.join(readers)}")
    filesystem, paths = find_files(source, (suffix,))
    if suffix == ".parquet":
        return _parquet_rows(source, filesystem, paths, "column")
    return itertools.chain.from_iterable(readers[suffix](source, filesystem, path) for path in paths)


def _txt_rows(source: PromptsFile, filesystem: pafs.FileSystem, path: str) -> Iterator[Row]:
    return ((None, line, {}) for _, line in read_lines(filesystem, path))


def _jsonl_rows(source: PromptsFile, filesystem: pafs.FileSystem, path: str) -> Iterator[Row]:
    known = False
    for number, line in read_lines(filesystem, path):
        row, problem = parse_json(line)
        if row and not known:  # the first row tells a wrong column from a wrong row
            need(source, "column", row)
            known = True
        yield row.get("id"), row.get(source.column), {"error": f"line {number} {problem}"} if problem else {}


def _csv_rows(source: PromptsFile, filesystem: pafs.FileSystem, path: str) -> Iterator[Row]:
    tabs = path.lower().endswith(".tsv")
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    with filesystem.open_input_stream(path, compression=None) as raw:
        reader = csv.DictReader(io.TextIOWrapper(io.BufferedReader(raw), "utf-8-sig", newline=""), **style)
        try:
            need(source, "column", reader.fieldnames or [])
            for row in reader:
                yield row.get("id"), row[source.column], {}
        except (UnicodeDecodeError, csv.Error) as error:
            raise wrong(source, "path", f"cannot be read after line {reader.line_num}: {error}") from error


def image_parquet_rows(source: ImageParquet) -> Iterator[Row]:
    return _parquet_rows(source, *find_files(source, (".parquet",)), "caption_column", "image_column")


def _parquet_rows(
    source: Any, filesystem: pafs.FileSystem, paths: Sequence[str], text_field: str, image_field: str = ""
) -> Iterator[Row]:
    text, image = getattr(source, text_field), getattr(source, image_field, None)

    def check(path: str, schema: pa.Schema) -> None:
        need(source, text_field, schema.names)
        if image:
            need(source, image_field, schema.names)
            if not holds_bytes(schema.field(image).type):
                raise wrong(source, image_field, f"is {schema.field(image).type}; give a column of encoded bytes")

    for record, ref in records(source, filesystem, paths, check, [text, "id"]):
        yield record.get("id"), record[text], ref | {"column": image} if image else {}


def records(
    source: FromPath,
    filesystem: pafs.FileSystem,
    paths: Sequence[str],
    check: Callable[[str, pa.Schema], None],
    columns: Sequence[str],
) -> Iterator[tuple[dict, dict]]:
    """(values, reference that lacks the column of its image) of every row of Parquet and Arrow files, of `columns` (those
    that there are) alone; `check` sees each file's schema first. `row` of a reference counts within its row group."""
    for path in paths:
        kind = "arrow" if path.endswith(".arrow") else "parquet"
        file = {"kind": kind, "path": address_of(source.path, path)}
        try:
            with open_mapped(filesystem, path) if kind == "arrow" else filesystem.open_input_file(path) as handle:
                schema, read = (_arrow if kind == "arrow" else _parquet)(handle)
                check(path, schema)
                for group, batches in read([name for name in dict.fromkeys(columns) if name in schema.names]):
                    for row, record in enumerate(record for batch in batches for record in batch.to_pylist()):
                        yield record, file | {"row_group": group, "row": row}
        except (pa.ArrowException, OSError) as error:
            raise wrong(source, "path", f"holds {path}, which is not readable {kind.title()}: {error}") from error


Read = Callable[[list[str]], Iterator[tuple[int, Iterable[pa.RecordBatch]]]]  # columns -> batches of each row group


def _parquet(handle: pa.NativeFile) -> tuple[pa.Schema, Read]:
    file = pq.ParquetFile(handle)
    groups = range(file.num_row_groups)
    return file.schema_arrow, lambda columns: ((g, file.iter_batches(4096, [g], columns)) for g in groups)


def _arrow(handle: pa.NativeFile) -> tuple[pa.Schema, Read]:
    stream = pa.ipc.open_stream(handle)
    return stream.schema, lambda columns: ((g, [batch.select(columns)]) for g, batch in enumerate(stream))


def open_mapped(filesystem: pafs.FileSystem, path: str) -> pa.NativeFile:
    """A file of `datasets`, an Arrow stream; a local one is mapped into memory, so that only what is used is read."""
    local = isinstance(filesystem, pafs.LocalFileSystem)
    return pa.memory_map(path) if local else filesystem.open_input_file(path)


def holds_bytes(type: pa.DataType) -> bool:
    if pa.types.is_struct(type):
        return type.get_field_index("bytes") >= 0
    return pa.types.is_binary(type) or pa.types.is_large_binary(type)
