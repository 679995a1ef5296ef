"""Every recipe is a whole, valid, documented run that its config.json replays."""

import json

import pytest

from raypref.config import build
from raypref.curriculum import plan
from raypref.recipes import RECIPES, configure
from raypref.scorers import TABLE
from tests.conftest import configured


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_valid_documented_and_can_be_planned(name):
    config = configured(name)
    assert config.recipe == name
    assert len(RECIPES[name].__doc__.splitlines()[0]) > 30
    assert plan(config)
    for scorer in config.scorers.values():
        assert scorer.kind in TABLE


@pytest.mark.parametrize("name", RECIPES)
def test_config_json_replays_the_recipe(name):
    config = configured(name)
    text = json.dumps(config.model_dump(mode="json"))
    replayed = build(json.loads(text))
    assert replayed == config
    assert json.dumps(replayed.model_dump(mode="json")) == text
    assert [t.path for t in plan(replayed)] == [t.path for t in plan(config)]


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("sd15")])
def test_recipe_without_its_data_says_which_is_missing(name):
    with pytest.raises(ValueError, match=r"neither data\.prompts nor data\.real is given"):
        configure(name)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("sd15") and "rpo" not in name])
def test_recipe_runs_on_captions_of_real_images_alone(name):
    assert plan(configure(name, None, ["data.real={kind: folder, path: photos}"]))


def test_recipes_do_not_share_what_a_caller_could_change():
    for make in RECIPES.values():
        tree = make()
        for stage in tree["stages"].values():
            stage["steps"] = -1
        tree["scorers"].clear()
        assert all(stage["steps"] > 0 for stage in make()["stages"].values()) and make()["scorers"]


def test_hgdpo_is_the_papers():
    """The paper: domains, steps and ranks of the four stages; beta 2500; each stage from the one before."""
    config = configured("hgdpo_sd15")
    stages = config.stages
    assert list(stages) == ["easy", "normal", "hard", "text_encoder"]
    kinds = [(s.winner.kind, s.loser.kind) for s in stages.values()]
    assert kinds == [
        ("generated", "generated"),
        ("reconstructed", "generated"),
        ("real", "generated"),
        ("generated", "generated"),
    ]
    assert [s.steps for s in stages.values()][:3] == [300_000, 20_000, 20_000]
    assert [lora.rank for s in stages.values() for lora in s.lora.modules.values()] == [8, 8, 8, 64]
    assert [[*s.lora.modules] for s in stages.values()] == [["unet"]] * 3 + [["text_encoder"]]
    assert {s.objective.beta for s in stages.values()} == {2500}
    assert [s.objective.statistics is not None for s in stages.values()] == [True, False, False, False]
    assert {s.start for s in stages.values()} == {"previous"}
    assert (stages["easy"].winner.count, stages["easy"].pairs.winner, stages["easy"].pairs.loser) == (
        8,
        "best",
        "worst",
    )
    assert config.scorers[stages["easy"].pairs.scorer].kind == "pickscore"


def test_full_recipes_train_the_whole_unet_as_the_paper_does():
    """The paper: RPO of the full U-Net at a learning rate of 5e-6, one pair a step, the best of 400 by looks at every 40th."""
    stage = configured("rpo_full_sd15").stages["rpo"]
    assert (stage.lora, stage.optim.lr, stage.batch_size, stage.steps) == (None, 5e-6, 1, 400)
    assert stage.validation.every == 40 and stage.validation.watch
    baseline = configured("dreambooth_full_sd15").stages["dreambooth"]
    assert (baseline.lora, baseline.optim, baseline.batch_size) == (None, stage.optim, 1)
    assert configured("rpo_sd15").stages["rpo"].lora


def test_unknown_recipe_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match="--recipe 'maxi': there are mini, rpo_mini"):
        configure("maxi")


def test_sft_generates_nothing_to_train_on():
    """Winners alone: the base model draws evaluation images and no losers."""
    generated = [t for t in plan(configured("sft_sd15")) if t.kind == "pool" and t.spec["domain"] == "generated"]
    assert {t.spec["set"] for t in generated} == {"eval_prompts"}
    (pairs,) = (t for t in plan(configured("sft_sd15")) if t.kind == "pairs" and t.name != "held_out")
    assert pairs.spec["winner"]["pool"] == pairs.spec["loser"]["pool"] and not pairs.spec["same"]
