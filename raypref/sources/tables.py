"""Rows of files that hold many: prompts (.txt, .jsonl, .parquet, .csv, .tsv), and images in Parquet."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from raypref.sources.files import Row, find_files, parse_json, read_lines
from raypref.sources.kinds import ImageParquet, PromptsFile, need, wrong
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
    """Reads the columns of captions and ids only; `row` of a reference counts within its row group."""
    text, image = getattr(source, text_field), getattr(source, image_field, None)
    for path in paths:
        address = address_of(source.path, path)
        with filesystem.open_input_file(path) as handle:
            try:
                file = pq.ParquetFile(handle)
            except (pa.ArrowException, OSError) as error:
                raise wrong(source, "path", f"holds {path}, which is not readable Parquet: {error}") from error
            schema = file.schema_arrow
            need(source, text_field, schema.names)
            if image:
                need(source, image_field, schema.names)
                if not _holds_bytes(schema.field(image).type):
                    raise wrong(source, image_field, f"is {schema.field(image).type}; give a column of encoded bytes")
            columns = list(dict.fromkeys([text, *({"id"} & set(schema.names))]))
            for group in range(file.num_row_groups):
                batches = file.iter_batches(4096, row_groups=[group], columns=columns)
                for row, record in enumerate(record for batch in batches for record in batch.to_pylist()):
                    ref = {"kind": "parquet", "path": address, "row_group": group, "row": row, "column": image}
                    yield record.get("id"), record[text], ref if image else {}


def _holds_bytes(type: pa.DataType) -> bool:
    if pa.types.is_struct(type):
        return type.get_field_index("bytes") >= 0
    return pa.types.is_binary(type) or pa.types.is_large_binary(type)
