"""Metrics of a model from stored shards, where some images have been set aside."""

import math

import numpy as np
import pyarrow as pa
import pytest

from raypref import metrics
from raypref.artifacts import POOL, SCORES, Store, digest, finalize, iter_rows, write_shard
from raypref.config import Evaluation
from raypref.evaluation import evaluate
from raypref.scorers.athec import Athec

IDS = ["a", "b", "c", "d"]
MISSING = "b"  # of the model's images


ROLES = ("images", "real")


def put(store: Store, path: str, schema: pa.Schema, rows: list[dict], fields: dict | None = None) -> str:
    write_shard(store, path, 0, pa.Table.from_pylist(rows, schema), digest(path))
    finalize(store, path, path.split("/")[0], fields or {"path": path}, 1)
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


def test_columns_that_a_scorer_names_are_metrics_of_their_own(spec):
    store, spec = spec
    columns = Athec.columns
    for role, shift in (("images", 1.0), ("base", 2.0), ("real", 5.0)):
        rows = [{"prompt_id": id, "values": [[shift + i for i in range(len(columns))]]} for id in IDS[:3]]
        path = f"scores/{role}-looks"
        spec["scores"].setdefault(role, {})["looks"] = put(store, path, SCORES, rows, {"scorer": {"kind": "athec"}})
    spec["scores"]["real"] |= {name: spec["scores"]["base"][name] for name in ("preference", "color_statistics")}
    result = evaluate(spec, Evaluation(scorers=("looks",)), store, store)
    for found, shift in ((result["metrics"], 1.0), (result["real"], 5.0)):
        assert {name: value for name, value in found.items() if "/" in name} == {
            f"looks/{name}": shift + i for i, name in enumerate(columns)
        }
        assert "looks" not in found


def test_distances_to_real_images_say_how_many_they_are_over(spec):
    store, spec = spec
    spec["scores"]["real"] = spec["scores"]["base"]
    result = evaluate(spec, Evaluation(features="features"), store, store)
    mine, real = ([row["values"][0] for row in iter_rows(store, spec["scores"][role]["features"])] for role in ROLES)
    mine = [value for value in mine if len(value) == 3]
    assert result["metrics"]["frechet_distance"] == metrics.frechet_distance(mine, real)
    assert result["metrics"]["cmmd"] == metrics.cmmd(mine, real)
    assert result["sizes"] == {"images": 3, "real": 4, "features": 3}
    assert evaluate(spec, Evaluation(), store, store)["sizes"] == {}
