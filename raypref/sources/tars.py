"""Rows of a webdataset: the samples of .tar shards, whose images are read later by offset and length."""

from __future__ import annotations

import io
import itertools
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from raypref.sources.files import IMAGE_SUFFIXES, MAX_TEXT, Row, find_files, is_blank, parse_json
from raypref.sources.kinds import FromPath, WebDataset, wrong
from raypref.sources.paths import address_of, leaves


def tar_rows(source: WebDataset) -> Iterator[Row]:
    return read_tars(source, _name, _sample)


def read_tars(
    source: FromPath,
    name: Callable[[str], str],
    sample: Callable[[str, str, dict[str, Any]], Iterator[Row]],
) -> Iterator[Row]:
    """Rows that `sample` makes of (id, address of the archive, values by name). `name`: what the suffix of a member (all
    after the first dot, in lower case) calls its value, "" to pass it over."""
    filesystem, paths = find_files(source, (".tar",))
    for path in paths:
        stem, address = PurePosixPath(path).stem, address_of(source.path, path)
        with filesystem.open_input_file(path) as raw, io.BufferedReader(raw, 1 << 18) as handle:
            try:
                tar = tarfile.open(fileobj=handle, mode="r:", encoding="utf-8", errors="replace")  # noqa: SIM115
            except tarfile.TarError as error:
                raise wrong(source, "path", f"holds {path}, which is not an uncompressed tar: {error}") from error
            for key, members in itertools.groupby(_members(tar, handle, name), key=lambda member: member[0]):
                yield from sample(f"{stem}/{key}", address, {called: value for _, called, value in members})


def _members(
    tar: tarfile.TarFile, handle: io.BufferedReader, name: Callable[[str], str]
) -> Iterator[tuple[str, str, Any]]:
    """(key, name, value): (offset, length) of an image, else the text; ("", "error", problem)."""
    while True:
        try:
            info = tar.next()
        except (tarfile.TarError, OSError) as error:
            yield "", "error", f"archive is damaged: {error}"
            return
        if info is None:
            break
        tar.members.clear()  # tarfile would keep every header
        folder, file = posixpath.split(info.name)
        key, _, suffix = file.partition(".")
        key, called = posixpath.join(folder, key), name(suffix.lower())
        if info.isdir() or not called:
            continue
        if leaves(info.name) or not info.isreg() or info.issparse():
            yield key, "error", f"archive member {info.name!r} leaves the archive or is not an ordinary file"
        elif info.name.lower().endswith(IMAGE_SUFFIXES):
            yield key, called, (info.offset_data, info.size)
        else:
            handle.seek(info.offset_data)
            yield key, called, handle.read(min(info.size, MAX_TEXT + 1))
    handle.seek(tar.offset)
    if handle.read(512).strip(b"\0"):  # tarfile takes a broken header for the end
        yield "", "error", f"archive is damaged: no member header at byte {tar.offset}"


def _name(suffix: str) -> str:
    return "image" if f".{suffix}" in IMAGE_SUFFIXES else suffix if suffix in ("txt", "caption", "json") else ""


def _sample(id: str, address: str, found: dict[str, Any]) -> Iterator[Row]:
    row = parse_json(found["json"])[0] if "json" in found else {}
    texts = (found.get("txt"), found.get("caption"), row.get("caption"), row.get("text"))
    text = next((text for text in texts if not is_blank(text)), None)
    if "error" in found:
        yield id, text, {"error": found["error"]}
    elif "image" in found:
        offset, length = found["image"]
        yield id, text, {"kind": "file", "path": address, "offset": offset, "length": length}
    elif text is not None:
        yield id, text, {"error": f"sample {id} has a caption but no image ({', '.join(IMAGE_SUFFIXES)})"}
