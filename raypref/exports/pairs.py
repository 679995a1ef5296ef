"""A stage's pairs as a data set in the columns of Pick-a-Pic (arXiv 2305.01569), for `datasets.load_dataset(folder)`."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypref.artifacts import read_manifest
from raypref.exports import cards
from raypref.seeds import seed_of

if TYPE_CHECKING:
    from raypref.exports import Options
    from raypref.exports.finished import Finished

SCHEMA = pa.schema(
    [
        ("are_different", pa.bool_()),
        ("best_image_uid", pa.string()),  # null where neither image is preferred
        ("caption", pa.string()),
        ("created_at", pa.timestamp("ns")),  # null
        ("has_label", pa.bool_()),
        ("image_0_uid", pa.string()),  # of the image's bytes: the same image has one name in every pair
        ("image_0_url", pa.string()),  # null
        ("image_1_uid", pa.string()),
        ("image_1_url", pa.string()),  # null
        ("jpg_0", pa.binary()),  # an encoded file, whatever its format
        ("jpg_1", pa.binary()),
        ("label_0", pa.float64()),  # probability that image 0 is preferred
        ("label_1", pa.float64()),
        ("model_0", pa.string()),
        ("model_1", pa.string()),
        ("ranking_id", pa.int64()),
        ("user_id", pa.int64()),  # null
        ("num_example_per_prompt", pa.int64()),  # pairs of the caption within its shard
    ]
)
COLUMNS = [
    "pair_id",
    "loser_prompt",
    "winner",
    "loser",
    "winner_source",
    "loser_source",
    "winner_score",
    "loser_score",
    "label",
]
ROWS, FILE_BYTES = 64, 500_000_000  # of a row group and, about, of a file


@dataclass
class Told:
    """What the card says of the pairs, gathered while they pass: four bytes a pair."""

    rows: int = 0
    soft: int = 0  # labels that are neither 0 nor 1
    first: int = 0  # pairs whose preferred image is image 0
    sources: Counter = field(default_factory=Counter)  # (winner's, loser's)
    gaps: array = field(default_factory=lambda: array("f"))  # score of the winner less the loser's


def write(finished: Finished, folder: Path, options: Options) -> None:
    """data/train-NNNNN.parquet and the data set's card. Raises ValueError for a stage whose pairs have no losers."""
    if finished.stage.loser is None:
        raise ValueError(
            f"stage {finished.name} has no losers, so that its pairs compare nothing; choose another --stage"
        )
    told = Told()
    write_parquet(folder / "data", _tables(finished, told))
    cards.write_dataset_card(finished, folder, options, told, histogram(told.gaps))


def write_parquet(folder: Path, tables: Iterator[pa.Table]) -> None:
    """Each table is a row group; a file ends when it has reached its size, so that one row group is held at a time."""
    folder.mkdir()
    number, size, writer = 0, 0, None
    try:
        for table in tables:
            if writer is None:
                writer = pq.ParquetWriter(folder / f"train-{number:05d}.parquet", SCHEMA, compression="zstd")
            writer.write_table(table)
            size += table.nbytes
            if size >= FILE_BYTES:
                writer.close()
                number, size, writer = number + 1, 0, None
    finally:
        if writer is not None:
            writer.close()


def _tables(finished: Finished, told: Told) -> Iterator[pa.Table]:
    run, path = finished.run, finished.task.spec["pairs"]
    for file in read_manifest(run, path)["files"]:
        name = f"{path}/{file['file']}"
        of_prompt = Counter(run.read_table(name, ["loser_prompt"])["loser_prompt"].to_pylist())
        for batch in run.open_parquet(name).iter_batches(ROWS, columns=COLUMNS):
            rows = []
            for pair in batch.to_pylist():
                rows.append(row_of(pair, told.rows, of_prompt[pair["loser_prompt"]]))
                count(told, pair, rows[-1])
            if rows:
                yield pa.Table.from_pylist(rows, SCHEMA)


def row_of(pair: dict, number: int, of_prompt: int) -> dict:
    """A row of PAIRS in Pick-a-Pic's columns. Which image is image 0 is a coin whose seed is the pair's id, so that the
    position says nothing; labels that are probabilities stay so.

    The caption is the loser's prompt: under it both images were compared (in subject-driven pairs the winner's differs).
    """
    winner = pair["winner"], pair["winner_source"], pair["label"]
    loser = pair["loser"], pair["loser_source"], 1 - pair["label"]
    sides = (winner, loser) if seed_of("side", pair["pair_id"]) % 2 == 0 else (loser, winner)
    uids = [hashlib.sha256(image).hexdigest()[:32] for image, _, _ in sides]
    labels = [label for _, _, label in sides]
    best = None if labels[0] == labels[1] else uids[labels.index(max(labels))]
    row = {
        "are_different": uids[0] != uids[1],
        "best_image_uid": best,
        "caption": pair["loser_prompt"],
        "has_label": True,
        "ranking_id": number,
        "num_example_per_prompt": of_prompt,
    }
    for i, (image, source, label) in enumerate(sides):
        row |= {f"image_{i}_uid": uids[i], f"jpg_{i}": image, f"label_{i}": label, f"model_{i}": source}
    return row


def count(told: Told, pair: dict, row: dict) -> None:
    told.rows += 1
    told.soft += row["label_0"] not in (0, 1)
    told.first += row["label_0"] > row["label_1"]
    # by the label: where it is a probability, the loser of a pair may be the preferred one
    better, other = ("winner", "loser") if pair["label"] >= 0.5 else ("loser", "winner")
    told.sources[pair[f"{better}_source"], pair[f"{other}_source"]] += 1
    if pair["winner_score"] is not None and pair["loser_score"] is not None:
        told.gaps.append(pair[f"{better}_score"] - pair[f"{other}_score"])


def histogram(gaps: array, bins: int = 10, width: int = 40) -> str:
    """Score gaps as text, a bin a line; empty text when there are none."""
    values = np.array(gaps, np.float32)
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    counts, edges = np.histogram(values, bins=bins)
    ends = [f"{edge:.4g}" for edge in edges]
    left, right, most = max(map(len, ends[:-1])), max(map(len, ends[1:])), len(str(counts.max()))
    return "\n".join(
        f"{low:>{left}} … {high:<{right}}  {count:>{most}}  {'█' * round(width * count / counts.max())}".rstrip()
        for low, high, count in zip(ends[:-1], ends[1:], counts, strict=True)
    )
