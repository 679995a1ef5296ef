"""Where prompts and real images come from: files, folders, Parquet, webdatasets, and the miniature world.

`iter_prompts` and `iter_references` list a source as a stream; an image is listed as a *reference*, a small dict that
says where its bytes are, and `fetch` reads the bytes of many references: so a listing stays small, and the workers that
need the pixels read them themselves. Paths are local or URIs of pyarrow.fs (s3://, gs://; credentials come from the
environment). References hold absolute paths, so every machine must see the same files.

A wrong source (no such path, no such column, nothing in it) is a ValueError. A wrong row is not: it comes out with an
empty prompt, or with {"error": ...} as its reference, for the caller to set aside.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs
from pydantic import BaseModel, ConfigDict, Field

from raypref.images import BadImage, encode

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_TEXT = 1 << 20  # bytes of one caption
MAX_BYTES = 1 << 28  # bytes of one image file
THREADS = 16  # of small reads, which on object storage wait rather than work

Row = tuple[Any, Any, dict]  # a row as found: (its own id or None, caption, reference)


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _FromPath(_Source):
    path: str = Field(min_length=1, description="local path or URI (s3://, gs://)")
    limit: int | None = Field(None, ge=1, description="use only the first rows; none: all of them")


class PromptsFile(_FromPath):
    """A file of prompts: .txt (one a line), .jsonl, .parquet, .csv, or .tsv (where quotes are ordinary characters)."""

    kind: Literal["prompts"] = Field("prompts", description="a file of prompts")
    column: str = Field("prompt", description="column (.jsonl: field) of the prompt; a column `id` is used if there")


class ImageFolder(_FromPath):
    """A folder of images with metadata.jsonl (file_name, text, optional id), else with a .txt beside each image."""

    kind: Literal["folder"] = Field("folder", description="a folder of images, searched recursively")
    caption: str | None = Field(None, description="caption of the images that have none")


class ImageParquet(_FromPath):
    """Parquet with encoded images; `path` may also be a folder or a glob."""

    kind: Literal["parquet"] = Field("parquet", description="Parquet files; a column `id` is used if there")
    image_column: str = Field("image", description="column of encoded images: binary, or a struct with `bytes`")
    caption_column: str = Field("caption", description="column of captions")


class WebDataset(_FromPath):
    """Uncompressed .tar shards, one or a glob; KEY.jpg (.png, ...) with KEY.txt, KEY.caption or KEY.json."""

    kind: Literal["webdataset"] = Field("webdataset", description=".tar shards")


class Renderer(_Source):
    """Drawn people of the miniature world, with captions."""

    kind: Literal["renderer"] = Field("renderer", description="the miniature world")
    seed: int = Field(ge=0, description="which world")
    count: int = Field(ge=1, description="how many people")
    start: int = Field(0, ge=0, description="index of the first one")


PromptSource = Annotated[PromptsFile | Renderer, Field(discriminator="kind")]
ImageSource = Annotated[ImageFolder | ImageParquet | WebDataset | Renderer, Field(discriminator="kind")]


def iter_prompts(source: PromptsFile | Renderer) -> Iterator[dict[str, str]]:
    """Rows {"id", "prompt"}, with "error" in rows to set aside. ValueError at once for a wrong source."""
    rows = _renderer_rows(source) if isinstance(source, Renderer) else _listed(source, _prompt_rows(source))
    return ({"id": id, "prompt": prompt} | {k: v for k, v in ref.items() if k == "error"} for id, prompt, ref in rows)


def iter_references(source: ImageFolder | ImageParquet | WebDataset | Renderer) -> Iterator[dict[str, Any]]:
    """Rows {"id", "prompt", "ref"}; "ref" is JSON-able, for `fetch`. ValueError at once for a wrong source.

    Ids are the source's own (webdataset: "<shard>/<key>"), else the row's index, eight digits. Own ids must be unique:
    they are remembered (some 200 bytes a row), the only thing here that grows beside the names of a folder's files.
    """
    readers = {"folder": _folder_rows, "parquet": _image_parquet_rows, "webdataset": _tar_rows}
    rows = _renderer_rows(source) if isinstance(source, Renderer) else _listed(source, readers[source.kind](source))
    return ({"id": id, "prompt": prompt, "ref": ref} for id, prompt, ref in rows)


def held_out(id: str, share: float, seed: int) -> bool:
    """Whether `id` belongs to the held-out `share` (0..1); a hash, so the same for ever and without a list."""
    digest = hashlib.blake2b(f"{seed}:{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


# ---- paths


@lru_cache(maxsize=32)
def _filesystem(scheme: str, netloc: str, query: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI, and what its inner paths start with ("bucket" for s3://bucket)."""
    if ":" in netloc.rpartition("@")[0]:  # references are stored with the data, and would hold the secret
        raise ValueError("credentials are not taken from a URI; put them in the environment")
    filesystem, base = pafs.FileSystem.from_uri(urlunsplit((scheme, netloc, "/", query, "")))
    return filesystem, base.rstrip("/")


