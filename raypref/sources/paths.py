"""Paths: local, or URIs of pyarrow.fs (s3://, gs://; credentials come from the environment)."""

from __future__ import annotations

import os
import posixpath
from functools import lru_cache
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pyarrow import fs as pafs

THREADS = 16  # of small reads, which on object storage wait rather than work


@lru_cache(maxsize=32)
def _filesystem(scheme: str, netloc: str, query: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI, and what its inner paths start with ("bucket" for s3://bucket)."""
    if ":" in netloc.rpartition("@")[0]:  # references are stored with the data, and would hold the secret
        raise ValueError("credentials are not taken from a URI; put them in the environment")
    filesystem, base = pafs.FileSystem.from_uri(urlunsplit((scheme, netloc, "/", query, "")))
    return filesystem, base.rstrip("/")


def place(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path, and the path within it (the inner path)."""
    if "://" not in path:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    scheme, netloc, rest, query, _ = urlsplit(path, allow_fragments=False)
    filesystem, base = _filesystem(scheme, netloc, query)
    return filesystem, (base + unquote(rest)).rstrip("/")


def address_of(path: str, inner: str) -> str:
    """What `place` turns into `inner`, on the file system of `path`."""
    if "://" not in path:
        return inner
    scheme, netloc, _, query, _ = urlsplit(path, allow_fragments=False)
    base = _filesystem(scheme, netloc, query)[1]
    return urlunsplit((scheme, netloc, quote(inner.removeprefix(base)), query, ""))


def leaves(name: str) -> bool:
    """Whether a file name found in data would lead out of the folder or archive it was found in."""
    return posixpath.isabs(name) or posixpath.normpath(name).split("/")[0] == ".."
