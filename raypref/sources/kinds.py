"""The kinds of sources, as the configuration gives them, and the words for a wrong one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FromPath(Source):
    path: str = Field(min_length=1, description="local path or URI (s3://, gs://)")
    limit: int | None = Field(None, ge=1, description="use only the first rows; none: all of them")


class PromptsFile(FromPath):
    """A file of prompts: .txt (one a line), .jsonl, .parquet, .csv, or .tsv (where quotes are ordinary characters)."""

    kind: Literal["prompts"] = Field("prompts", description="a file of prompts")
    column: str = Field("prompt", description="column (.jsonl: field) of the prompt; a column `id` is used if there")


class PromptList(Source):
    """Prompts written down in the configuration itself."""

    kind: Literal["list"] = Field("list", description="prompts in the configuration")
    prompts: tuple[str, ...] = Field(min_length=1, description="the prompts")


class ImageFolder(FromPath):
    """A folder of images with metadata.jsonl (file_name, text, optional id), else with a .txt beside each image."""

    kind: Literal["folder"] = Field("folder", description="a folder of images, searched recursively")
    caption: str | None = Field(None, description="caption of the images that have none")


class ImageParquet(FromPath):
    """Parquet with encoded images; `path` may also be a folder or a glob."""

    kind: Literal["parquet"] = Field("parquet", description="Parquet files; a column `id` is used if there")
    image_column: str = Field("image", description="column of encoded images: binary, or a struct with `bytes`")
    caption_column: str = Field("caption", description="column of captions")


class WebDataset(FromPath):
    """Uncompressed .tar shards, one or a glob; KEY.jpg (.png, ...) with KEY.txt, KEY.caption or KEY.json."""

    kind: Literal["webdataset"] = Field("webdataset", description=".tar shards")


class Renderer(Source):
    """Drawn people of the miniature world, with captions."""

    kind: Literal["renderer"] = Field("renderer", description="the miniature world")
    seed: int = Field(ge=0, description="which world")
    count: int = Field(ge=1, description="how many people")
    start: int = Field(0, ge=0, description="index of the first one")
    identity: int | None = Field(None, ge=0, description="every image shows this person, in other poses and places")
    caption: str | None = Field(None, description="of every image; none: what the image shows")


class Judged(FromPath):
    """Pairs that people have judged, with the label of the first image: 1 preferred, 0 not, 0.5 no difference."""

    ties: Literal["drop", "keep"] = Field(
        "drop",
        description="pairs with the label 0.5: leave them out, or keep the label, which only preference losses read",
    )


class PickAPic(Judged):
    """Pairs in the columns of Pick-a-Pic (arXiv 2305.01569): jpg_0, jpg_1, caption, label_0; label_1, has_label if there.

    Parquet files or a folder of `datasets` (save_to_disk). Of a folder with several splits name one: data/train-*.parquet
    """

    kind: Literal["pick_a_pic"] = Field("pick_a_pic", description="Parquet or Arrow files, a folder or a glob")


class PairWebDataset(Judged):
    """Uncompressed .tar shards of pairs: KEY.winner.jpg and KEY.loser.jpg, or KEY.0.jpg and KEY.1.jpg (also jpg_0, jpg_1)
    with the label_0 in KEY.label_0.txt or KEY.json; caption in KEY.txt, .caption, .original_prompt.txt, .prompt.txt or .json."""

    kind: Literal["pair_webdataset"] = Field("pair_webdataset", description=".tar shards of pairs")


class PairJsonl(FromPath):
    """A metadata.jsonl with winner and loser (file names beside it) and text (or prompt, caption) a line, optional id."""

    kind: Literal["pair_jsonl"] = Field("pair_jsonl", description="metadata.jsonl of pairs, or the folder it is in")


class PairFolders(FromPath):
    """Two folders with equal file names; captions in a .txt beside each winner or the winners' metadata.jsonl, as in `folder`."""

    kind: Literal["pair_folders"] = Field("pair_folders", description="`path` holds the winners")
    losers: str = Field(min_length=1, description="folder of the losers")
    caption: str | None = Field(None, description="caption of the pairs that have none")


def wrong(source: Source, field: str, problem: str) -> ValueError:
    return ValueError(f"{source.kind} source: {field} {getattr(source, field)!r} {problem}")


def need(source: Source, field: str, names: Iterable[str]) -> None:
    if getattr(source, field) not in names:
        raise wrong(source, field, f"is not in {source.path}; set {field} to one of: {', '.join(names)}")
