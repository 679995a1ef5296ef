"""Metrics of a model from stored shards, where some images have been set aside."""

import math

import numpy as np
import pyarrow as pa
import pytest

from raypref.artifacts import POOL, SCORES, Store, digest, finalize, write_shard
from raypref.config import Evaluation
from raypref.evaluation import evaluate

IDS = ["a", "b", "c", "d"]
MISSING = "b"  # of the model's images


def put(store: Store, path: str, schema: pa.Schema, rows: list[dict]) -> str:
    write_shard(store, path, 0, pa.Table.from_pylist(rows, schema), digest(path))
    finalize(store, path, path.split("/")[0], path, 1)
    return path


@pytest.fixture
def spec(tmp_path):
    store, rng = Store(str(tmp_path)), np.random.default_rng(0)
    spec = {"model": "easy", "training": None, "pools": {}, "scores": {}}
    for role, shift in (("images", 0.5), ("base", 0.0)):
        gone = MISSING if role == "images" else None
        latents = {id: (np.full((2, 1, 1), shift) if id != gone else np.full((2, 1, 1), np.nan)) for id in IDS}
        rows = [
            {
                "prompt_id": id,
                "prompt": id,
                "images": [None if id == gone else b"image"],
                "latents": [latents[id].astype(np.float16).tobytes()],
                "latent_shape": [2, 1, 1],
                "seeds": [0],
                "strengths": [1.0],
            }
            for id in IDS
        ]
        spec["pools"][role] = put(store, f"pools/{role}", POOL, rows)
        spec["scores"][role] = {}
        for name, width in (("preference", 1), ("features", 3), ("color_statistics", 8)):
            # an image without a score has a single NaN, as in a shard that holds nothing else
            values = [[math.nan] if id == gone else (rng.random(width) * 0.1 + shift).tolist() for id in IDS]
            rows = [{"prompt_id": id, "values": [value]} for id, value in zip(IDS, values, strict=True)]
            spec["scores"][role][name] = put(store, f"scores/{role}-{name}", SCORES, rows)
    return store, spec


def test_images_that_were_set_aside_count_nowhere(spec):
    store, spec = spec
    result = evaluate(spec, Evaluation(features="features"), store, store)
    assert result["metrics"]["win_rate_vs_base"] == 1.0
    assert result["metrics"]["latent_mean_drift"] == pytest.approx(0.5)
    assert 0.4 < result["metrics"]["preference_score"] < 0.7
    assert set(result["intervals"]) == {"preference_score", "win_rate_vs_base"}
