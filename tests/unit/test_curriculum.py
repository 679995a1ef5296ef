"""The plan: parents first, paths that change exactly when their content would."""

import json

import pytest

from raypref.artifacts import digest
from raypref.curriculum import plan
from raypref.recipes import RECIPES, configure
from raypref.tasks import KINDS, images_a_row, waves
from tests.conftest import configured


def mini(*assignments: str):
    return plan(configure("mini", None, list(assignments)))


def paths(tasks) -> dict[tuple[str, str], str]:
    """Path of each task, by kind and place in the run: names hold no hashes but those of scores, which name their pool."""
    found = {}
    for task in tasks:
        pool = next((t.name for t in tasks if t.path == task.spec.get("pool")), "")
        name = f"{pool}/{task.spec['scorer']}" if task.kind == "score" else task.name
        assert (task.kind, name) not in found
        found[(task.kind, name)] = task.path
    return found


def changed(*assignments: str) -> set[tuple[str, str]]:
    """What of mini's plan has another path under the assignments; the tasks must be the same ones."""
    before, after = paths(mini()), paths(mini(*assignments))
    assert before.keys() == after.keys()
    return {key for key in before if before[key] != after[key]}


def downstream(first: str) -> set[tuple[str, str]]:
    """Everything that the weights of a stage decide: all tasks that have it among their ancestors."""
    tasks = mini()
    names = {path: key for key, path in paths(tasks).items()}
    reached = {t.path for t in tasks if t.kind == "train" and t.model == first}
    for task in tasks:
        if reached.intersection(task.parents):
            reached.add(task.path)
    return {names[path] for path in reached}


@pytest.mark.parametrize("recipe", RECIPES)
def test_parents_come_before_their_children(recipe):
    tasks = plan(configured(recipe))
    seen = set()
    for task in tasks:
        assert task.kind in KINDS
        assert set(task.parents) <= seen, task.path
        seen.add(task.path)
    assert len(seen) == len(tasks)  # paths are unique


@pytest.mark.parametrize("recipe", RECIPES)
def test_paths_are_folders_of_their_kind_that_end_in_the_hash_of_the_fields(recipe):
    folders = {
        "index": "sources",
        "pool": "pools",
        "score": "scores",
        "pairs": "pairs",
        "train": "train",
        "evaluate": "eval",
    }
    for task in plan(configured(recipe)):
        assert task.path == f"{folders[task.kind]}/{task.name}-{digest(task.fields)[:8]}"
        json.dumps([task.fields, task.spec])  # plain values
        assert task.shared == (task.kind in ("index", "pool", "score"))


def test_plan_is_a_function_of_the_configuration():
    assert mini() == mini()


def test_what_mini_consists_of():
    tasks = mini()
    kinds = [t.kind for t in tasks]
    assert {kind: kinds.count(kind) for kind in KINDS} == {
        "index": 4,  # prompts, real images, and each for evaluation
        "pool": 11,  # 2 real, 2 of the base, 3 of easy, 2 of normal, 1 of hard, 1 of text_encoder
        "score": 31,  # 5 of each of 6 evaluation pools, and the preference of the base's training pool
        "pairs": 5,  # 4 stages and the held-out ones
        "train": 4,
        "evaluate": 5,  # base and 4 stages
    }
    assert [t.name for t in tasks if t.kind == "train"] == ["1-easy", "2-normal", "3-hard", "4-text_encoder"]


def test_stages_use_the_pools_of_the_model_they_start_from():
    tasks = {(t.kind, t.name): t for t in mini()}
    by_path = {t.path: t for t in tasks.values()}

    def sources(stage):
        spec = tasks[("pairs", stage)].spec
        return [by_path[spec[role]["pool"]].name for role in ("winner", "loser")]

    assert sources("1-easy") == ["base-generated-prompts"] * 2
    assert sources("2-normal") == ["easy-reconstructed-real", "easy-generated-real"]
    assert sources("3-hard") == ["real", "normal-generated-real"]
    assert sources("4-text_encoder") == ["base-generated-prompts"] * 2
    starts = [tasks[("train", n)].spec["start"] for n in ("1-easy", "2-normal", "3-hard", "4-text_encoder")]
    assert starts == [None, *(tasks[("train", n)].path for n in ("1-easy", "2-normal", "3-hard"))]


# what changes what


@pytest.mark.parametrize("stage", ["easy", "normal", "hard", "text_encoder"])
@pytest.mark.parametrize("setting", ["objective.beta=777", "optim.lr=0.001", "steps=99"])
def test_training_settings_change_the_training_and_what_follows(stage, setting):
    found = changed(f"stages.{stage}.{setting}")
    assert found == downstream(stage)
    # and so neither its own pairs nor the pools they are of
    number = ["easy", "normal", "hard", "text_encoder"].index(stage) + 1
    assert ("train", f"{number}-{stage}") in found
    assert ("pairs", f"{number}-{stage}") not in found
    assert ("pool", "base-generated-prompts") not in found


