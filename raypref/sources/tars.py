"""Rows of a webdataset: the samples of .tar shards, whose images are read later by offset and length."""

from __future__ import annotations

import io
import itertools
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from raypref.sources.files import IMAGE_SUFFIXES, MAX_TEXT, Row, find_files, is_blank, parse_json
from raypref.sources.kinds import WebDataset, wrong
from raypref.sources.paths import address_of, leaves


def tar_rows(source: WebDataset) -> Iterator[Row]:
    filesystem, paths = find_files(source, (".tar",))
    for path in paths:
        stem, address = PurePosixPath(path).stem, address_of(source.path, path)
        with filesystem.open_input_file(path) as raw, io.BufferedReader(raw, 1 << 18) as handle:
            try:
                tar = tarfile.open(fileobj=handle, mode="r:", encoding="utf-8", errors="replace")  # noqa: SIM115
            except tarfile.TarError as error:
                raise wrong(source, "path", f"holds {path}, which is not an uncompressed tar: {error}") from error
            for key, members in itertools.groupby(_members(tar, handle), key=lambda member: member[0]):
                yield from _sample(f"{stem}/{key}", address, {suffix: value for _, suffix, value in members})


def _members(tar: tarfile.TarFile, handle: io.BufferedReader) -> Iterator[tuple[str, str, Any]]:
    """(key, suffix, value): text of .txt, .caption and .json, (offset, length) of an image; ("", "error", problem)."""
    while True:
        try:
            info = tar.next()
        except (tarfile.TarError, OSError) as error:
            yield "", "error", f"archive is damaged: {error}"
            return
        if info is None:
            break
        tar.members.clear()  # tarfile would keep every header
        folder, name = posixpath.split(info.name)
        key, _, suffix = name.partition(".")
        key, suffix = posixpath.join(folder, key), suffix.lower()
        if info.isdir() or not (f".{suffix}" in IMAGE_SUFFIXES or suffix in ("txt", "caption", "json")):
            continue
        if leaves(info.name) or not info.isreg() or info.issparse():
            yield key, "error", f"archive member {info.name!r} leaves the archive or is not an ordinary file"
        elif f".{suffix}" in IMAGE_SUFFIXES:
            yield key, "image", (info.offset_data, info.size)
        else:
            handle.seek(info.offset_data)
            yield key, suffix, handle.read(min(info.size, MAX_TEXT + 1))
    handle.seek(tar.offset)
    if handle.read(512).strip(b"\0"):  # tarfile takes a broken header for the end
        yield "", "error", f"archive is damaged: no member header at byte {tar.offset}"


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
