"""Pool shards and score shards: rows belong to prompts, and bad rows are set aside, never the end of a job."""

import hashlib
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from raypref import images, listing, pools, scoring
from raypref.artifacts import INDEX, POOL, SCORES, Store, digest, finalize, iter_rows, parquet_bytes
from raypref.batches import latent
from raypref.mini import renderer
from raypref.models import decode_latents, encode_images, load_pipeline
from raypref.seeds import seed_of
from tests.conftest import CAPTIONS, LATENT, make_config

GENERATED = {"domain": "generated", "set": "prompts", "seed": 5, "count": 2}
REAL = {"domain": "real", "set": "real", "seed": 5}


@pytest.fixture(scope="module")
def config(tiny):
    return make_config(tiny, "data.image_format=png", "sampling.batch_size=4")


@pytest.fixture
def pipeline(config):
    return load_pipeline(config.model)


def index(*numbers: int) -> list[dict]:
    return [{"id": f"p{i}", "prompt": CAPTIONS[i], "ref": "{}"} for i in numbers]


@pytest.fixture
def real_index(tmp_path):
    """The index of three drawn people, as the listing writes it."""
    source = {"kind": "renderer", "seed": 2, "count": 3, "start": 0}
    fields = {"source": source, "part": "all", "limit": None, "shard_size": 8}
    store = Store(str(tmp_path))
    assert listing.write_index(store, "sources/real", fields, digest(fields)) == 1
    finalize(store, "sources/real", "index", fields, 1)
    return list(iter_rows(store, "sources/real"))


# drawn pools


def test_row_of_a_drawn_pool(config, pipeline):
    table, rejected = pools.pool_shard(pipeline, config, GENERATED, index(0, 1, 2), None)
    assert rejected == []
    assert table.schema == POOL
    rows = table.to_pylist()
    assert [row["prompt_id"] for row in rows] == ["p0", "p1", "p2"]
    assert [row["prompt"] for row in rows] == CAPTIONS[:3]
    for row in rows:
        assert row["seeds"] == [seed_of(5, "generated", "prompts", row["prompt_id"], i) for i in range(2)]
        assert row["strengths"] == [1.0, 1.0]
        assert row["latent_shape"] == list(LATENT)
        assert row["sizes"] == [[16, 16, 0, 0, 16, 16]] * 2
        for file, data in zip(row["images"], row["latents"], strict=True):
            # the file is the decoded latent, up to the latent's half precision
            with torch.inference_mode():
                expected = decode_latents(pipeline, latent(data, LATENT)[None])[0]
            found = images.to_tensor([np.array(images.decode(file, 10**6, 1))])[0]
            assert (found - expected).abs().max() < 0.02
    assert len({data for row in rows for data in row["latents"]}) == 6


def test_drawn_shard_is_deterministic(config, pipeline):
    made = [pools.pool_shard(pipeline, config, GENERATED, index(0, 1), None)[0] for _ in range(2)]
    assert len({hashlib.sha256(parquet_bytes(table)).hexdigest() for table in made}) == 1


