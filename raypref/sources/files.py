"""The files of a source: which they are, and the lines and JSON in them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from raypref.sources.kinds import FromPath, wrong
from raypref.sources.paths import place

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_TEXT = 1 << 20  # bytes of one caption

Row = tuple[Any, Any, dict]  # a row as found: (its own id or None, caption, reference)


def find_files(source: FromPath, suffixes: tuple[str, ...], field: str = "path") -> tuple[pafs.FileSystem, list[str]]:
    """The file at source.path (or another field), or those of the folder or glob with one of `suffixes`; inner paths, sorted."""
    try:
        filesystem, path = place(getattr(source, field))
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.File:
            return filesystem, [path]
        root, pattern, deep = path, "", True
        if kind == pafs.FileType.NotFound:
            parts = path.split("/")
            wild = [i for i, part in enumerate(parts) if any(c in part for c in "*?[")]
            if not wild:
                raise wrong(source, field, "does not exist; check the spelling, and that this machine can see it")
            root, pattern, deep = "/".join(parts[: wild[0]]) or "/", "/" + path.lstrip("/"), wild[0] < len(parts) - 1
        found = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=deep))
    except (OSError, pa.ArrowInvalid) as error:
        raise wrong(source, field, f"cannot be read: {error}") from error
    files = [info.path for info in found if info.is_file and info.path.lower().endswith(suffixes)]
    if pattern:
        files = [file for file in files if PurePosixPath("/" + file.lstrip("/")).match(pattern)]
    else:  # .ipynb_checkpoints and the ._photo.jpg of macOS are not data
        files = [file for file in files if not any(p.startswith(".") for p in file[len(root) :].split("/"))]
    if not files:
        raise wrong(source, field, f"holds no file that ends in {', '.join(suffixes)}")
    return filesystem, sorted(files)


def is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str | bytes) and not value.strip())


def read_lines(filesystem: pafs.FileSystem, path: str) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1. Bytes: one bad line must not end the stream."""
    with filesystem.open_input_stream(path, compression=None) as raw, io.BufferedReader(raw, 1 << 20) as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(b"\xef\xbb\xbf").strip()
            if line:
                yield number, line


def parse_json(data: bytes) -> tuple[dict, str]:
    """JSON object -> (it, ""), or ({}, what is wrong)."""
    try:
        row = json.loads(data)
        if not isinstance(row, dict):
            return {}, "is not a JSON object"
        "".join(value for value in row.values() if isinstance(value, str)).encode()  # refuses half surrogate pairs
        return row, ""
    except (ValueError, RecursionError) as error:
        return {}, f"is not valid JSON: {error}"
