"""A sweep's file: what may be searched, by what trials are compared, and one message for everything that is wrong."""

import re

import pytest
import yaml

from raypref import sweep
from raypref.recipes import configure
from raypref.remote.sweep import draw

RPO = {"stages.rpo.objective.beta": {"loguniform": [0.3, 3]}}
EASY = {"stages.easy.objective.beta": {"loguniform": [100, 1000]}}


@pytest.fixture
def load(tmp_path):
    def load(space, recipe="rpo_mini", assignments=(), **more):
        file = tmp_path / "space.yaml"
        file.write_text(yaml.safe_dump({"space": space, **more}, sort_keys=False))
        return sweep.load(str(file), recipe, [], list(assignments))

    return load


def test_the_shipped_spaces_are_valid():
    found = sweep.load("jobs/spaces/rpo_mini.yaml", "rpo_mini", [], [])
    assert found.objective == {"likeness": "max", "clip_t": "max"} == sweep.default_objective(found.config({}))
    assert sweep.watching(found.objective, found.config({})) == "rpo"
    assert sweep.rungs(found.objective, found.config({})) == 20
    staged = sweep.load("jobs/spaces/hgdpo.yaml", "mini", [], [])
    assert staged.objective == sweep.default_objective(staged.config({}))
    assert sweep.watching(staged.objective, staged.config({})) is None
    assert sweep.rungs(staged.objective, staged.config({})) == 4


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("mini", {"frechet_distance": "min", "second_win_rate": "max"}),
        ("rpo_mini", {"likeness": "max", "clip_t": "max"}),
        ("hgdpo_sd15", {"frechet_distance": "min", "second_win_rate": "max"}),
        ("rpo_sd15", {"dino": "max", "clip_t": "max"}),
    ],
)
def test_default_objectives_are_of_models_that_the_search_does_not_use(recipe, expected, tmp_path):
    data = []
    if "sd15" in recipe:
        (tmp_path / "a.png").write_bytes(b"")
        data = [f"data.subject={tmp_path}", "data.class_noun=toy"]
        if recipe == "hgdpo_sd15":
            data = [f"data.real={{kind: folder, path: {tmp_path}}}"]
    config = configure(recipe, None, data)
    assert sweep.default_objective(config) == expected
    used = sweep.searched_by(config)
    for scorer in (config.scorers[sweep.metrics(config)[metric][1]] for metric in expected):
        assert not used.keys() & set(sweep._identities(scorer.model_dump()))


@pytest.mark.parametrize(
    ("recipe", "space", "objective", "message"),
    [
        (
            "mini",
            EASY,
            {"loss": "min"},
            r"objective.loss: is a part of the training objective, which rescales with.*beta",
        ),
        ("mini", EASY, {"rewards/accuracies": "max"}, r"is a part of the training objective"),
        (
            "mini",
            EASY,
            {"preference_score": "max"},
            r"measured by scorers.preference, the model that stages.\w+.pairs uses",
        ),
        ("mini", EASY, {"win_rate_vs_base": "max"}, r"measured by scorers.preference"),
        ("rpo_mini", RPO, {"validation/reward": "max"}, r"is the reward that training is labelled.*monotone in lambda"),
        ("rpo_mini", RPO, {"s_img": "max"}, r"is the reward that training is labelled"),
        ("mini", EASY, {"frechet": "min"}, r"did you mean 'frechet_distance'"),
        ("mini", EASY, {"frechet_distance": "minimise"}, r"'minimise' must be min or max"),
        ("mini", EASY, {"frechet_distance": "max"}, r"frechet_distance: 'max', but better is 'min'"),
        ("mini", EASY, {"latent_mean_drift": "min", "clip_t": "max"}, r"is what the statistics loss lowers"),
        ("mini", EASY, {"color_drift": "min"}, r"best for a model that learned nothing"),
        ("mini", EASY, {}, r"objective: \{\}; expected metrics with min or max"),
    ],
)
def test_an_objective_that_depends_on_what_is_searched_is_refused(load, recipe, space, objective, message):
    with pytest.raises(ValueError, match=message):
        load(space, recipe, objective=objective)


