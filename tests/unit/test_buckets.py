"""Real images in their own aspect ratio: sizes, pools, scores, batches, and a run from photos to a trained stage."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from raypref import artifacts, generation, images, pools, scorers, scoring
from raypref.artifacts import Store
from raypref.batches import Pairs, micro_batches
from raypref.models import load_pipeline
from raypref.pairing import shard_of
from raypref.reporting import cautions
from raypref.tasks import Task
from tests import serial
from tests.conftest import CAPTIONS, make_config

REAL = {"domain": "real", "set": "real", "seed": 5}
ASPECTS = [(40, 20), (30, 30), (20, 40), (45, 30), (100, 20), (33, 30)]  # width, height


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(48):
        width, height = ASPECTS[i % len(ASPECTS)]
        colours = np.repeat(random.integers(0, 255, (1, 1, 3), np.uint8), height * width, 1).reshape(height, width, 3)
        Image.fromarray(colours // 2 + random.integers(0, 90, (height, width, 3), np.uint8)).save(
            folder / f"{i:02d}.png"
        )
        (folder / f"{i:02d}.txt").write_text(CAPTIONS[i % len(CAPTIONS)])
    return folder


@pytest.fixture(scope="module")
def config(tiny, photos):
    stage = "{winner: {kind: real}, loser: {kind: generated, prompts: real, count: 1}, pairs: {scorer: null, winner: random, "
    return make_config(
        tiny, "model.buckets=true", "model.resolution=16", "data.prompts=null", f"data.real={{kind: folder, path: {photos}}}",
        "data.holdout=0.2", "data.shard_size=16", f"stages.easy={stage}loser: random}}}}", "stages.hard=null",
        "stages.text_encoder=null", "stages.easy.batch_size=4", "evaluation={features: preference}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(config):
    return load_pipeline(config.model)


@pytest.mark.parametrize("resolution, step", [(512, 64), (768, 64), (64, 16)])
def test_sizes_are_of_about_equal_area_and_can_be_halved(pipeline, resolution, step):
    fake = type("Sized", (), {"vae": pipeline.vae, "unet": pipeline.unet})
    fake.unet = type("Unet", (), {"config": type("C", (), {"block_out_channels": range(int(math.log2(step)))})})
    sizes = generation.bucket_sizes(fake, resolution)  # the tiny VAE has a factor of 2
    assert (resolution, resolution) in sizes and len(sizes) == len(set(sizes)) >= 3
    for height, width in sizes:
        assert height % step == width % step == 0
        assert 0.75 * resolution**2 <= height * width <= resolution**2
        assert max(height, width) <= 2 * min(height, width)
        assert (width, height) in sizes


def test_the_nearest_size_is_that_of_the_nearest_aspect_ratio():
    sizes = [(512, 512), (384, 640), (640, 384), (320, 704)]
    assert generation.nearest_size(sizes, 100, 100) == (512, 512)
    assert generation.nearest_size(sizes, 300, 500) == (384, 640)
    assert generation.nearest_size(sizes, 1000, 100) == (640, 384)
    assert generation.nearest_size(sizes, 100, 900) == (320, 704)


def index(photos, *numbers):
    refs = {i: json.dumps({"kind": "file", "path": str(photos / f"{i:02d}.png")}) for i in numbers}
    return [{"id": f"p{i}", "prompt": CAPTIONS[i], "ref": ref} for i, ref in refs.items()]


def test_real_images_keep_their_shape_and_what_is_drawn_for_them_has_it(config, pipeline, photos):
    table, rejected = pools.pool_shard(pipeline, config, REAL, index(photos, *range(6)), None)
    rows = table.to_pylist()
    assert not rejected and [row["prompt_id"] for row in rows] == [f"p{i}" for i in range(6)]
    for row, (width, height) in zip(rows, ASPECTS, strict=True):
        (file,), (size,) = row["images"], row["sizes"]
        image = images.decode(file, 10**6, 1)
        assert size[:2] == [height, width] and size[4:] == [image.height, image.width]
        assert row["latent_shape"] == [4, image.height // 2, image.width // 2]
        assert (image.width > image.height) == (width > 1.2 * height) and (image.width < image.height) == (
            width < height
        )
        assert len(row["latents"][0]) == 2 * math.prod(row["latent_shape"])
    assert len({tuple(row["latent_shape"]) for row in rows}) >= 3
    for spec in ({"count": 2, "domain": "generated"}, {"strengths": [0.5], "domain": "reconstructed"}):
        drawn, _ = pools.pool_shard(pipeline, config, REAL | spec, index(photos, *range(6)), rows)
        found = drawn.to_pylist()
        assert [row["prompt_id"] for row in found] == [row["prompt_id"] for row in rows]
        assert [row["latent_shape"] for row in found] == [row["latent_shape"] for row in rows]
        for row in found:
            height, width = (2 * side for side in row["latent_shape"][1:])
            assert all(images.decode(file, 10**6, 1).size == (width, height) for file in row["images"])
            assert row["sizes"] == [[height, width, 0, 0, height, width]] * len(row["images"])
        alone, _ = pools.pool_shard(pipeline, config, REAL | spec, index(photos, 2), rows[2:3])
        latents = [np.frombuffer(r["latents"][0], np.float16).astype(float) for r in (alone.to_pylist()[0], found[2])]
        np.testing.assert_allclose(*latents, atol=2e-3)  # whatever else is in the shard


def test_images_of_several_sizes_are_scored_as_each_alone(config, pipeline, photos):
    table, _ = pools.pool_shard(pipeline, config, REAL, index(photos, *range(6)), None)
    scorer = scorers.load("color_statistics", {})
    together = scoring.score_shard(scorer, table, 4)[0].to_pylist()
    for i, row in enumerate(together):
        (alone,) = scoring.score_shard(scorer, table.slice(i, 1), 4)[0].to_pylist()
        np.testing.assert_allclose(row["values"], alone["values"], atol=1e-5)


# batches


@pytest.fixture
def pairs(tmp_path):
    """Three files of 100, 70 and 30 pairs of three sizes in a mixed order."""
    store, sizes = Store(str(tmp_path)), [[4, 8, 8], [4, 4, 16], [4, 16, 4]]
    for shard, rows in enumerate((100, 70, 30)):
        found = []
        for i in range(rows):
            shape = sizes[(i % 7) % 3]
            latents = dict.fromkeys(("winner_latent", "loser_latent"), b"\0" * 2 * math.prod(shape))
            size = dict.fromkeys(("winner_size", "loser_size"), [0] * 6)
            row = {"pair_id": f"{shard}-{i}", "prompt": "p", "loser_prompt": "p", "label": 1.0, "latent_shape": shape}
            found.append(row | latents | size)
        table, statistics = shard_of(found, {})
        artifacts.write_shard(store, "pairs", shard, table, "test", statistics=statistics)
    artifacts.finalize(store, "pairs", "pairs", {}, 3)
    return store


@pytest.mark.parametrize("batch", [1, 8, 30])
def test_every_batch_is_of_one_size_and_an_epoch_has_each_pair_at_most_once(pairs, batch):
    found = Pairs(pairs, "pairs", 3, batch)
    counts = artifacts.read_manifest(pairs, "pairs")["statistics"]["shapes"]
    assert found.rows == sum(rows // batch * batch for rows in counts.values())
    epochs = [[found.at(e * found.rows + i) for i in range(found.rows)] for e in range(2)]
    for epoch in epochs:
        assert len({row["pair_id"] for row in epoch}) == found.rows
        for start in range(0, found.rows, batch):
            assert len({tuple(row["latent_shape"]) for row in epoch[start : start + batch]}) == 1
    orders = [[row["pair_id"] for row in epoch] for epoch in epochs]
    assert orders[0] != orders[1]
    again = Pairs(pairs, "pairs", 3, batch)
    for position in (found.rows + 5, 3, found.rows - 1, 0):  # in any order, as after a resume
        assert again.at(position)["pair_id"] == (orders[0] + orders[1])[position]
    shapes = [tuple(row["latent_shape"]) for row in epochs[0]][::batch]
    assert batch == 30 or len({i for i in range(len(shapes) - 1) if shapes[i] != shapes[i + 1]}) > 2  # sizes are mixed


def test_pairs_left_out_of_one_epoch_come_in_another(pairs):
    found = Pairs(pairs, "pairs", 3, 16)
    seen = Counter(found.at(i)["pair_id"] for i in range(12 * found.rows))
    assert len(seen) == 200 and max(seen.values()) <= 12


def test_workers_share_a_batch_of_one_size(pairs):
    found = Pairs(pairs, "pairs", 3, 8)
    for step in range(6):
        shapes = {
            tuple(b.winner.shape[1:])
            for rank in range(2)
            for b in micro_batches(found, step, 8, rank, 2, 2, 1000, False)
        }
        assert len(shapes) == 1


def test_no_size_with_a_whole_batch_is_said(pairs):
    with pytest.raises(ValueError, match=r"no size of images has batch_size=128 pairs \(.*4x8x8"):
        Pairs(pairs, "pairs", 3, 128)


def test_a_run_from_photos_to_a_trained_stage(config, tmp_path):
    tasks = serial.run(config, tmp_path)
    store = Store(str(tmp_path))
    (path,) = [task.path for task in tasks.values() if task.kind == "pairs" and task.name != "held_out"]
    rows = list(artifacts.iter_rows(store, path))
    assert len({tuple(row["latent_shape"]) for row in rows}) >= 3
    assert all(len(row["winner_latent"]) == len(row["loser_latent"]) for row in rows)
    (train,) = [task for task in tasks.values() if task.kind == "train"]
    metrics = [json.loads(line) for line in store.read(f"{train.path}/metrics.jsonl").splitlines()]
    assert [row["step"] for row in metrics] == list(range(1, 7)) and all(math.isfinite(row["loss"]) for row in metrics)
    assert "validation/accuracy" in metrics[-1]
    result = artifacts.read_manifest(store, tasks["evaluate 1-easy"].path)["statistics"]
    assert math.isfinite(result["metrics"]["latent_mean_drift"]) and math.isfinite(
        result["metrics"]["frechet_distance"]
    )


def test_rewards_and_buckets_do_not_go_together():
    from raypref.recipes import configure

    with pytest.raises(
        ValueError, match=r"stages\.rpo\.pairs: a reward compares every real image .* set model\.buckets=false"
    ):
        configure("rpo_mini", None, ["model.buckets=true"])


def test_pairs_of_sizes_too_rare_for_a_batch_are_told(pairs, config):
    def found(batch):
        changed = config.model_copy(
            update={"stages": {"easy": config.stages["easy"].model_copy(update={"batch_size": batch})}}
        )
        made = Task("pairs", "1-easy", "pairs", {})
        train = Task("train", "1-easy", "train", {}, model="easy", spec={"pairs": "pairs"})
        return cautions([made], [made, train], changed, pairs, pairs)

    assert found(8) == []
    (sentence,) = found(60)
    counts = artifacts.read_manifest(pairs, "pairs")["statistics"]["shapes"]
    rare = {shape: rows for shape, rows in counts.items() if rows < 60}
    assert 0 < len(rare) < 3
    assert sentence.startswith(
        f"{sum(rare.values())} of 200 pairs of 1-easy are of image sizes with fewer than batch_size=60"
    )


def test_prompts_that_are_cut_short_are_told_once_a_set(pairs):
    cut = {"truncated": {"prompts": 3, "example": {"id": "p7", "unread": "and so on"}}}
    for name in ("a", "b"):
        artifacts.write_shard(pairs, name, 0, artifacts.POOL.empty_table(), "x", statistics=cut)
        artifacts.finalize(pairs, name, "pool", {}, 1)
    made = [Task("pool", name, name, {}, spec={"set": "real"}) for name in ("a", "b")]
    assert cautions(made, made, None, pairs, pairs) == [
        "3 prompts of real are longer than the text encoder reads. Their ends have no effect on images, though scorers may read "
        "them; that of p7 is 'and so on'."
    ]
