"""The run directory: shards, manifests and fingerprints, on a local disk or any file system that pyarrow.fs knows.

An artifact is a directory of Parquet shards. A shard is written under a temporary name and renamed (object stores: one
PUT), then its sidecar `NNNNN.json` says that it is complete, what it was made from and what was set aside. The manifest
comes last; its existence means that the artifact is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

SCHEMA_VERSION = 2

INDEX = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("ref", pa.string())])
POOL = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("images", pa.list_(pa.binary())),  # encoded files, one an image
        ("latents", pa.list_(pa.binary())),  # float16 C x H x W, scaled as the U-Net sees them
        ("latent_shape", pa.list_(pa.int32(), 3)),
        ("sizes", pa.list_(pa.list_(pa.int32(), 6))),  # see models.predict
        ("seeds", pa.list_(pa.uint64())),
        ("strengths", pa.list_(pa.float32())),
    ]
)
SCORES = pa.schema([("prompt_id", pa.string()), ("values", pa.list_(pa.list_(pa.float32())))])  # images x width
PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("loser_prompt", pa.string()),  # the same, except in subject-driven pairs
        ("winner", pa.binary()),
        ("loser", pa.binary()),
        ("winner_latent", pa.binary()),
        ("loser_latent", pa.binary()),
        ("latent_shape", pa.list_(pa.int32(), 3)),
        ("winner_size", pa.list_(pa.int32(), 6)),
        ("loser_size", pa.list_(pa.int32(), 6)),
        ("winner_source", pa.string()),
        ("loser_source", pa.string()),
        ("winner_score", pa.float32()),
        ("loser_score", pa.float32()),
        ("label", pa.float32()),  # probability that the winner is preferred
    ]
)
REJECTED = pa.schema([("id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True)
class Store:
    """A directory on a pyarrow file system; every path given to its methods is relative to it."""

    uri: str

    def _open(self) -> tuple[pafs.FileSystem, str]:
        if "://" in self.uri:
            filesystem, root = pafs.FileSystem.from_uri(self.uri)
            return filesystem, root
        return pafs.LocalFileSystem(), os.path.abspath(self.uri)

    def join(self, path: str) -> str:
        """URI of what is at `path`; a query, such as an endpoint of s3, stays at the end."""
        uri, mark, query = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return f"{uri.rstrip('/')}/{path}{mark}{query}"

    @property
    def local(self) -> Path | None:
        """The directory, when it is on this machine's file system."""
        filesystem, root = self._open()
        return Path(root) if isinstance(filesystem, pafs.LocalFileSystem) else None

    def write(self, path: str, data: bytes) -> None:
        """Write a whole file atomically: readers see the old content or the new, never a part.

        Raises OSError that names the file and says what to do when there is no space or no permission.
        """
        filesystem, root = self._open()
        target = f"{root}/{path}"
        local = isinstance(filesystem, pafs.LocalFileSystem)
        # on object storage a PUT is atomic
        temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp" if local else target
        try:
            filesystem.create_dir(target.rpartition("/")[0], recursive=True)
            if not local:
                with filesystem.open_output_stream(target) as stream:
                    stream.write(data)
                return
            for attempt in range(3):
                with open(temporary, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                try:
                    os.replace(temporary, target)
                    break
                except FileNotFoundError:  # another run that shares the folder took it for a leftover (`finalize`)
                    if attempt == 2:
                        raise
        except OSError as error:
            if local:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            why = error.strerror or str(error)
            raise OSError(
                error.errno, f"cannot write ({why}); free space or choose another --run-dir", target
            ) from error

    def read(self, path: str) -> bytes:
        filesystem, root = self._open()
        with filesystem.open_input_file(f"{root}/{path}") as stream:
            return stream.read()

    def exists(self, path: str) -> bool:
        filesystem, root = self._open()
        return filesystem.get_file_info(f"{root}/{path}").type != pafs.FileType.NotFound

    def names(self, path: str = "") -> list[str]:
        """Names of the entries of a directory, sorted; empty when it does not exist."""
        filesystem, root = self._open()
        selector = pafs.FileSelector(f"{root}/{path}".rstrip("/"), allow_not_found=True)
        return sorted(info.base_name for info in filesystem.get_file_info(selector))

    def remove(self, path: str) -> None:
        """Remove a file if it is there."""
        filesystem, root = self._open()
        if self.exists(path):
            filesystem.delete_file(f"{root}/{path}")

    def delete(self, path: str) -> None:
        """Remove a directory and what is in it."""
        filesystem, root = self._open()
        filesystem.delete_dir(f"{root}/{path}")

    def read_json(self, path: str) -> Any:
        try:
            return json.loads(self.read(path))
        except ValueError as error:
            raise ValueError(f"{self.uri}/{path}: not valid JSON ({error}); delete it to have it made again") from None

    def write_json(self, path: str, value: Any) -> None:
        self.write(path, (json.dumps(value, indent=1, sort_keys=False) + "\n").encode())

    def read_table(self, path: str, columns: list[str] | None = None) -> pa.Table:
        filesystem, root = self._open()
        return pq.read_table(f"{root}/{path}", columns=columns, filesystem=filesystem)

    def open_parquet(self, path: str) -> pq.ParquetFile:
        filesystem, root = self._open()
        return pq.ParquetFile(f"{root}/{path}", filesystem=filesystem)

    def push(self, folder: str | Path, path: str) -> None:
        """Copy the files of a local folder below `path`, each one whole or not at all."""
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                self.write(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())

    def pull(self, path: str, folder: str | Path) -> None:
        """Copy everything below `path` into a local folder."""
        filesystem, root = self._open()
        pafs.copy_files(f"{root}/{path}", str(folder), source_filesystem=filesystem)


def digest(value: Any) -> str:
    """Short hash of anything that JSON can say; equal values have equal hashes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def shard_name(index: int) -> str:
    return f"{index:05d}"


def parquet_bytes(table: pa.Table, row_group_size: int = 64) -> bytes:
    """Deterministic: equal tables give equal bytes (images and latents are compressed or noise already)."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_size)
    return sink.getvalue()


def write_shard(
    store: Store,
    path: str,
    index: int,
    table: pa.Table,
    fingerprint: str,
    rejected: Iterable[dict] = (),
    statistics: dict | None = None,
) -> dict:
    """Write shard `index` of the artifact at `path`, its sidecar last; returns the sidecar's content.

    `rejected`: {id, reason, detail} of what was set aside. `statistics`: counts and histograms that add up over shards.
    """
    data = parquet_bytes(table)
    name = f"{shard_name(index)}.parquet"
    store.write(f"{path}/{name}", data)
    summary = {
        "shard": index,
        "file": name,
        "rows": table.num_rows,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "fingerprint": fingerprint,
        "rejected": list(rejected),
        "statistics": statistics or {},
    }
    store.write_json(f"{path}/{shard_name(index)}.json", summary)
    return summary


def finished_shards(store: Store, path: str, fingerprint: str) -> set[int]:
    """Indices of the shards that are complete and were made from the same inputs.

    Raises ValueError when a shard was made from other inputs, which content-addressed names exclude unless files were
    moved by hand.
    """
    names = store.names(path)
    present = {int(n[:-5]) for n in names if n.endswith(".json") and n[:-5].isdigit()}
    present &= {int(n[:-8]) for n in names if n.endswith(".parquet") and n[:-8].isdigit()}
    if present:
        first = min(present)
        found = store.read_json(f"{path}/{shard_name(first)}.json").get("fingerprint")
        if found != fingerprint:
            raise ValueError(
                f"{store.uri}/{path}: its shards were made from other inputs (fingerprint {found}, expected "
                f"{fingerprint}); delete that directory or use another --run-dir"
            )
    return present


def finalize(
    store: Store, path: str, kind: str, fields: dict, shards: int, check: Callable[[int, int], None] | None = None
) -> dict:
    """Write the manifest of a complete artifact from its shards' sidecars (and `rejected.parquet` before it).

    `check` gets the numbers of rejected and of good rows and may raise before the artifact counts as complete.
    """
    files, rejected, statistics, rows = [], [], {}, 0
    for index in range(shards):
        summary = store.read_json(f"{path}/{shard_name(index)}.json")
        files.append({key: summary[key] for key in ("file", "rows", "size", "sha256")})
        if "shapes" in summary["statistics"]:
            files[-1]["shapes"] = summary["statistics"]["shapes"]
        rejected += summary["rejected"]
        statistics = add_statistics(statistics, summary["statistics"])
        rows += summary["rows"]
    if rejected:
        store.write(f"{path}/rejected.parquet", parquet_bytes(pa.Table.from_pylist(rejected, REJECTED)))
    if check is not None:
        check(len(rejected), rows)
    reasons: dict[str, int] = {}
    for row in rejected:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    for name in store.names(path):
        if name.endswith(".tmp"):  # of a writer that was killed; one that lives writes its file again
            store.remove(f"{path}/{name}")
    return write_manifest(
        store, path, kind, fields, rows, statistics, files, {"count": len(rejected), "reasons": reasons}
    )


def write_manifest(
    store: Store,
    path: str,
    kind: str,
    fields: dict,
    rows: int,
    statistics: dict,
    files: Sequence[dict] = (),
    rejected: dict | None = None,
) -> dict:
    """Write the file that says that an artifact is complete, what it was made from and what is in it; its content."""
    manifest = {
        "kind": kind,
        "schema_version": SCHEMA_VERSION,
        "fingerprint": digest(fields),
        "fields": fields,
        "rows": rows,
        "files": list(files),
        "rejected": rejected or {"count": 0, "reasons": {}},
        "statistics": statistics,
    }
    store.write_json(f"{path}/manifest.json", manifest)
    return manifest


def add_statistics(a: Any, b: Any) -> Any:
    """Sum of two statistics: numbers and lists of numbers add, mappings merge; `edges` of histograms and an `example` stay."""
    if not a:
        return a if b is None else b
    if b is None:
        return a
    if isinstance(a, dict):
        merged = {
            key: value if key in ("edges", "example") else add_statistics(value, b.get(key)) for key, value in a.items()
        }
        return merged | {key: value for key, value in b.items() if key not in a}
    return [x + y for x, y in zip(a, b, strict=True)] if isinstance(a, list) else a + b


def read_manifest(store: Store, path: str, fields: dict | None = None) -> dict | None:
    """The manifest at `path`, or None when the artifact is not complete.

    Raises ValueError naming the field that differs when it was made from other inputs than `fields`.
    """
    if not store.exists(f"{path}/manifest.json"):
        return None
    manifest = store.read_json(f"{path}/manifest.json")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{store.uri}/{path}/manifest.json: schema_version {manifest.get('schema_version')!r}, this "
            f"version reads {SCHEMA_VERSION}; use another --run-dir"
        )
    if fields is not None and manifest["fingerprint"] != digest(fields):
        differing = "; ".join(differences(manifest.get("fields", {}), json.loads(json.dumps(fields))))
        raise ValueError(f"{store.uri}/{path} was made from other inputs: {differing}; use another --run-dir")
    return manifest


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """'field: old -> new' for every field in which two JSON-like values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield f"{path}: {old!r} -> {new!r}"


def iter_rows(store: Store, path: str, columns: list[str] | None = None) -> Iterator[dict]:
    """Rows of a complete artifact in order, a row group at a time."""
    for file in read_manifest(store, path)["files"]:
        for batch in store.open_parquet(f"{path}/{file['file']}").iter_batches(64, columns=columns):
            yield from batch.to_pylist()