def test_the_reward_model_is_known_under_another_name_and_kind(load):
    """The evaluation scorer has the weights of the pair model: another name, another kind, the same judge."""
    same = ["scorers.clip_t.args.model=mini:clip"]
    with pytest.raises(
        ValueError, match=r"clip_t: is measured by scorers.clip_t, the model that stages.rpo.validation"
    ):
        load(RPO, assignments=same, objective={"clip_t": "max"})
    assert load(RPO, assignments=same).objective == {"likeness": "max"}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"stages.rpo.validation.select": [0.3, 0.5]}, "follows every lambda_val already"),
        ({"stages.rpo.validation.images": [1, 2]}, "decides what is measured"),
        ({"evaluation.images": [1, 2]}, "has to be alike for all"),
        ({"data.eval_prompts.seed": [1, 2]}, "has to be alike for all"),
        ({"sampling.guidance": {"uniform": [1, 9]}}, "has to be alike for all"),
        ({"seed": [1, 2]}, "has to be alike for all"),
        ({"stages.rpo.validation": [{"select": 0.3}, {"select": 0.5}]}, "follows every lambda_val already"),
        ({"data": [{"holdout": 0.3}, {"holdout": 0.5}]}, "data.holdout: trials are compared by"),
        ({"data.real.identity": [0, 1]}, "changes the images or references that trials are measured on"),
        ({"data.image_quality": [80, 95]}, "changes the images or references that trials are measured on"),
        ({"stages.rpp.steps": [10]}, "the recipe rpo_mini has no stage 'rpp'; did you mean 'rpo'"),
        ({"stages.rpo.objective.beta": {"quniform": [1, 2, 0]}}, r"step must be above 0 and divide both ends"),
        ({"stages.rpo.objective.beta": {"quniform": [1, 2, 0.3]}}, r"step must be above 0 and divide both ends"),
        (
            {"stages.rpo.objective.bta": {"uniform": [1, 9]}},
            "stages.rpo.objective.bta: unknown key; did you mean 'beta'",
        ),
        (
            {"stages.rpo.pairs.lambda_train": {"uniform": [0, 2]}},
            r"lambda_train: Input should be less than or equal to 1",
        ),
        ({"stages.rpo.objective.beta": {"uniform": [3, 1]}}, r"uniform: \[3, 1\]; low must be below high"),
        ({"stages.rpo.objective.beta": {"loguniform": [0, 1]}}, r"low must be below high and above 0"),
        ({"stages.rpo.objective.beta": {"uniform": [1]}}, r"expected the numbers \[low, high\]"),
        ({"stages.rpo.objective.beta": {"unifrom": [1, 2]}}, "did you mean 'uniform'"),
        ({"stages.rpo.objective.beta": 3}, "3 is no distribution; give a list of values"),
        ({"stages.rpo.objective.beta": []}, "choice needs at least one value"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_field_and_value(load, space, message):
    with pytest.raises(ValueError, match=message):
        load(space)


def test_all_problems_come_in_one_message(load):
    with pytest.raises(ValueError) as error:
        load({"stages.rpo.steps": [0], "stages.rpo.objective.bta": [1], "stages.rpo.optim.lr": [1e-3]})
    assert re.search(r"(?s)space.yaml:.*bta: unknown key.*steps.*greater than or equal to 1", str(error.value))


@pytest.mark.parametrize(
    "content", ["", "space: {}", "space: [1]", "a: 1", "space: {a: [1]}\nobjectives: {b: min}", "{"]
)
def test_a_file_that_is_no_space_says_what_is_expected(tmp_path, content):
    (tmp_path / "space.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"--space .*space.yaml: (expected 'space:'|unknown key|not valid YAML)"):
        sweep.load(str(tmp_path / "space.yaml"), "mini", [], [])
    with pytest.raises(ValueError, match=r"--space nowhere.yaml: No such file"):
        sweep.load("nowhere.yaml", "mini", [], [])


def test_exponents_without_a_dot_are_numbers(tmp_path):
    (tmp_path / "space.yaml").write_text("space: {stages.rpo.optim.lr: {loguniform: [1e-4, 1e-3]}}")
    assert sweep.load(str(tmp_path / "space.yaml"), "rpo_mini", [], []).space == {
        "stages.rpo.optim.lr": ("loguniform", [1e-4, 1e-3])
    }


def test_random_trials_are_the_same_for_the_same_seed_and_valid(load):
    space = RPO | {"stages.rpo.loser.count": {"randint": [1, 5]}, "stages.rpo.objective.labels": ["sampled", "soft"]}
    found = load(space)
    trials = draw(found, 12)
    assert trials == draw(found, 12) and list(trials) == [f"{i:02d}" for i in range(12)]
    assert {k: trials[k] for k in list(trials)[:5]} == draw(found, 5)  # more trials go on where fewer ended
    assert trials != draw(load(space, assignments=["seed=1"]), 12)
    for parameters in trials.values():
        assert 0.3 <= parameters["stages.rpo.objective.beta"] <= 3
        assert type(parameters["stages.rpo.loser.count"]) is int
        config = found.config(parameters)
        assert config.stages["rpo"].loser.count == parameters["stages.rpo.loser.count"] < 5
    assert len({p["stages.rpo.objective.labels"] for p in trials.values()}) == 2


def test_parameters_that_do_not_go_together_are_told_before_anything_runs(load):
    found = load({"stages.rpo.steps": [20, 100], "stages.rpo.optim.warmup": [5, 50]})
    with pytest.raises(ValueError, match=r"trial 0: stages.rpo.optim.warmup: 50 steps of warm-up leave none of 20"):
        sweep.check(
            found, {"0": {"stages.rpo.steps": 20, "stages.rpo.optim.warmup": 50}, "1": {"stages.rpo.steps": 99}}
        )


def test_what_is_wrong_without_the_space_is_not_said_of_its_file(load):
    with pytest.raises(ValueError) as error:
        load(RPO, recipe="rpo_mni")
    assert "--space" not in str(error.value)


def test_the_order_of_the_file_changes_no_trial(load):
    space = RPO | {"stages.rpo.optim.lr": {"loguniform": [1e-4, 1e-3]}}
    assert draw(load(space), 3) == draw(load(dict(reversed(space.items()))), 3)
