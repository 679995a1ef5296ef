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
    SDRecon and for images as large as the real ones. Seeds are functions of (run seed, prompt set, prompt id, image
    number) alone."""
    if spec["domain"] in ("real", "given"):
        return _taken_shard(pipeline, config, index, spec["domain"] == "given")
    if spec["domain"] == "reconstructed":
        index = [{"id": r["prompt_id"], "prompt": r["prompt"], "latent": r["latents"][0]} for r in real]
    shapes = {row["prompt_id"]: tuple(row["latent_shape"]) for row in real or ()}
    square = generation.latent_shape(pipeline, config.model.resolution)
    made = {}
    for shape in sorted({shapes.get(row["id"], square) for row in index}):
        part = [row for row in index if shapes.get(row["id"], square) == shape]
        made |= {row["prompt_id"]: row for row in _drawn(pipeline, config, spec, part, shape)}
    rows = [made[row["id"]] for row in index]
    rejected = [
        reject(f"{row['prompt_id']}/{j}", "not finite", "the sampled latent or image holds NaN or infinity")
        for row in rows
        for j, file in enumerate(row["images"])
        if file is None
    ]
    return pa.Table.from_pylist(rows, POOL), rejected


def _drawn(pipeline, config: RunConfig, spec: dict, index: list[dict], shape: tuple[int, int, int]) -> list[dict]:
    """Pool rows of prompts whose images are of one size. `index`: with the real image's latent, for SDRecon."""
    strengths = spec.get("strengths") or [1.0] * spec["count"]
    number, recon = len(strengths), spec["domain"] == "reconstructed"
    seeds = [seed_of(spec["seed"], spec["domain"], spec["set"], row["id"], i) for row in index for i in range(number)]
    clean = torch.stack([latent(row["latent"], shape) for row in index for _ in range(number)]) if recon else None
    latents = generation.sample(
        pipeline,
        [row["prompt"] for row in index for _ in range(number)],
        seeds,
        config.sampling,
        shape,
        clean,
        strengths * len(index) if recon else None,
    )
    files = _encoded(pipeline, config, latents)
    sizes = generation.plain_sizes(pipeline, latents).tolist()
    parts = [slice(i * number, (i + 1) * number) for i in range(len(index))]
    return [
        _pool_row(row, files[part], latents[part], sizes[part], seeds[part], strengths)
        for row, part in zip(index, parts, strict=True)
    ]


def truncation(pipeline, table: pa.Table) -> dict:
    """Statistics of the prompts of a shard that are longer than the text encoders read: how many, and an example."""
    rows = zip(table["prompt_id"].to_pylist(), unread(pipeline, table["prompt"].to_pylist()), strict=True)
    tails = {id: tail for id, tail in rows if tail}
    if not tails:
        return {}
    id, tail = next(iter(tails.items()))
    return {"truncated": {"prompts": len(tails), "example": {"id": id, "unread": tail[:200]}}}


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


def _pool_row(
    row: dict, files: list, latents: list[Tensor] | Tensor, sizes: list, seeds: list, strengths: list
) -> dict:
    return {
        "prompt_id": row["id"],
        "prompt": row["prompt"],
        "images": files,
        "latents": [z.half().numpy().tobytes() for z in latents],
        "latent_shape": list(latents[0].shape),
        "sizes": sizes,
        "seeds": seeds,
        "strengths": strengths,
    }


def _taken_shard(pipeline, config: RunConfig, index: list[dict], pairs: bool) -> tuple[pa.Table, list[dict]]:
    """Images from disk: one a row, or (`pairs`) the two of a pair that the user brings, where one that is bad sets its pair
    aside."""
    refs = [json.loads(row["ref"]) for row in index]
    refs = [ref["images"] if pairs else [ref] for ref in refs]
    blobs = iter(fetch([ref for of_row in refs for ref in of_row]))
    side = config.model.resolution
    sizes = generation.bucket_sizes(pipeline, side) if config.model.buckets else [(side, side)]
    with ThreadPoolExecutor(images.THREADS) as threads:
        prepared = list(threads.map(partial(_prepare, config, sizes), [[next(blobs) for _ in row] for row in refs]))
    rejected, good = [], []
    for row, items in zip(index, prepared, strict=True):
        if bad := _problems(items):
            ids = [f"{row['id']}/{number}" for number in range(2)] if pairs else [row["id"]]
            rejected += [reject(id, *why) for id, why in zip(ids, bad, strict=True)]
        else:
            good.append((row, items))
    flat = [item for _, items in good for item in items]
    latents = iter(_latents(pipeline, [array for array, _ in flat], config.sampling.batch_size))
    arrays = [array for array, _ in flat]
    files = iter(images.encode_many(arrays, config.data.image_format, images.THREADS, config.data.image_quality))
    rows = []
    for row, items in good:
        of_row = [(next(files), next(latents), size) for _, size in items]
        rows.append(_pool_row(row, *map(list, zip(*of_row, strict=True)), [0] * len(items), [0.0] * len(items)))
    return pa.Table.from_pylist(rows, POOL), rejected


Prepared = tuple[np.ndarray, list[int]] | Exception  # an image that fits, and its size (models.predict)


def _prepare(config: RunConfig, sizes: list[tuple[int, int]], blobs: list[bytes | Exception]) -> list[Prepared]:
    """Images of one row, in the size that is nearest to the first that can be read."""
    found, size = [], None
    for blob in blobs:
        if isinstance(blob, Exception):
            found.append(blob)
            continue
        try:
            image = images.decode(blob, config.data.max_pixels, config.data.min_side)
            size = size or generation.nearest_size(sizes, image.height, image.width)
            array, crop = images.fit(image, size)
            found.append((array, [*crop, *size]))
        except MemoryError:
            found.append(images.BadImage("too_large", "image does not fit into memory"))
        except images.BadImage as error:
            found.append(error)
    return found


def _problems(items: list[Prepared]) -> list[tuple[str, object]]:
    """Why a row is set aside, a reason and detail an image (max_rejected is a share of images); none if it is sound."""
    bad = [item for item in items if isinstance(item, Exception)]
    if not bad and len(items) == 2 and np.array_equal(items[0][0], items[1][0]):
        return [("identical images", "winner and loser show the same pixels")] * 2
    if not bad:
        return []
    return [
        (getattr(item, "reason", "unreadable"), item)
        if isinstance(item, Exception)
        else ("pair set aside", "its other image is bad")
        for item in items
    ]


def _latents(pipeline, arrays: list[np.ndarray], batch_size: int) -> list[Tensor]:
    """Latents [C, h, w] of images of several sizes, in their order."""
    found: dict[int, Tensor] = {}
    for shape in sorted({array.shape for array in arrays}):
        places = [i for i, array in enumerate(arrays) if array.shape == shape]
        encoded = generation.encode(pipeline, images.to_tensor([arrays[i] for i in places]), batch_size)
        found |= dict(zip(places, encoded, strict=True))
    return [found[i] for i in range(len(arrays))]