def _place(path: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in path:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    scheme, netloc, rest, query, _ = urlsplit(path, allow_fragments=False)
    filesystem, base = _filesystem(scheme, netloc, query)
    return filesystem, (base + unquote(rest)).rstrip("/")


def _address(path: str, inner: str) -> str:
    """What `_place` turns into `inner`, on the file system of `path`."""
    if "://" not in path:
        return inner
    scheme, netloc, _, query, _ = urlsplit(path, allow_fragments=False)
    base = _filesystem(scheme, netloc, query)[1]
    return urlunsplit((scheme, netloc, quote(inner.removeprefix(base)), query, ""))


def _leaves(name: str) -> bool:
    return posixpath.isabs(name) or posixpath.normpath(name).split("/")[0] == ".."


def _files(source: _FromPath, suffixes: tuple[str, ...]) -> tuple[pafs.FileSystem, list[str]]:
    """The file at source.path, or those of the folder or glob with one of `suffixes`; inner paths, sorted."""
    try:
        filesystem, path = _place(source.path)
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.File:
            return filesystem, [path]
        root, pattern, deep = path, "", True
        if kind == pafs.FileType.NotFound:
            parts = path.split("/")
            wild = [i for i, part in enumerate(parts) if any(c in part for c in "*?[")]
            if not wild:
                raise _wrong(source, "path", "does not exist; check the spelling, and that this machine can see it")
            root, pattern, deep = "/".join(parts[: wild[0]]) or "/", "/" + path.lstrip("/"), wild[0] < len(parts) - 1
        found = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=deep))
    except (OSError, pa.ArrowInvalid) as error:
        raise _wrong(source, "path", f"cannot be read: {error}") from error
    files = [info.path for info in found if info.is_file and info.path.lower().endswith(suffixes)]
    if pattern:
        files = [file for file in files if PurePosixPath("/" + file.lstrip("/")).match(pattern)]
    else:  # .ipynb_checkpoints and the ._photo.jpg of macOS are not data
        files = [file for file in files if not any(p.startswith(".") for p in file[len(root) :].split("/"))]
    if not files:
        raise _wrong(source, "path", f"holds no file that ends in {', '.join(suffixes)}")
    return filesystem, sorted(files)


# ---- rows


def _wrong(source: _Source, field: str, problem: str) -> ValueError:
    return ValueError(f"{source.kind} source: {field} {getattr(source, field)!r} {problem}")


def _need(source: _Source, field: str, names: Iterable[str]) -> None:
    if getattr(source, field) not in names:
        raise _wrong(source, field, f"is not in {source.path}; set {field} to one of: {', '.join(names)}")


def _listed(source: _FromPath, rows: Iterator[Row]) -> Iterator[tuple[str, str, dict]]:
    """Applies the limit, tidies captions, gives and checks ids. Reads the first row at once, to fail early."""

    def tidied() -> Iterator[tuple[str, str, dict]]:
        seen: dict[str, int] = {}
        unnamed = None  # rows before the first with its own id, which need not be remembered: their ids are 0, 1, ...
        for index, (own, caption, ref) in enumerate(itertools.islice(rows, source.limit)):
            id = f"{index:08d}" if own in (None, "") else str(own)
            if unnamed is None and id != f"{index:08d}":
                unnamed = index
            if unnamed is not None:
                taken = id.isdecimal() and len(id) == 8 and int(id) < unnamed
                earlier = int(id) if taken else seen.setdefault(id, index)
                if earlier != index:
                    raise _wrong(source, "path", f"has the id {id!r} twice, in rows {earlier + 1} and {index + 1}")
            prompt, problem = _text(caption)
            yield id, prompt, {"error": problem} if problem and "error" not in ref else ref

    listed = tidied()
    first = next(listed, None)
    if first is None:
        raise _wrong(source, "path", "holds no rows; give a source with at least one")
    return itertools.chain([first], listed)


