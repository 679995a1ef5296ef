"""Training batches straight from Parquet pair shards; which pairs make a batch depends on (seed, step) alone.

An epoch is a permutation of row groups, cut into windows whose rows are permuted together: random enough, and a worker
reads each row group once an epoch (once for each size of images in it). Nothing is kept that would have to be saved for a resume.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from raypref.artifacts import Store, read_manifest
from raypref.noising import gaussian, timesteps
from raypref.seeds import seed_of

COLUMNS = [
    "pair_id", "prompt", "loser_prompt", "winner_latent", "loser_latent", "latent_shape", "winner_size", "loser_size", "label"
]  # fmt: skip
WINDOW, GROUP = 16, 64  # row groups that are shuffled together, rows of one (artifacts.parquet_bytes)


@dataclass(frozen=True)
class Batch:
    """B pairs: latents float32 [B, C, H, W]; shared noise [B, C, H, W] and timesteps int64 [B]; labels float32 [B]; sizes
    int64 [2B, 6] of the winners, then the losers (see `models.predict`)."""

    pair_ids: list[str]
    prompts: list[str]
    loser_prompts: list[str]
    winner: Tensor
    loser: Tensor
    sizes: Tensor
    noise: Tensor
    t: Tensor
    label: Tensor


class Pairs:
    """The pairs of a complete artifact in a shuffled, endless, seekable order. `batch`: pairs a step.

    Where images are of several sizes, a step has pairs of one: an epoch is whole batches of each size in a shuffled order,
    and pairs that fill no batch wait for another epoch.
    """

    def __init__(self, store: Store, path: str, seed: int, batch: int = 1, columns: list[str] = COLUMNS):
        manifest = read_manifest(store, path)
        if manifest is None or not manifest["rows"]:
            reasons = manifest["statistics"].get("dropped", {}) if manifest else "no manifest"
            raise ValueError(
                f"{store.uri}/{path}: no pairs to train on ({reasons}); loosen pairs.min_gap or raise count"
            )
        self.store, self.path, self.seed, self.columns, self.batch = store, path, seed, columns, batch
        self.groups: dict[str, list[Group]] = {}
        for file in manifest["files"]:
            for shape, group in _groups(file):
                self.groups.setdefault(shape, []).append(group)
        self.several, self.rows = len(self.groups) > 1, manifest["rows"]
        counts = {shape: sum(group[3] for group in groups) for shape, groups in self.groups.items()}
        if self.several:
            self.batches = {shape: rows // batch for shape, rows in sorted(counts.items())}
            self.rows = batch * sum(self.batches.values())
        if not self.rows:
            raise ValueError(f"{store.uri}/{path}: no size of images has batch_size={batch} pairs ({counts}); lower it")
        self._window = lru_cache(maxsize=2 * len(self.groups))(self._read_window)
        self._epoch = lru_cache(maxsize=2 * len(self.groups))(self._order)
        self._batches = lru_cache(maxsize=2)(self._schedule)

    def at(self, position: int) -> dict:
        """The pair at a position of the endless order (epoch after epoch)."""
        epoch, offset = divmod(position, self.rows)
        (shape, *_) = self.groups
        if self.several:
            number, row = divmod(offset, self.batch)
            shape, before = self._batches(epoch)[number]
            offset = before * self.batch + row
        starts, windows = self._epoch(epoch, shape)
        number = bisect.bisect_right(starts, offset) - 1
        return self._window(epoch, shape, number, windows[number])[offset - starts[number]]

    def _schedule(self, epoch: int) -> list[tuple[str, int]]:
        """Of each batch of an epoch its shape, and how many of that shape come before it."""
        shapes = [shape for shape, number in self.batches.items() for _ in range(number)]
        random.Random(seed_of(self.seed, "batches", epoch)).shuffle(shapes)
        seen = dict.fromkeys(self.batches, -1)
        found = []
        for shape in shapes:
            seen[shape] += 1
            found.append((shape, seen[shape]))
        return found

    def _order(self, epoch: int, shape: str) -> tuple[list[int], list[tuple[Group, ...]]]:
        """First position and row groups of each window of an epoch, of one shape."""
        groups, of_shape = self.groups[shape], (shape,) if self.several else ()
        groups = random.Random(seed_of(self.seed, "groups", epoch, *of_shape)).sample(groups, len(groups))
        starts, windows, start, width = [], [], 0, max(1, WINDOW // len(self.groups))
        for i in range(0, len(groups), width):
            windows.append(tuple(groups[i : i + width]))
            starts.append(start)
            start += sum(rows for *_, rows in windows[-1])
        return starts, windows

    def _read_window(self, epoch: int, shape: str, number: int, groups: tuple) -> list[dict]:
        rows: list[dict] = []
        for name, group, first, size in groups:
            table = self.store.open_parquet(f"{self.path}/{name}").read_row_group(group, self.columns)
            rows += table.slice(first, size).to_pylist()
        of_shape = (shape,) if self.several else ()
        random.Random(seed_of(self.seed, "rows", epoch, number, *of_shape)).shuffle(rows)
        return rows


Group = tuple[str, int, int, int]  # file, row group, first row in it, rows


def _groups(file: dict) -> Iterator[tuple[str, Group]]:
    """The row groups of a file of pairs by the shape of latents, one that holds several in pieces."""
    start = 0
    for shape, rows in file.get("shapes", {"": file["rows"]}).items():
        end = start + rows
        while start < end:
            size = min(GROUP - start % GROUP, end - start)
            yield shape, (file["file"], start // GROUP, start % GROUP, size)
            start += size


def latent(data: bytes, shape: list[int]) -> Tensor:
    """A stored float16 latent as float32 [C, H, W]."""
    return torch.from_numpy(np.frombuffer(data, np.float16).reshape(shape).astype(np.float32))


def make_batch(rows: list[dict], seeds: list[int], total_timesteps: int, flip: bool = False) -> Batch:
    """Rows of pairs as tensors; each pair's noise, timestep and flip come from its own seed."""
    winner = torch.stack([latent(row["winner_latent"], row["latent_shape"]) for row in rows])
    loser = torch.stack([latent(row["loser_latent"], row["latent_shape"]) for row in rows])
    if flip:
        # of latents: the VAE is nearly equivariant; winner and loser together, or the flip would tell them apart
        mirrored = torch.tensor([seed_of(s, "flip") % 2 == 1 for s in seeds]).view(-1, 1, 1, 1)
        winner, loser = (torch.where(mirrored, z.flip(3), z) for z in (winner, loser))
    return Batch(
        [row["pair_id"] for row in rows],
        [row["prompt"] for row in rows],
        [row["loser_prompt"] for row in rows],
        winner,
        loser,
        torch.tensor([row[f"{role}_size"] for role in ("winner", "loser") for row in rows]),
        gaussian(tuple(winner.shape[1:]), [seed_of(s, "noise") for s in seeds]),
        timesteps([seed_of(s, "t") for s in seeds], total_timesteps),
        torch.tensor([row["label"] for row in rows], dtype=torch.float32),
    )


def drawn_label(row: dict, seed: int, epoch: int) -> dict:
    """The pair with its label drawn from the probability, once a pair and epoch (RPO)."""
    draw = random.Random(seed_of(seed, "label", row["pair_id"], epoch)).random()
    return row | {"label": float(draw < row["label"])}


def micro_batches(
    pairs: Pairs,
    step: int,
    batch_size: int,
    rank: int,
    world: int,
    micro: int,
    total_timesteps: int,
    flip: bool,
    sampled: bool = False,
):
    """This worker's part of the global batch of a step, in forward-pass-sized pieces. A pair's place in the global batch
    decides its noise, so the step is the same for any number of workers and any micro-batch. `sampled`: labels are drawn."""
    share = batch_size // world
    first = step * batch_size + rank * share
    for start in range(first, first + share, micro):
        positions = range(start, start + micro)
        rows = [pairs.at(p) for p in positions]
        if sampled:
            rows = [drawn_label(row, pairs.seed, p // pairs.rows) for row, p in zip(rows, positions, strict=True)]
        yield make_batch(rows, [seed_of(pairs.seed, "pair", p) for p in positions], total_timesteps, flip)