def test_last_stage_changes_nothing_but_itself():
    found = changed("stages.text_encoder.objective.beta=777")
    assert {key for key in found if key[0] == "train"} == {("train", "4-text_encoder")}
    assert {key for key in found if key[0] == "pairs"} == set()
    assert {key for key in found if key[0] == "pool"} == {("pool", "text_encoder-generated-eval_prompts")}


def test_seed_changes_everything_but_the_lists_of_sources():
    kept = paths(mini()).keys() - changed("seed=1")
    # sources with evaluation sets of their own are split by no seed
    assert kept == {("index", name) for name in ("prompts", "eval_prompts", "real", "eval_real")}
    base = ["data.eval_prompts=null", "data.eval_real=null"]
    before, after = paths(mini(*base)), paths(mini(*base, "seed=1"))
    assert all(before[key] != after[key] for key in before)


def test_choosing_pairs_again_keeps_all_images():
    found = changed("stages.easy.pairs.first=4", "stages.easy.pairs.min_gap=0.1")
    assert ("pairs", "1-easy") in found
    # those of the base model are what the stage chooses from; the others are of models that change with the pairs
    of_base = {key for key in found if key[0] in ("pool", "score") and (key[1].startswith(("base", "real")))}
    assert of_base == set()
    assert found == {("pairs", "1-easy")} | downstream("easy")


def test_another_scorer_keeps_all_images_of_the_base():
    before, after = paths(mini()), paths(mini("stages.easy.pairs.scorer=clip_t"))
    pools = [key for key in before if key[0] == "pool" and key[1].startswith(("base", "real"))]
    assert pools and all(before[key] == after[key] for key in pools)
    assert before[("pairs", "1-easy")] != after[("pairs", "1-easy")]
    assert ("score", "base-generated-prompts/clip_t") in after


def test_arguments_of_a_scorer_change_its_scores_and_their_pairs_alone():
    found = changed("scorers.preference.args.scale=false")
    assert {key for key in found if key[0] == "pool" and key[1].startswith(("base", "real"))} == set()
    assert ("score", "base-generated-prompts/preference") in found
    assert ("score", "base-generated-eval_prompts/clip_t") not in found
    assert {("pairs", "1-easy"), ("pairs", "held_out")} <= found


@pytest.mark.parametrize(
    "assignment",
    [
        "training.workers=1",
        "training.micro_batch=4",
        "training.checkpoint_every=7",
        "sampling.batch_size=3",
        "scorers.preference.batch_size=3",
        "resources.wait_s=1",
        "evaluation.grid=3",
    ],
)
def test_settings_of_how_a_run_is_executed_change_no_path(assignment):
    assert changed(assignment) == set()


@pytest.mark.parametrize(
    "assignment",
    ["model.base=other", "model.resolution=32", "sampling.steps=11", "sampling.guidance=3", "model.dtype=bfloat16"],
)
def test_settings_of_the_images_change_all_pools_that_are_drawn(assignment):
    drawn = {key for key in paths(mini()) if key[0] == "pool" and "generated" in key[1]}
    assert len(drawn) == 8
    assert drawn <= changed(assignment)


def test_pool_is_as_large_as_its_largest_user_and_each_user_takes_its_first():
    tasks = {(t.kind, t.name): t for t in mini("stages.easy.winner.count=12", "stages.easy.loser.count=6")}
    pool = tasks[("pool", "base-generated-prompts")]
    assert (pool.spec["count"], images_a_row(pool.fields)) == (12, 12)
    firsts = {
        n: [tasks[("pairs", n)].spec[role]["first"] for role in ("winner", "loser")]
        for n in ("1-easy", "4-text_encoder")
    }
    assert firsts == {"1-easy": [12, 6], "4-text_encoder": [8, 8]}


def test_first_is_the_smaller_of_rule_and_domain():
    tasks = {(t.kind, t.name): t for t in mini("stages.easy.pairs.first=3", "stages.hard.pairs.first=1")}
    assert tasks[("pairs", "1-easy")].spec["winner"]["first"] == 3
    assert tasks[("pairs", "3-hard")].spec["winner"]["first"] is None  # real images come one a row
    assert tasks[("pairs", "3-hard")].spec["loser"]["first"] == 1


def test_images_a_row():
    tasks = {t.name: t for t in mini("stages.normal.winner.strengths=[0.2, 0.4, 0.6]")}
    assert images_a_row(tasks["easy-reconstructed-real"].fields) == 3
    assert images_a_row(tasks["real"].fields) == 1
    assert images_a_row(tasks["base-generated-eval_prompts"].fields) == 2  # for held-out pairs
    assert images_a_row(tasks["hard-generated-eval_prompts"].fields) == 1