def _text(value: Any) -> tuple[str, str]:
    """A caption as found -> (text, what is wrong with it)."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError:
            return "", "caption is not UTF-8 text"
    if not isinstance(value, str):
        return "", "" if value is None else f"caption is of type {type(value).__name__}, not text"
    return ("", f"caption is longer than {MAX_TEXT} bytes") if len(value) > MAX_TEXT else (value.strip(), "")


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str | bytes) and not value.strip())


def _lines(filesystem: pafs.FileSystem, path: str) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1. Bytes: one bad line must not end the stream."""
    with filesystem.open_input_stream(path, compression=None) as raw, io.BufferedReader(raw, 1 << 20) as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(b"\xef\xbb\xbf").strip()
            if line:
                yield number, line


def _parse(data: bytes) -> tuple[dict, str]:
    """JSON object -> (it, ""), or ({}, what is wrong)."""
    try:
        row = json.loads(data)
        if not isinstance(row, dict):
            return {}, "is not a JSON object"
        "".join(value for value in row.values() if isinstance(value, str)).encode()  # refuses half surrogate pairs
        return row, ""
    except (ValueError, RecursionError) as error:
        return {}, f"is not valid JSON: {error}"


def _renderer_rows(source: Renderer) -> Iterator[tuple[str, str, dict]]:
    from raypref.mini.renderer import caption, sample_attributes  # the caption of `person`, without drawing it

    for index in range(source.start, source.start + source.count):
        ref = {"kind": "renderer", "seed": source.seed, "index": index}
        yield f"{index:08d}", caption(sample_attributes(source.seed, index)), ref


def _prompt_rows(source: PromptsFile) -> Iterator[Row]:
    readers = {".txt": _txt_rows, ".jsonl": _jsonl_rows, ".parquet": None, ".csv": _csv_rows, ".tsv": _csv_rows}
    suffix = PurePosixPath(urlsplit(source.path).path if "://" in source.path else source.path).suffix.lower()
    if suffix not in readers:
        raise _wrong(source, "path", f"is of an unknown kind; give a file that ends in {', '.join(readers)}")
    filesystem, paths = _files(source, (suffix,))
    if suffix == ".parquet":
        return _parquet_rows(source, filesystem, paths, "column")
    return itertools.chain.from_iterable(readers[suffix](source, filesystem, path) for path in paths)


def _txt_rows(source: PromptsFile, filesystem: pafs.FileSystem, path: str) -> Iterator[Row]:
    return ((None, line, {}) for _, line in _lines(filesystem, path))


def _jsonl_rows(source: PromptsFile, filesystem: pafs.FileSystem, path: str) -> Iterator[Row]:
    known = False
    for number, line in _lines(filesystem, path):
        row, problem = _parse(line)
        if row and not known:  # the first row tells a wrong column from a wrong row
            _need(source, "column", row)
            known = True
        yield row.get("id"), row.get(source.column), {"error": f"line {number} {problem}"} if problem else {}


def _csv_rows(source: PromptsFile, filesystem: pafs.FileSystem, path: str) -> Iterator[Row]:
    tabs = path.lower().endswith(".tsv")
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    with filesystem.open_input_stream(path, compression=None) as raw:
        reader = csv.DictReader(io.TextIOWrapper(io.BufferedReader(raw), "utf-8-sig", newline=""), **style)
        try:
            _need(source, "column", reader.fieldnames or [])
            for row in reader:
                yield row.get("id"), row[source.column], {}
        except (UnicodeDecodeError, csv.Error) as error:
            raise _wrong(source, "path", f"cannot be read after line {reader.line_num}: {error}") from error


