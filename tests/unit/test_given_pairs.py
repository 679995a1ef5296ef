"""Preference pairs that the user brings, from the configuration to the rows that training reads."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from raypref import cli, images, losses, pairing, planning, pools, reporting
from raypref.artifacts import INDEX, PAIRS, POOL, Store, iter_rows, read_manifest
from raypref.batches import COLUMNS, Pairs, make_batch
from raypref.config import build
from raypref.curriculum import plan
from raypref.models import load_pipeline
from raypref.recipes import configure
from raypref.stages import PairRule
from raypref.tasks import images_a_row
from tests import serial
from tests.conftest import CAPTIONS, make_config
from tests.unit.test_config import problems
from tests.unit.test_sources_pairs import table

KIND = {"kind": "given"}
STAGE = {"winner": KIND, "loser": KIND, "pairs": KIND}
FOLDERS = {"kind": "pair_folders", "path": "/w", "losers": "/l"}
HUMAN = {"data": {"pairs": FOLDERS}, "stages": {"dpo": STAGE}}
ON_TINY = ["stages.hard=null", "stages.text_encoder=null", "stages.easy.pairs=null", "data.shard_size=2"]
ON_TINY += [f"stages.easy.{role}={json.dumps(KIND)}" for role in ("winner", "loser", "pairs")]


def picture(seed: int, side: int = 20) -> bytes:
    return images.encode(np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), dtype=np.uint8), "png")


def write_pairs(folder, number: int):
    """Folders w and l with images 0.png, 1.png ..., and captions."""
    for side in ("w", "l"):
        (folder / side).mkdir(parents=True)
    for i in range(number):
        (folder / "w" / f"{i}.png").write_bytes(picture(i))
        (folder / "l" / f"{i}.png").write_bytes(picture(100 + i))
        (folder / "w" / f"{i}.txt").write_text(CAPTIONS[i])
    return {"kind": "pair_folders", "path": str(folder / "w"), "losers": str(folder / "l")}


def tiny_config(tiny, source: dict, *assignments: str):
    given = ["data.eval_prompts={kind: list, prompts: [a, b]}", f"data.pairs={json.dumps(source)}", "data.prompts=null"]
    return make_config(tiny, *ON_TINY, *given, "data.image_format=png", *assignments)


# ---- the plan


def test_plan_of_a_recipe_with_human_pairs():
    config = configure("diffusion_dpo_sd15", [HUMAN])
    tasks = {(task.kind, task.name): task for task in plan(config)}
    parts = {name: task.fields["part"] for (kind, name), task in tasks.items() if kind == "index"}
    assert parts == {"pairs": "train", "eval_prompts": "held_out"}
    drawn = {"base-generated-eval_prompts", "dpo-generated-eval_prompts"}
    assert {name for kind, name in tasks if kind == "pool"} == {"given-pairs"} | drawn
    pool, index, pairs = tasks["pool", "given-pairs"], tasks["index", "pairs"], tasks["pairs", "1-dpo"]
    assert (pool.parents, images_a_row(pool.fields), pool.model) == ((index.path,), 2, "base")
    assert pairs.parents == (index.path, pool.path)
    assert pairs.spec["winner"] == pairs.spec["loser"] and pairs.spec["winner"]["index"] == index.path
    assert tasks["train", "1-dpo"].spec["pairs"] == pairs.path
    assert not any(
        task.spec["pool"] == pool.path for task in tasks.values() if task.kind == "score"
    )  # nothing to score
    seen = set()
    for task in plan(config):
        assert set(task.parents) <= seen
        seen.add(task.path)


def test_plan_by_assignments_is_the_same():
    sets = ["data.pairs.kind=pair_folders", "data.pairs.path=/w", "data.pairs.losers=/l"]
    sets += [f"stages.dpo.{role}.kind=given" for role in ("winner", "loser", "pairs")]
    assert plan(configure("diffusion_dpo_sd15", None, sets)) == plan(configure("diffusion_dpo_sd15", [HUMAN]))


@pytest.mark.parametrize("name", ["eval_prompts", "prompts", "real"])
def test_other_prompts_to_evaluate_on_leave_all_pairs_to_training(name):
    source = {"kind": "folder", "path": "/photos"} if name == "real" else {"kind": "prompts", "path": "/p.txt"}
    parts = {
        task.name: task.fields["part"]
        for task in plan(configure("diffusion_dpo_sd15", [HUMAN, {"data": {name: source}}]))
        if task.kind == "index"
    }
    assert parts.pop("pairs") == "all"
    assert list(parts) == {"prompts": ["prompts", "eval_prompts"], "real": ["real", "eval_real"]}.get(name, [name])


def test_pairs_beside_generated_stages():
    """A first stage on human pairs, then HG-DPO's: only the given stage's tasks are new."""
    whole = configure("mini", [{"data": {"pairs": FOLDERS}, "stages": {"easy": STAGE}}])
    names = {task.name for task in plan(whole) if task.kind == "pool" and task.model == "base"}
    assert {"given-pairs", "base-generated-prompts"} <= names  # the latter for the text encoder
    before = {task.path for task in plan(configure("mini")) if task.kind in ("index", "pool")}
    kept = before & {task.path for task in plan(whole)}
    assert {path.rpartition("/")[2][:-9] for path in kept} >= {
        "prompts",
        "real",
        "base-generated-prompts",
        "real-eval_real",
    }


def test_ties_and_source_decide_the_paths():
    def path(**source):
        source = {"kind": "pick_a_pic", "path": "/a"} | source
        return next(task.path for task in plan(configure("diffusion_dpo_sd15", [HUMAN | {"data": {"pairs": source}}])))

    assert len({path(), path(ties="keep"), path(path="/b"), path(limit=5)}) == 4


@pytest.mark.parametrize(
    "assignments, expected",
    [
        (
            ["stages.dpo.loser={kind: generated}"],
            "have winner, loser and pairs of the kind given, but loser is generated",
        ),
        (["stages.dpo.pairs={kind: score}"], "of the kind given, but pairs is score; set them alike"),
        (["data.pairs=null"], "stages.dpo: needs preference pairs; give data.pairs"),
        (["stages.dpo.objective={kind: rpo}"], "stages.dpo.objective: rpo is not for pairs that are given"),
        (["stages.dpo.pairs.first=2"], "stages.dpo.pairs.first: unknown key; allowed: kind"),
        (["data.pairs.loosers=/l"], "data.pairs.loosers: unknown key; did you mean 'losers'?"),
        (["data.pairs.kind=pickapic"], "data.pairs.kind: 'pickapic' is unknown; did you mean 'pick_a_pic'?"),
        (["stages.dpo.winner.kind=generated", "stages.dpo.loser.kind=generated"], "stages.dpo.winner: needs prompts"),
    ],
)
def test_what_a_configuration_with_pairs_must_say(assignments, expected):
    sets = [f"data.pairs={json.dumps(FOLDERS)}", f"stages.dpo={json.dumps(STAGE)}", *assignments]
    assert any(expected in line for line in problems(*sets, recipe="diffusion_dpo_sd15"))


def test_pairs_that_no_stage_trains_on_are_no_silent_setting():
    sets = [f"data.pairs={json.dumps(FOLDERS)}", "data.prompts={kind: prompts, path: /p.txt}"]
    (line,) = problems(*sets, recipe="diffusion_dpo_sd15")
    assert line.startswith("data.pairs: no stage trains on them")


def test_winners_alone_can_be_given():
    config = configure("sft_sd15", [{"data": {"pairs": FOLDERS}, "stages": {"sft": {"winner": KIND, "pairs": KIND}}}])
    assert [task.name for task in plan(config) if task.kind == "pairs"] == ["held_out", "1-sft"]


def test_configuration_of_pairs_survives_its_own_file():
    config = configure("diffusion_dpo_sd15", [HUMAN])
    assert build(json.loads(config.model_dump_json())) == config


def test_relative_paths_of_both_folders_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = FOLDERS | {"path": "w", "losers": "l"}
    pairs = cli.absolute(configure("diffusion_dpo_sd15", [HUMAN | {"data": {"pairs": source}}])).data.pairs
    assert (pairs.path, pairs.losers) == (str(tmp_path / "w"), str(tmp_path / "l"))


# ---- pools and pairs


def given(tiny, tmp_path, source: dict, *assignments: str) -> tuple[list[dict], dict[str, dict]]:
    """The pair rows of a source, and the manifests of its tasks by kind: everything that comes before training."""
    tasks = serial.run(tiny_config(tiny, source, *assignments), tmp_path / "run", until="train 1-easy")
    store, path = Store(str(tmp_path / "run")), tasks["pairs 1-easy"].path
    names = {"index": "index pairs", "pool": "pool given-pairs", "pairs": "pairs 1-easy"}
    manifests = {kind: read_manifest(store, tasks[name].path) for kind, name in names.items()}
    return list(iter_rows(store, path)), manifests | {"store": (store, path), "tasks": tasks}


def test_given_pair_is_the_pair_of_the_same_images_of_two_pools(tiny, tmp_path):
    """What training reads is what pairing would make of real winners against real losers."""
    rows, _ = given(tiny, tmp_path, write_pairs(tmp_path, 3))
    config = tiny_config(tiny, FOLDERS)
    pipeline, spec = load_pipeline(config.model), {"domain": "real", "set": "real", "seed": 5}

    def side(name: str) -> dict:
        refs = [{"kind": "file", "path": str(tmp_path / name / f"{i}.png")} for i in range(3)]
        index = [{"id": f"{i:08d}", "prompt": CAPTIONS[i], "ref": json.dumps(ref)} for i, ref in enumerate(refs)]
        pool = pools.pool_shard(pipeline, config, spec, index, None)[0]
        return {"pool": pool, "scores": None, "source": name, "first": None}

    rule = PairRule(winner="random", loser="random")
    expected = pairing.pair_shard(rule, side("w"), side("l"), 0, same=False)[0].to_pylist()
    assert len(rows) == len(expected) == 3
    for row, other in zip(rows, expected, strict=True):
        latents = {key: np.frombuffer(row[key], np.float16) for key in ("winner_latent", "loser_latent")}
        for key, values in latents.items():  # batches of another size round otherwise
            np.testing.assert_allclose(values, np.frombuffer(other[key], np.float16), atol=2e-3, rtol=2e-3)
        same = row.keys() - latents.keys() - {"winner_source", "loser_source"}
        assert {key: row[key] for key in same} == {key: other[key] for key in same}
        assert row["label"] == 1.0 and not np.allclose(*latents.values(), atol=0.05)
    one, two = (make_batch(found, [1, 2, 3], 1000) for found in (rows, expected))
    torch.testing.assert_close(one.winner, two.winner, atol=2e-3, rtol=2e-3)
    assert torch.equal(one.label, two.label) and torch.equal(one.noise, two.noise)


def test_labels_reach_the_loss(tiny, tmp_path):
    """Of Pick-a-Pic rows: preferred first, ties with label 0.5, on which the loss is least when both are equal."""
    labels = [(1.0, 0.0, True), (0.0, 1.0, True), (0.5, 0.5, True), (0.0, 0.0, False), (0.2, 0.8, True)]
    files = {f"jpg_{side}": [picture(10 * i + side) for i in range(5)] for side in (0, 1)}
    pq.write_table(table(labels, **files), tmp_path / "a.parquet")
    source = {"kind": "pick_a_pic", "path": str(tmp_path / "a.parquet"), "ties": "keep"}
    rows, manifests = given(tiny, tmp_path, source)
    assert [row["prompt"] for row in rows] == ["caption 0", "caption 1", "caption 2", "caption 4"]
    assert [row["label"] for row in rows] == pytest.approx([1, 1, 0.5, 0.8])
    swapped = [False, True, False, True]
    for row, number, second in zip(rows, (0, 1, 2, 4), swapped, strict=True):
        for role, side in (("winner", second), ("loser", not second)):
            fitted = images.fit(images.decode(picture(10 * number + side), 10**6), (16, 16))[0]
            assert np.array_equal(np.array(images.decode(row[role], 10**6, 1)), fitted)
    assert manifests["index"]["statistics"] == {"dropped": {"no label": 1}}
    assert manifests["index"]["rejected"]["count"] == 0
    assert manifests["pairs"]["statistics"]["winner_sources"] == {"given-pairs": 4}
    store, path = manifests["store"]
    index = manifests["tasks"]["index pairs"]
    shown = {"artifact": index.path, "reason": "no label", "count": 1, "examples": []}
    assert reporting._rejected(index, store) == [shown]
    batch = make_batch([Pairs(store, path, 0, COLUMNS).at(i) for i in range(4)], [1] * 4, 1000)
    assert sorted(batch.label.tolist()) == pytest.approx([0.5, 0.8, 1, 1])
    tie = [losses.dpo(torch.tensor([e]), torch.tensor([1.0]), *torch.ones(2, 1), 2.0, 0.5)[0] for e in (0.5, 1.0, 1.5)]
    assert tie[1] < min(tie[0], tie[2])


def test_dry_run_counts_both_images(tiny, tmp_path):
    config, store = tiny_config(tiny, write_pairs(tmp_path, 3)), Store(str(tmp_path / "run"))
    lines = {tuple(line.split()[:2]): line.split()[2:4] for line in planning.show(config, store, store).splitlines()}
    assert lines["index", "pairs"] == ["3", "rows"] and lines["pool", "given-pairs"] == ["6", "images"]


def test_one_bad_image_sets_its_pair_aside(tiny, tmp_path):
    source = write_pairs(tmp_path, 6)
    (tmp_path / "w" / "1.png").write_bytes(picture(1)[:200])
    (tmp_path / "l" / "2.png").write_bytes(b"no image")
    (tmp_path / "l" / "3.png").write_bytes(picture(3))  # as the winner
    (tmp_path / "l" / "4.png").unlink()  # known from the listing
    rows, manifests = given(tiny, tmp_path, source)
    assert [row["prompt"] for row in rows] == [CAPTIONS[0], CAPTIONS[5]]
    assert [row["pair_id"] for row in rows] == ["00000000#0", "00000005#0"]
    assert manifests["index"]["rejected"] == {"count": 1, "reasons": {"malformed row": 1}}
    # of 3 pairs both images: a share of max_rejected is one of pairs as well as of images
    reasons = {"truncated": 1, "unsupported": 1, "pair set aside": 2, "identical images": 2}
    assert manifests["pool"]["rejected"] == {"count": 6, "reasons": reasons}


def test_shard_of_given_pairs(tiny, tmp_path):
    config = tiny_config(tiny, FOLDERS)
    pipeline, spec = load_pipeline(config.model), {"domain": "given", "set": "pairs", "seed": 5}
    table, rejected = pools.pool_shard(pipeline, config, spec, [], None)
    assert (table.num_rows, table.schema, rejected) == (0, POOL, [])
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "b.png").write_bytes(picture(2))
    refs = [{"kind": "file", "path": str(tmp_path / f"{name}.png")} for name in "ab"]
    index = [{"id": "x/1", "prompt": "one", "ref": json.dumps({"images": refs, "label": 1.0})}]
    table, rejected = pools.pool_shard(pipeline, config, spec, index, None)
    (row,) = table.to_pylist()
    assert rejected == [] and table.schema == POOL
    assert (row["prompt_id"], row["prompt"], row["seeds"], row["strengths"]) == ("x/1", "one", [0, 0], [0, 0])
    assert len(set(row["images"])) == len(set(row["latents"])) == 2


def test_empty_shard_gives_no_pairs():
    side = {"pool": POOL.empty_table(), "scores": None, "source": "given", "first": None}
    table, statistics = pairing.given_shard(side, INDEX.empty_table())
    assert (table.num_rows, table.schema) == (0, PAIRS)
    assert statistics == {"dropped": {}, "winner_sources": {"given": 0}, "loser_sources": {"given": 0}, "shapes": {}}
