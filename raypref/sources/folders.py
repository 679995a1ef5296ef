"""Rows of a folder of images: of its metadata.jsonl, else of the .txt beside each image."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from raypref.sources.files import IMAGE_SUFFIXES, MAX_TEXT, Row, find_files, is_blank, parse_json, read_lines
from raypref.sources.kinds import ImageFolder, wrong
from raypref.sources.paths import THREADS, address_of, leaves, place


def folder_rows(source: ImageFolder) -> Iterator[Row]:
    try:
        filesystem, root = place(source.path)
        path = f"{root}/metadata.jsonl"
        captioned = not filesystem.get_file_info(path).is_file
    except (OSError, pa.ArrowInvalid) as error:
        raise wrong(source, "path", f"cannot be read: {error}") from error
    if captioned:
        yield from _captioned_rows(source)
        return
    known = False
    for number, line in read_lines(filesystem, path):
        row, problem = parse_json(line)
        name, text = row.get("file_name"), row.get("text")
        if row and not known and "file_name" not in row:
            raise wrong(source, "path", f"has a metadata.jsonl without file_name; it has: {', '.join(row)}")
        known = known or bool(row)
        if not problem and not (isinstance(name, str) and name):
            problem = "has no file_name"
        elif not problem and leaves(name):
            problem = f"has a file_name that leaves the folder: {name!r}"
        ref = {"kind": "file", "path": address_of(source.path, posixpath.normpath(f"{root}/{name}"))}
        ref = {"error": f"metadata.jsonl line {number} {problem}"} if problem else ref
        yield row.get("id"), source.caption if is_blank(text) and not problem else text, ref


def _captioned_rows(source: ImageFolder) -> Iterator[Row]:
    """Images with a .txt beside each."""
    filesystem, files = find_files(source, (*IMAGE_SUFFIXES, ".txt"))
    names = set(files)

    def caption(image: str) -> Any:
        path = posixpath.splitext(image)[0] + ".txt"
        if path not in names:
            return None
        try:
            with filesystem.open_input_file(path) as file:
                return file.read(MAX_TEXT + 1)
        except OSError as error:
            return error  # no text: the row is set aside

    images = [file for file in files if file.lower().endswith(IMAGE_SUFFIXES)]
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(images), 256):
            chunk = images[start : start + 256]
            for image, text in zip(chunk, pool.map(caption, chunk), strict=True):
                ref = {"kind": "file", "path": address_of(source.path, image)}
                yield None, source.caption if is_blank(text) else text, ref
