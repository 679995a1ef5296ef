"""Where prompts, real images and preference pairs come from: files, folders, Parquet, webdatasets, the miniature world.

`iter_prompts`, `iter_references` and `iter_pairs` list a source as a stream; an image is listed as a *reference*, a small
dict that says where its bytes are, and `raypref.sources.fetching.fetch` reads the bytes of many references: so a listing
stays small, and the workers that need the pixels read them themselves. Paths are local or URIs of pyarrow.fs (s3://,
gs://; credentials come from the environment). References hold absolute paths, so every machine must see the same files.

A wrong source (no such path, no such column, nothing in it) is a ValueError. A wrong row is not: it comes out with an
empty prompt, or with {"error": ...} as its reference, for the caller to set aside.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from raypref.sources.files import MAX_TEXT, Row
from raypref.sources.folders import folder_rows
from raypref.sources.kinds import (
    FromPath,
    ImageFolder,
    ImageParquet,
    PairFolders,
    PairJsonl,
    PairWebDataset,
    PickAPic,
    PromptList,
    PromptsFile,
    Renderer,
    WebDataset,
    wrong,
)
from raypref.sources.pairs import folder_pairs, jsonl_pairs, pick_a_pic_pairs, tar_pairs
from raypref.sources.tables import image_parquet_rows, prompt_rows
from raypref.sources.tars import tar_rows

PromptSource = Annotated[PromptsFile | PromptList | Renderer, Field(discriminator="kind")]
ImageSource = Annotated[ImageFolder | ImageParquet | WebDataset | Renderer, Field(discriminator="kind")]
PairSource = Annotated[PickAPic | PairWebDataset | PairJsonl | PairFolders, Field(discriminator="kind")]
PAIR_KINDS = tuple(kind.model_fields["kind"].default for kind in (PickAPic, PairWebDataset, PairJsonl, PairFolders))


def iter_prompts(source: PromptsFile | PromptList | Renderer) -> Iterator[dict[str, str]]:
    """Rows {"id", "prompt"}, with "error" in rows to set aside. ValueError at once for a wrong source."""
    if isinstance(source, PromptList):
        return ({"id": f"{index:08d}", "prompt": prompt} for index, prompt in enumerate(source.prompts))
    rows = _renderer_rows(source) if isinstance(source, Renderer) else _listed(source, prompt_rows(source))
    return ({"id": id, "prompt": prompt} | {k: v for k, v in ref.items() if k == "error"} for id, prompt, ref in rows)


def iter_references(source: ImageFolder | ImageParquet | WebDataset | Renderer) -> Iterator[dict[str, Any]]:
    """Rows {"id", "prompt", "ref"}; "ref" is JSON-able, for `fetching.fetch`. ValueError at once for a wrong source.

    Ids are the source's own (webdataset: "<shard>/<key>"), else the row's index, eight digits. Own ids must be unique:
    they are remembered (some 200 bytes a row), the only thing here that grows beside the names of a folder's files.
    """
    readers = {"folder": folder_rows, "parquet": image_parquet_rows, "webdataset": tar_rows}
    rows = _renderer_rows(source) if isinstance(source, Renderer) else _listed(source, readers[source.kind](source))
    return ({"id": id, "prompt": prompt, "ref": ref} for id, prompt, ref in rows)


def iter_pairs(source: PickAPic | PairWebDataset | PairJsonl | PairFolders) -> Iterator[dict[str, Any]]:
    """Rows {"id", "prompt", "ref"}, ids and errors as `iter_references`. "ref" is {"images": [winner's reference, loser's],
    "label": probability that the winner is preferred}, or {"dropped": reason} for a sound row without a preference."""
    readers = {
        "pick_a_pic": pick_a_pic_pairs,
        "pair_webdataset": tar_pairs,
        "pair_jsonl": jsonl_pairs,
        "pair_folders": folder_pairs,
    }
    return ({"id": id, "prompt": text, "ref": ref} for id, text, ref in _listed(source, readers[source.kind](source)))


def held_out(id: str, share: float, seed: int) -> bool:
    """Whether `id` belongs to the held-out `share` (0..1); a hash, so the same for ever and without a list."""
    digest = hashlib.blake2b(f"{seed}:{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _listed(source: FromPath, rows: Iterator[Row]) -> Iterator[tuple[str, str, dict]]:
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
                    raise wrong(source, "path", f"has the id {id!r} twice, in rows {earlier + 1} and {index + 1}")
            prompt, problem = _text(caption)
            yield id, prompt, {"error": problem} if problem and "error" not in ref else ref

    listed = tidied()
    first = next(listed, None)
    if first is None:
        raise wrong(source, "path", "holds no rows; give a source with at least one")
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


def _renderer_rows(source: Renderer) -> Iterator[tuple[str, str, dict]]:
    from raypref.mini.renderer import caption, person_attributes  # the caption of `person`, without drawing it

    for index in range(source.start, source.start + source.count):
        who = {} if source.identity is None else {"identity": source.identity}
        ref = {"kind": "renderer", "seed": source.seed, "index": index} | who
        text = source.caption or caption(person_attributes(source.seed, index, source.identity))
        yield f"{index:08d}", text, ref