def test_evaluation_prompts_are_the_held_out_captions_where_there_are_no_others():
    tasks = mini("data.prompts=null", "data.eval_prompts=null", "data.eval_real=null")
    indexes = {t.name: t.fields["part"] for t in tasks if t.kind == "index"}
    assert indexes == {"real": "train", "eval_real": "held_out"}
    names = {t.name for t in tasks if t.kind == "pool"}
    assert {"base-generated-real", "base-generated-eval_real", "real", "real-eval_real"} <= names


# waves


def test_waves_keep_the_order_and_lose_nothing():
    tasks = mini()
    assert [t for wave in waves(tasks) for t in wave] == tasks


def test_images_of_one_model_are_one_wave_and_the_rest_alone():
    shape = [[(t.kind, t.model) for t in wave] for wave in waves(mini())]
    for wave in shape:
        if len(wave) > 1:
            assert {kind for kind, _ in wave} <= {"pool", "score"}
            assert len({model for _, model in wave}) == 1
    models = [wave[0][1] for wave in shape if wave[0][0] == "pool"]
    assert models == ["base", "easy", "normal", "hard", "text_encoder"]  # each model is loaded once


def test_pool_that_is_made_from_another_of_the_wave_begins_a_new_one():
    tasks = mini("stages.normal.winner.model=base")
    pools = [[t.name for t in wave if t.kind == "pool"] for wave in waves(tasks) if wave[0].model == "base"]
    (of_real,) = [wave for wave in pools if "real" in wave]
    (reconstructed,) = [wave for wave in pools if "base-reconstructed-real" in wave]
    assert of_real is not reconstructed
    # scores of a pool are of its wave, or of a later one
    seen = set()
    for wave in waves(tasks):
        seen |= {t.path for t in wave}
        assert all(set(t.parents) <= seen for t in wave)


def test_no_tasks_no_waves():
    assert list(waves([])) == []


def test_real_images_for_evaluation_alone_give_a_frechet_distance():
    data = {"prompts": {"kind": "prompts", "path": "/p.txt"}, "eval_real": {"kind": "folder", "path": "/photos"}}
    tasks = plan(configure("diffusion_dpo_sd15", [{"data": data}]))
    assert [t.name for t in tasks if t.kind == "index"] == ["prompts", "eval_prompts", "eval_real"]
    assert all("real" in t.spec["pools"] for t in tasks if t.kind == "evaluate")


def pools_of(config) -> dict[str, str]:
    return {t.name: t.path for t in plan(config) if t.kind == "pool"}


def test_the_description_of_a_single_file_decides_its_images():
    a, b = (pools_of(configure("mini", None, ["model.base=m.safetensors", f"model.config={name}"])) for name in "ab")
    assert not set(a.values()) & set(b.values())


def test_a_lora_to_begin_with_changes_what_is_drawn_and_not_what_is_encoded():
    plain, begun = (pools_of(configure("mini", None, change)) for change in ([], ["model.lora=x.safetensors"]))
    assert {name for name in plain if plain[name] == begun[name]} == {"real", "real-eval_real"}
    modes = [pools_of(configure("mini", None, ["model.lora=x", f"model.lora_mode={m}"])) for m in ("merge", "continue")]
    assert modes[0]["base-generated-prompts"] != modes[1]["base-generated-prompts"]


def test_buckets_make_captions_be_drawn_in_the_size_of_their_real_image():
    config = configure("mini", None, ["model.buckets=true"])
    tasks = {t.name: t for t in plan(config) if t.kind == "pool"}
    drawn, real = tasks["normal-generated-real"], tasks["real"]
    assert drawn.spec["real"] == real.path in drawn.parents
    assert (
        "real" not in tasks["base-generated-prompts"].spec
        and "buckets" not in tasks["base-generated-eval_prompts"].fields
    )
    assert "buckets" not in tasks["real-eval_real"].fields  # compared with images of other prompts, which are square
    stricter = pools_of(configure("mini", None, ["model.buckets=true", "data.min_side=99"]))
    assert stricter["normal-generated-real"] != drawn.path  # which real images there are decides sizes
    unlike = pools_of(configure("mini"))
    assert unlike["real"] != real.path and unlike["base-generated-prompts"] == tasks["base-generated-prompts"].path
    alone = configure("mini", None, ["model.buckets=true", "data.prompts=null", "data.eval_prompts=null"])
    held_out = {t.name: t for t in plan(alone) if t.kind == "pool"}
    assert held_out["real-eval_real"].fields["buckets"] and held_out["base-generated-eval_real"].spec["real"]