def test_images_of_a_prompt_do_not_depend_on_the_shard(config, pipeline):
    whole = pools.pool_shard(pipeline, config, GENERATED, index(0, 1, 2), None)[0].to_pylist()
    (alone,) = pools.pool_shard(pipeline, config, GENERATED, index(1), None)[0].to_pylist()
    more = pools.pool_shard(pipeline, config, GENERATED | {"count": 4}, index(1), None)[0].to_pylist()[0]
    assert alone["seeds"] == whole[1]["seeds"] == more["seeds"][:2]
    for i in range(2):
        expected = latent(whole[1]["latents"][i], LATENT)
        torch.testing.assert_close(latent(alone["latents"][i], LATENT), expected, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(latent(more["latents"][i], LATENT), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("change", [{"seed": 6}, {"set": "real"}])
def test_run_seed_and_prompt_set_change_the_images(config, pipeline, change):
    one, other = (
        pools.pool_shard(pipeline, config, spec, index(0), None)[0] for spec in (GENERATED, GENERATED | change)
    )
    assert one["seeds"] != other["seeds"]
    assert one["latents"] != other["latents"]


def test_images_that_are_not_finite_are_set_aside(config, pipeline):
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(math.nan)
    table, rejected = pools.pool_shard(pipeline, config, GENERATED, index(0, 1), None)
    assert [row["id"] for row in rejected] == ["p0/0", "p0/1", "p1/0", "p1/1"]
    assert {row["reason"] for row in rejected} == {"not finite"}
    assert [row["images"] for row in table.to_pylist()] == [[None, None]] * 2


def test_latent_too_large_for_half_precision_is_set_aside(config, pipeline):
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(1e6)
    _, rejected = pools.pool_shard(pipeline, config, GENERATED, index(0), None)
    assert len(rejected) == 2


def test_prompts_that_are_cut_short_are_counted_with_an_example(config, pipeline):
    rows = index(0, 1, 2)
    rows[1]["prompt"] = rows[2]["prompt"] = " ".join(rows[1]["prompt"].split() * 9)
    table, _ = pools.pool_shard(pipeline, config, GENERATED, rows, None)
    (cut,) = pools.truncation(pipeline, table).values()
    assert cut["prompts"] == 2
    assert cut["example"]["id"] == "p1" and 0 < len(cut["example"]["unread"]) <= 200
    assert cut["example"]["unread"][:40] in rows[1]["prompt"]
    assert pools.truncation(pipeline, table.slice(0, 1)) == {}


def test_empty_shards(config, pipeline):
    for spec in (GENERATED, REAL):
        table, rejected = pools.pool_shard(pipeline, config, spec, [], None)
        assert (table.num_rows, table.schema, rejected) == (0, POOL, [])


# real images and their reconstructions


def test_row_of_a_real_pool(config, pipeline, real_index):
    table, rejected = pools.pool_shard(pipeline, config, REAL, real_index, None)
    assert rejected == []
    rows = table.to_pylist()
    for i, row in enumerate(rows):
        caption, array = renderer.person(2, i)
        assert row["prompt"] == caption
        expected, crop = images.fit(images.Image.fromarray(array), (16, 16))
        assert row["sizes"] == [[*crop, 16, 16]] == [[*array.shape[:2], *crop[2:], 16, 16]]
        (file,) = row["images"]
        pixels = np.array(images.decode(file, 10**6, 1))
        assert np.array_equal(pixels, expected)  # PNG loses nothing
        with torch.inference_mode():
            z0 = encode_images(pipeline, images.to_tensor([pixels]))[0]
        torch.testing.assert_close(latent(row["latents"][0], LATENT), z0, atol=2e-3, rtol=2e-3)
        assert row["strengths"] == [0.0]


def test_bad_real_images_are_set_aside_with_a_reason(config, pipeline, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    good = images.encode(np.full((20, 30, 3), 90, np.uint8), "png")
    files = {
        "a": good,
        "b": good[: len(good) // 2],
        "c": b"no image",
        "d": images.encode(np.zeros((3, 3, 3), np.uint8), "png"),
    }
    for name, data in files.items():
        (folder / f"{name}.png").write_bytes(data)
        (folder / f"{name}.txt").write_text(f"photo {name}")
    fields = {"source": {"kind": "folder", "path": str(folder), "limit": None, "caption": None}}
    fields |= {"part": "all", "limit": None, "shard_size": 8}
    store = Store(str(tmp_path))
    listing.write_index(store, "sources/real", fields, digest(fields))
    finalize(store, "sources/real", "index", fields, 1)
    rows = list(iter_rows(store, "sources/real"))
    assert len(rows) == 4
    (folder / "a.png").rename(folder / "e.png")  # gone since it was listed
    table, rejected = pools.pool_shard(pipeline, config, REAL, rows, None)
    assert table.num_rows == 0 and table.schema == POOL
    assert [row["id"] for row in rejected] == [row["id"] for row in rows]
    assert [row["reason"] for row in rejected][1:] == ["truncated", "unsupported", "too_small"]
    (folder / "e.png").rename(folder / "a.png")
    table, rejected = pools.pool_shard(pipeline, config, REAL, rows, None)
    assert table["prompt"].to_pylist() == ["photo a"]
    assert len(rejected) == 3


def test_reconstructions_are_of_the_real_latents_at_each_strength(config, pipeline, real_index):
    real = pools.pool_shard(pipeline, config, REAL, real_index, None)[0].to_pylist()
    spec = {"domain": "reconstructed", "set": "real", "seed": 5, "strengths": [0.4, 1.0]}
    table, rejected = pools.pool_shard(pipeline, config, spec, real_index, real)
    assert rejected == []
    rows = table.to_pylist()
    assert [row["prompt_id"] for row in rows] == [row["prompt_id"] for row in real]
    for row, source in zip(rows, real, strict=True):
        assert row["strengths"] == pytest.approx([0.4, 1.0])
        assert row["seeds"] == [seed_of(5, "reconstructed", "real", row["prompt_id"], i) for i in range(2)]
        clean = latent(source["latents"][0], LATENT)
        near, far = ((latent(data, LATENT) - clean).square().mean() for data in row["latents"])
        assert near < 0.7 * far
    # of another photo it is another image, with the same noise
    swapped = [real[1] | {"prompt_id": real[0]["prompt_id"], "prompt": real[0]["prompt"]}]
    other = pools.pool_shard(pipeline, config, spec, real_index[:1], swapped)[0].to_pylist()[0]
    assert other["seeds"] == rows[0]["seeds"] and other["latents"] != rows[0]["latents"]


def test_reconstructions_skip_photos_that_were_set_aside(config, pipeline, real_index):
    real = pools.pool_shard(pipeline, config, REAL, real_index, None)[0].to_pylist()
    spec = {"domain": "reconstructed", "set": "real", "seed": 5, "strengths": [0.4]}
    table, _ = pools.pool_shard(pipeline, config, spec, real_index, real[1:])
    assert table["prompt_id"].to_pylist() == [row["prompt_id"] for row in real[1:]]


# scores


def pool(rows: dict[str, list[int | None]]) -> pa.Table:
    """A pool of plain grey images, None where there is none."""
    table = [
        {
            "prompt_id": id,
            "prompt": f"prompt {id}",
            "images": [None if v is None else images.encode(np.full((4, 4, 3), v, np.uint8), "png") for v in values],
            "latents": [b""] * len(values),
            "latent_shape": [1, 1, 1],
            "seeds": [0] * len(values),
            "strengths": [1.0] * len(values),
        }
        for id, values in rows.items()
    ]
    return pa.Table.from_pylist(table, POOL)


class Grey:
    """The grey value, NaN above 200; remembers what it was given."""

    def __init__(self, width: int | None = None):
        self.width, self.calls = width, []

    def __call__(self, batch, prompts):
        self.calls.append(list(prompts))
        grey = (batch.mean((1, 2, 3)) * 255).round()
        grey = torch.where(grey > 200, torch.nan, grey)
        return grey if self.width is None else grey[:, None] + torch.arange(self.width)


ROWS = {"a": [10, 20], "b": [30, None], "c": [None], "d": [40, 250]}


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_scores_are_keyed_by_prompt_and_image(batch_size):
    scorer = Grey()
    table, rejected = scoring.score_shard(scorer, pool(ROWS), batch_size)
    assert table.schema == SCORES
    values = {row["prompt_id"]: [v[0] for v in row["values"]] for row in table.to_pylist()}
    assert values["a"] == [10, 20]
    assert values["b"][0] == 30 and math.isnan(values["b"][1])
    assert len(values["c"]) == 1 and math.isnan(values["c"][0])
    assert values["d"][0] == 40 and math.isnan(values["d"][1])
    # missing images were set aside by their pool; here only what the scorer could not say
    assert [(row["id"], row["reason"]) for row in rejected] == [("d/1", "score is not finite")]
    assert max(map(len, scorer.calls)) <= batch_size
    assert [prompt for call in scorer.calls for prompt in call] == [
        "prompt a",
        "prompt a",
        "prompt b",
        "prompt d",
        "prompt d",
    ]


def test_features_keep_their_width():
    table, rejected = scoring.score_shard(Grey(3), pool(ROWS), 64)
    rows = {row["prompt_id"]: row["values"] for row in table.to_pylist()}
    assert rows["a"] == [[10, 11, 12], [20, 21, 22]]
    assert [len(v) for values in rows.values() for v in values] == [3] * 7
    assert all(map(math.isnan, rows["d"][1]))
    assert [row["id"] for row in rejected] == ["d/1"]


def test_prompt_ids_with_slashes(tmp_path):
    """As webdatasets have them."""
    table, rejected = scoring.score_shard(Grey(), pool({"shard-0/key/1": [250, 7]}), 64)
    assert [row["id"] for row in rejected] == ["shard-0/key/1/0"]
    first, second = table.to_pylist()[0]["values"]
    assert math.isnan(first[0]) and second == [7]


def test_shard_without_any_image():
    table, rejected = scoring.score_shard(Grey(), pool({"a": [None, None]}), 64)
    assert all(math.isnan(v[0]) for v in table.to_pylist()[0]["values"])
    assert rejected == []
    assert scoring.score_shard(Grey(), POOL.empty_table(), 64)[0].num_rows == 0


def test_index_rows_without_a_caption_are_set_aside(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "  "}\n{"text": 1}\n{"prompt": "two"}\n')
    path = {"kind": "prompts", "path": str(tmp_path / "prompts.jsonl"), "limit": None, "column": "prompt"}
    fields = {"source": path, "part": "all", "limit": None, "shard_size": 3}
    store = Store(str(tmp_path / "run"))
    assert listing.write_index(store, "sources/p", fields, "f") == 2
    manifest = finalize(store, "sources/p", "index", fields, 2)
    assert [row["prompt"] for row in iter_rows(store, "sources/p")] == ["one", "two"]
    assert manifest["rejected"]["count"] == 2
    assert store.read_table("sources/p/00000.parquet").schema == INDEX
