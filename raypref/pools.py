"""The content of pool shards: images generated, reconstructed or taken from disk. Ray decides where; nothing here knows it.

Bad rows are set aside with a reason, never passed on and never the end of the job.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raypref import generation, images
from raypref.artifacts import POOL
from raypref.batches import latent
from raypref.config import RunConfig
from raypref.listing import reject
from raypref.models import decode_latents, unread
from raypref.seeds import seed_of
from raypref.sources.fetching import fetch


def pool_shard(
    pipeline, config: RunConfig, spec: dict, index: list[dict], real: list[dict] | None
) -> tuple[pa.Table, list[dict]]:
    """One shard of a pool: a row a prompt. `index`: rows of the index shard; `real`: rows of the real pool's shard, for
    SDRecon. Seeds are functions of (run seed, prompt set, prompt id, image number) alone."""
    if spec["domain"] == "real":
        return _real_shard(pipeline, config, index)
    if spec["domain"] == "given":
        return _given_shard(pipeline, config, index)
    if spec["domain"] == "reconstructed":
        index = [
            {"id": r["prompt_id"], "prompt": r["prompt"], "latent": r["latents"][0], "shape": r["latent_shape"]}
            for r in real
        ]
    strengths = spec.get("strengths") or [1.0] * spec["count"]
    number = len(strengths)
    seeds = [seed_of(spec["seed"], spec["domain"], spec["set"], row["id"], i) for row in index for i in range(number)]
    clean = None
    if spec["domain"] == "reconstructed":
        clean = torch.stack([latent(row["latent"], row["shape"]) for row in index for _ in range(number)])
    if not index:
        return POOL.empty_table(), []
    shape = generation.latent_shape(pipeline, config.model.resolution)
    latents = generation.sample(
        pipeline,
        [row["prompt"] for row in index for _ in range(number)],
        seeds,
        config.sampling,
        shape,
        clean,
        strengths * len(index) if clean is not None else None,
    )
    files = _encoded(pipeline, config, latents)
    rejected, rows = [], []
    for i, row in enumerate(index):
        part = slice(i * number, (i + 1) * number)
        rejected += [
            reject(f"{row['id']}/{j}", "not finite", "the sampled latent or image holds NaN or infinity")
            for j, file in enumerate(files[part])
            if file is None
        ]
        sizes = generation.plain_sizes(pipeline, latents[part]).tolist()
        given = strengths if clean is not None else [1.0] * number
        rows.append(_pool_row(row, files[part], latents[part], sizes, seeds[part], given))
    return pa.Table.from_pylist(rows, POOL), rejected


def truncation(pipeline, table: pa.Table) -> dict:
    """Statistics of the prompts of a shard that are longer than the text encoders read: how many, and an example."""
    rows = zip(table["prompt_id"].to_pylist(), unread(pipeline, table["prompt"].to_pylist()), strict=True)
    tails = {id: tail for id, tail in rows if tail}
    return {"truncated": {"prompts": len(tails), "unread": dict(list(tails.items())[:1])}} if tails else {}


def _encoded(pipeline, config: RunConfig, latents: Tensor) -> list[bytes | None]:
    """Image files of latents; None where a latent or image is not finite. Files are packed in threads while the next
    batch is decoded."""
    pack = partial(images.encode, format=config.data.image_format, quality=config.data.image_quality)
    jobs = []
    with ThreadPoolExecutor(images.THREADS) as threads, torch.inference_mode():
        for part in latents.split(config.sampling.batch_size):
            decoded = decode_latents(pipeline, part)
            finite = (decoded.isfinite().flatten(1).all(1).cpu() & part.half().isfinite().flatten(1).all(1)).tolist()
            arrays = images.to_uint8(decoded.nan_to_num())
            jobs += [threads.submit(pack, array) if good else None for array, good in zip(arrays, finite, strict=True)]
        return [job.result() if job else None for job in jobs]


def _pool_row(row: dict, files: list, latents: Tensor, sizes: list, seeds: list[int], strengths: list[float]) -> dict:
    return {
        "prompt_id": row["id"],
        "prompt": row["prompt"],
        "images": files,
        "latents": [z.half().numpy().tobytes() for z in latents],
        "latent_shape": list(latents.shape[1:]),
        "sizes": sizes,
        "seeds": seeds,
        "strengths": strengths,
    }


def _real_shard(pipeline, config: RunConfig, index: list[dict]) -> tuple[pa.Table, list[dict]]:
    side, data = config.model.resolution, config.data

    def prepare(blob: bytes | Exception) -> tuple[np.ndarray, list[int]] | Exception:
        if isinstance(blob, Exception):
            return blob
        try:
            array, crop = images.fit(images.decode(blob, data.max_pixels, data.min_side), (side, side))
            return array, [*crop, side, side]
        except images.BadImage as error:
            return error
        except MemoryError:
            return images.BadImage("too_large", "image does not fit into memory")

    with ThreadPoolExecutor(images.THREADS) as threads:
        found = list(threads.map(prepare, fetch([json.loads(row["ref"]) for row in index])))
    rejected = [
        reject(row["id"], getattr(item, "reason", "unreadable"), item)
        for row, item in zip(index, found, strict=True)
        if isinstance(item, Exception)
    ]
    good = [(row, *item) for row, item in zip(index, found, strict=True) if not isinstance(item, Exception)]
    if not good:
        return POOL.empty_table(), rejected
    index, arrays, sizes = zip(*good, strict=True)
    latents = generation.encode(pipeline, images.to_tensor(arrays), config.sampling.batch_size)
    files = images.encode_many(arrays, data.image_format, images.THREADS, data.image_quality)
    columns = zip(index, files, latents, sizes, strict=True)
    rows = [_pool_row(row, [file], z[None], [size], [0], [0.0]) for row, file, z, size in columns]
    return pa.Table.from_pylist(rows, POOL), rejected


def _given_shard(pipeline, config: RunConfig, index: list[dict]) -> tuple[pa.Table, list[dict]]:
    """Pairs that the user brings: both images go the way of real ones; one that is bad sets its pair aside."""
    flat = [
        {"id": f"{row['id']}/{number}", "prompt": row["prompt"], "ref": json.dumps(ref)}
        for row in index
        for number, ref in enumerate(json.loads(row["ref"])["images"])
    ]
    table, rejected = _real_shard(pipeline, config, flat)
    made, rows = {row["prompt_id"]: row for row in table.to_pylist()}, []
    for row in index:
        ids = [f"{row['id']}/{number}" for number in range(2)]
        good = [made[id] for id in ids if id in made]
        if len(good) == 2 and good[0]["images"] == good[1]["images"]:
            rejected += [reject(id, "identical images", "winner and loser show the same pixels") for id in ids]
        elif len(good) == 2:
            lists = [key for key, value in good[0].items() if isinstance(value, list) and key != "latent_shape"]
            rows.append(good[0] | {"prompt_id": row["id"]} | {key: good[0][key] + good[1][key] for key in lists})
        else:  # counted too, since max_rejected is a share of images
            rejected += [reject(one["prompt_id"], "pair set aside", "its other image is bad") for one in good]
    return pa.Table.from_pylist(rows, POOL), rejected