def _folder_rows(source: ImageFolder) -> Iterator[Row]:
    try:
        filesystem, root = _place(source.path)
        path = f"{root}/metadata.jsonl"
        captioned = not filesystem.get_file_info(path).is_file
    except (OSError, pa.ArrowInvalid) as error:
        raise _wrong(source, "path", f"cannot be read: {error}") from error
    if captioned:
        yield from _captioned_rows(source)
        return
    known = False
    for number, line in _lines(filesystem, path):
        row, problem = _parse(line)
        name, text = row.get("file_name"), row.get("text")
        if row and not known and "file_name" not in row:
            raise _wrong(source, "path", f"has a metadata.jsonl without file_name; it has: {', '.join(row)}")
        known = known or bool(row)
        if not problem and not (isinstance(name, str) and name):
            problem = "has no file_name"
        elif not problem and _leaves(name):
            problem = f"has a file_name that leaves the folder: {name!r}"
        ref = {"kind": "file", "path": _address(source.path, posixpath.normpath(f"{root}/{name}"))}
        ref = {"error": f"metadata.jsonl line {number} {problem}"} if problem else ref
        yield row.get("id"), source.caption if _blank(text) and not problem else text, ref


def _captioned_rows(source: ImageFolder) -> Iterator[Row]:
    """Images with a .txt beside each."""
    filesystem, files = _files(source, (*IMAGE_SUFFIXES, ".txt"))
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
                ref = {"kind": "file", "path": _address(source.path, image)}
                yield None, source.caption if _blank(text) else text, ref


def _image_parquet_rows(source: ImageParquet) -> Iterator[Row]:
    return _parquet_rows(source, *_files(source, (".parquet",)), "caption_column", "image_column")


def _parquet_rows(
    source: Any, filesystem: pafs.FileSystem, paths: Sequence[str], text_field: str, image_field: str = ""
) -> Iterator[Row]:
    """Reads the columns of captions and ids only; `row` of a reference counts within its row group."""
    text, image = getattr(source, text_field), getattr(source, image_field, None)
    for path in paths:
        address = _address(source.path, path)
        with filesystem.open_input_file(path) as handle:
            try:
                file = pq.ParquetFile(handle)
            except (pa.ArrowException, OSError) as error:
                raise _wrong(source, "path", f"holds {path}, which is not readable Parquet: {error}") from error
            schema = file.schema_arrow
            _need(source, text_field, schema.names)
            if image:
                _need(source, image_field, schema.names)
                if not _holds_bytes(schema.field(image).type):
                    raise _wrong(source, image_field, f"is {schema.field(image).type}; give a column of encoded bytes")
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


def _tar_rows(source: WebDataset) -> Iterator[Row]:
    filesystem, paths = _files(source, (".tar",))
    for path in paths:
        stem, address = PurePosixPath(path).stem, _address(source.path, path)
        with filesystem.open_input_file(path) as raw, io.BufferedReader(raw, 1 << 18) as handle:
            try:
                tar = tarfile.open(fileobj=handle, mode="r:", encoding="utf-8", errors="replace")  # noqa: SIM115
            except tarfile.TarError as error:
                raise _wrong(source, "path", f"holds {path}, which is not an uncompressed tar: {error}") from error
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
        if _leaves(info.name) or not info.isreg() or info.issparse():
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
    row = _parse(found["json"])[0] if "json" in found else {}
    texts = (found.get("txt"), found.get("caption"), row.get("caption"), row.get("text"))
    text = next((text for text in texts if not _blank(text)), None)
    if "error" in found:
        yield id, text, {"error": found["error"]}
    elif "image" in found:
        offset, length = found["image"]
        yield id, text, {"kind": "file", "path": address, "offset": offset, "length": length}
    elif text is not None:
        yield id, text, {"error": f"sample {id} has a caption but no image ({', '.join(IMAGE_SUFFIXES)})"}


# ---- bytes


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
    filesystem, inner = _place(path)
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
    filesystem, inner = _place(path)

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
                value = batch.column(0)[row - start].as_py()
                value = value.get("bytes") if isinstance(value, dict) else value
                if value is None:
                    value = BadImage("missing", f"image of row {row} of row group {group} is null in {column!r}")
                yield from ((position, value) for position in rows.pop(row))
        start += len(batch)
        if not rows:
            return
    raise IndexError(f"row group {group} has only {start} rows")


def _read_renderer(path: None, wanted: dict[int, dict]) -> Iterator[tuple[int, Any]]:
    from raypref.mini.renderer import person

    for position, ref in wanted.items():
        yield position, encode(person(ref["seed"], ref["index"])[1], "png")


def _read_nothing(path: Any, wanted: dict[int, dict]) -> Iterator[tuple[int, Any]]:
    for position, ref in wanted.items():
        yield position, BadImage("refused", ref.get("error") or f"not a reference of a known kind: {ref}")


_READERS = {"file": _read_files, "parquet": _read_parquet, "renderer": _read_renderer}
