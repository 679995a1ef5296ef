"""What a configuration accepts, and what it says about what it does not accept: all at once, with the path to change."""

import time

import pytest
import yaml

from raypref import overlays
from raypref.config import RunConfig, build
from raypref.consistency import prompt_set, start_of
from raypref.curriculum import plan
from raypref.recipes import configure
from raypref.stages import Stage


def problems(*assignments: str, recipe: str = "mini") -> list[str]:
    """The lines of the error, one a problem, after checking the count in its first line."""
    with pytest.raises(ValueError) as caught:
        configure(recipe, None, list(assignments))
    first, *lines = str(caught.value).splitlines()
    assert first == f"{len(lines)} problem(s) in the configuration:"
    return [line.strip() for line in lines]


# keys and types


@pytest.mark.parametrize(
    "assignment, expected",
    [
        ("sede=1", "sede: unknown key; did you mean 'seed'?"),
        ("stages.easy.stpes=3", "stages.easy.stpes: unknown key; did you mean 'steps'?"),
        ("scorers.preference.knid=a", "scorers.preference.knid: unknown key; did you mean 'kind'?"),
        ("training.microbatch=1", "training.microbatch: unknown key; did you mean 'micro_batch'?"),
        # inside a tagged union: of the fields of that kind alone, and without the tag in the path
        ("stages.easy.objective.betta=3", "stages.easy.objective.betta: unknown key; did you mean 'beta'?"),
        ("stages.easy.winner.cuont=3", "stages.easy.winner.cuont: unknown key; did you mean 'count'?"),
        (
            "stages.easy.objective.statistics.wieght=2",
            "stages.easy.objective.statistics.wieght: unknown key; did you mean 'weight'?",
        ),
        ("data.real.pathh=x", "data.real.pathh: unknown key; allowed: kind, seed, count, start, identity, caption"),
    ],
)
def test_unknown_key_is_refused_with_a_suggestion(assignment, expected):
    assert problems(assignment) == [expected]


@pytest.mark.parametrize(
    "assignment, path, given",
    [
        ("seed=-1", "seed", "-1"),
        ("stages.easy.lora.unet.rank=eight", "stages.easy.lora.unet.rank", "'eight'"),
        ("stages.easy.steps=0", "stages.easy.steps", "0"),
        ("stages.easy.objective.beta=0", "stages.easy.objective.beta", "0"),
        ("stages.easy.lora.unet.targets=to_q", "stages.easy.lora.unet.targets", "'to_q'"),
        ("training.zero_stage=4", "training.zero_stage", "4"),
        ("data.holdout=1", "data.holdout", "1"),
        ("stages.normal.winner.strengths=[]", "stages.normal.winner.strengths", "[]"),
        ("model.base=null", "model.base", "None"),
        ("sampling.guidance=0.5", "sampling.guidance", "0.5"),
    ],
)
def test_wrong_value_is_refused_with_its_path_and_value(assignment, path, given):
    (line,) = problems(assignment)
    assert line.startswith(f"{path}: ")
    assert line.endswith(f"(given: {given})")


def test_required_fields_are_named():
    assert problems("stages.new={}") == [f"stages.new.{n}: is required" for n in ("winner", "steps", "batch_size")]


def test_all_problems_come_in_one_message():
    lines = problems("sede=1", "stages.easy.steps=0", "stages.hard.objective.betta=1", "model.resolution=4")
    assert {line.split(":")[0] for line in lines} == {
        "sede",
        "stages.easy.steps",
        "stages.hard.objective.betta",
        "model.resolution",
    }
    lines = problems("stages.easy.pairs.scorer=preferense", "stages.normal.optim.warmup=100", "evaluation.scorers=[x]")
    assert len(lines) == 3


# combinations


@pytest.mark.parametrize(
    "assignments, expected",
    [
        (
            ["data.prompts=null", "data.real=null"],
            "data: neither data.prompts nor data.real is given; give one (data.prompts.kind=prompts, .path=FILE)",
        ),
        (["evaluation.preference=preferense"], "evaluation.preference: 'preferense' is not in scorers"),
        (["evaluation.features=nothing_like_it"], "evaluation.features: 'nothing_like_it' is not in scorers"),
        (["evaluation.scorers=[clip_tt]"], "evaluation.scorers: 'clip_tt' is not in scorers"),
        (["stages.easy.pairs.scorer=preferense"], "did you mean 'preference'?"),
        (["stages.easy.pairs.scorer=null"], "stages.easy.pairs.scorer: best against worst needs a scorer"),
        (
            ["stages.hard.pairs.min_gap=0.5"],
            "stages.hard.pairs.scorer: random against random needs a scorer",
        ),
        (["stages.easy.pairs.winner=top"], "stages.easy.pairs: winner=top goes with loser=bottom, and only with it"),
        (["stages.easy.pairs.loser=bottom"], "stages.easy.pairs: winner=top goes with loser=bottom, and only with it"),
        (["stages.easy.pairs.k=2"], "stages.easy.pairs.k: 2 needs winner=top and loser=bottom"),
        (
            ["stages.easy.pairs={winner: top, loser: bottom, k: 5}"],
            "stages.easy: 8 candidate(s) a prompt cannot give 5 pair(s) within one domain; raise count",
        ),
        (
            ["stages.easy.pairs.first=1"],
            "stages.easy: 1 candidate(s) a prompt cannot give 1 pair(s) within one domain; raise count",
        ),
        (
            ["stages.easy.winner.count=1", "stages.easy.loser.count=1"],
            "stages.easy: 1 candidate(s) a prompt cannot give 1 pair(s) within one domain; raise count",
        ),
        (
            ["stages.hard.loser.prompts=prompts"],
            "stages.hard: winner and loser are of different prompts (real and prompts); set stages.hard.loser.prompts",
        ),
        (
            ["stages.easy.winner.model=hard"],
            "stages.easy.winner.model: 'hard' is not start, base or an earlier stage (base)",
        ),
        (
            ["stages.hard.start=text_encoder"],
            "stages.hard.start: 'text_encoder' is not base, previous or an earlier stage (base, easy, normal)",
        ),
        (
            ["stages.normal.start=foo"],
            "stages.normal.start: 'foo' is not base, previous or an earlier stage (base, easy)",
        ),
        (["stages.easy.start=easy"], "stages.easy.start: 'easy' is not base, previous or an earlier stage (base)"),
        (["stages.easy.optim.warmup=100"], "stages.easy.optim.warmup: 100 steps of warm-up leave none of 100 to train"),
        (
            ["stages.easy.batch_size=20"],
            "stages.easy.batch_size: 20 pairs cannot be split over training.workers=2 x training.micro_batch=8; "
            "make it a multiple of 16",
        ),
        (["stages.hard.loser=null"], "stages.hard.loser: is required; only the objective sft trains on winners alone"),
        (
            ["stages.hard.lora=null"],
            "stages.hard.start: 'previous' (normal) is not base, where a stage without lora starts; set start=base",
        ),
        (
            ["stages.easy.lora=null"],
            "stages.normal.start: 'previous' (easy) trains all of the U-Net (it has no lora), which no stage goes on from; set "
            "start=base or an earlier stage with a lora",
        ),
        (["stages.easy.pairs.ranks=[3, 1]"], "stages.easy.pairs.ranks: [3, 1] must be [least, most]"),
        (
            ["stages.easy.pairs.ranks=[8, 9]"],
            "stages.easy: ranks of 8 candidate(s) a prompt never differ by 8; raise count",
        ),
        (["stages.hard.pairs.ranks=[1, 1]"], "stages.hard.pairs.ranks: compares images of one domain by a scorer"),
        (
            ["stages.easy.lora.unet=null"],
            "stages.easy.lora: names no module; give unet, text_encoder or text_encoder_2, or null",
        ),
        (["resources.train.actors=2"], "resources.train.actors: the number of training workers is training.workers"),
        (
            ["stages.hard.lora.unet.rank=4"],
            "stages.hard.lora.unet: differs from that of an earlier stage, whose adapter it continues",
        ),
    ],
)
def test_impossible_combination_is_refused(assignments, expected):
    start = time.monotonic()
    assert any(expected in line for line in problems(*assignments))
    assert time.monotonic() - start < 5  # a stage that starts from itself once sent it round and round


def test_stage_that_needs_real_images_without_any():
    assert problems("data.prompts={kind: prompts, path: x.txt}", recipe="sft_sd15") == [
        "stages.sft.winner: needs real images; give data.real",
    ]


@pytest.mark.parametrize("name", ["base", "start", "previous", "real", "a.b", "a/b", "a b", ""])
def test_names_that_a_stage_cannot_have(name):
    with pytest.raises(ValueError, match=r"a stage's name is letters, digits, _ and -"):
        build(with_stage(name))


@pytest.mark.parametrize("name", ["easy-2", "stage_3", "x"])
def test_names_that_a_stage_can_have(name):
    assert list(build(with_stage(name)).stages) == [name]


def with_stage(name: str) -> dict:
    tree = configure("mini").model_dump(mode="json")
    return tree | {"stages": {name: tree["stages"]["easy"]}}


@pytest.mark.parametrize(
    "assignments",
    [
        ["stages.easy.pairs={winner: top, loser: bottom, k: 4}"],
        ["stages.easy.pairs.first=2"],
        ["stages.hard.lora.unet.rank=4", "stages.hard.start=base"],  # nothing that it continues
        ["stages.hard.lora={unet: null, text_encoder: {rank: 4}}", "stages.text_encoder=null"],
        ["stages.hard.lora.text_encoder.rank=64"],  # together with the U-Net
        ["stages.hard.start=easy"],
        ["stages.easy.lora=null", "stages.normal.start=base"],  # nothing goes on from easy
        ["stages.hard.lora=null", "stages.hard.start=base", "stages.text_encoder.start=normal"],
        ["stages.hard.winner.kind=reconstructed"],
        ["data.prompts=null", "data.eval_prompts=null"],  # captions of the real images
        ["stages.easy.batch_size=48", "training.workers=1"],
    ],
)
def test_possible_combination_is_accepted(assignments):
    configure("mini", None, assignments)


def test_configuration_does_not_change_after_validation():
    config = configure("mini")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValueError, match="frozen"):
        config.stages["easy"].optim.lr = 1.0


# overlays


@pytest.mark.parametrize(
    "base, change, expected",
    [
        ({"a": 1, "b": 2}, {"b": 3}, {"a": 1, "b": 3}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3, "z": 4}}, {"a": {"x": 1, "y": 3, "z": 4}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),  # lists are replaced
        ({"a": {"x": 1}}, {"a": 5}, {"a": 5}),
        ({"a": 5}, {"a": {"x": 1}}, {"a": {"x": 1}}),
        ({"a": {"x": 1}, "b": 2}, {"a": None}, {"b": 2}),  # null removes a mapping
        ({"a": 1}, {"a": None}, {"a": None}),  # and is a value where a value is
        ({"a": {"kind": "dpo", "beta": 1}}, {"a": {"kind": "sft"}}, {"a": {"kind": "sft"}}),  # another kind replaces
        ({"a": {"kind": "dpo", "beta": 1}}, {"a": {"kind": "dpo", "k": 2}}, {"a": {"kind": "dpo", "beta": 1, "k": 2}}),
        ({"a": {"kind": "dpo", "beta": 1}}, {"a": {"beta": 2}}, {"a": {"kind": "dpo", "beta": 2}}),
        ({}, {"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 1}}}),
    ],
)
def test_merge(base, change, expected):
    before = yaml.safe_dump(base)
    assert overlays.merge(base, change) == expected
    assert yaml.safe_dump(base) == before  # in place it would change the recipe of the next run


def test_order_of_keys_is_kept_so_that_stages_keep_theirs():
    merged = overlays.merge({"easy": {"a": 1}, "hard": {"a": 2}}, {"late": {"a": 3}, "easy": {"a": 4}})
    assert list(merged) == ["easy", "hard", "late"]


def test_overlays_then_assignments_the_last_one_wins():
    first, second = {"stages": {"easy": {"steps": 7}}, "seed": 1}, {"stages": {"easy": {"steps": 8}}}
    config = configure("mini", [first, second], ["stages.easy.optim.lr=0.5", "stages.easy.optim.lr=0.25"])
    assert (config.stages["easy"].steps, config.seed, config.stages["easy"].optim.lr) == (8, 1, 0.25)
    assert config.stages["easy"].optim.warmup == 5  # the recipe's, beside the changed field


def test_stages_can_be_removed_and_added():
    config = configure("mini", None, ["stages.normal=null", "stages.easy.objective.statistics=null"])
    assert list(config.stages) == ["easy", "hard", "text_encoder"]
    assert config.stages["easy"].objective.statistics is None
    assert start_of(config, "hard") == "easy"


def test_no_stages_evaluate_the_base_and_an_adapter_from_elsewhere():
    config = configure("mini", None, ["stages=null", "model.lora=adapter.safetensors"])
    assert config.stages == {}
    base, plain = ({t.kind for t in plan(c)} for c in (config, configure("mini", None, ["stages=null"])))
    assert base == plain == {"index", "pool", "score", "evaluate"}
    assert {t.name for t in plan(config) if t.kind == "index"} == {"eval_prompts", "eval_real"}  # nothing to train on
    paths = [
        {t.path for t in plan(c) if t.kind == "evaluate"} for c in (config, configure("mini", None, ["stages=null"]))
    ]
    assert not paths[0] & paths[1]


@pytest.mark.parametrize("change", [{"lora": None}, {"lora": {"unet": {"rank": 2}}}])
def test_null_is_no_lora(change):
    """Over a recipe's LoRA, where null takes a mapping away, and over a stage that has none."""
    for base in ("rpo_mini", configure("rpo_mini", None, ["stages.rpo.lora=null"]).model_dump(mode="json")):
        stage = configure(base, [{"stages": {"rpo": change}}]).stages["rpo"]
        assert (stage.lora and stage.lora.unet.rank, stage.output) == (
            (2, "lora") if change["lora"] else (None, "unet")
        )


@pytest.mark.parametrize("start", ["easy", "foo"])
def test_a_wrong_start_of_a_stage_without_lora_is_one_problem(start):
    changes = ["stages.easy.lora=null", "stages.normal.lora=null", f"stages.normal.start={start}"]
    (line,) = problems(*changes, "stages.hard=null", "stages.text_encoder=null")
    assert line.startswith(f"stages.normal.start: '{start}' is not base")


def test_another_kind_drops_the_fields_of_the_old_one():
    config = configure("mini", None, ["stages.easy.objective={kind: sft}", "data.real={kind: folder, path: photos}"])
    assert config.stages["easy"].objective.kind == "sft"
    assert config.data.real.model_dump(exclude_none=True) == {"kind": "folder", "path": "photos"}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a=1", {"a": 1}),
        ("a.b.c=1e-5", {"a": {"b": {"c": "1e-5"}}}),  # YAML 1.1 reads this as text; pydantic makes it a number
        ("a.b=[to_q, to_out.0]", {"a": {"b": ["to_q", "to_out.0"]}}),
        ("a=null", {"a": None}),
        ("a=true", {"a": True}),
        ("a={kind: sft}", {"a": {"kind": "sft"}}),
        ("a=x=y", {"a": "x=y"}),
        ("a=", {"a": None}),
    ],
)
def test_assignment(text, expected):
    assert overlays.assignment(text) == expected


def test_learning_rate_in_scientific_notation_is_a_number():
    assert configure("mini", None, ["stages.easy.optim.lr=1e-5"]).stages["easy"].optim.lr == 1e-5


@pytest.mark.parametrize("text", ["stages.easy.steps", "=1", "a..b=1", ".a=1", "a.=1"])
def test_assignment_without_path_or_value_is_refused(text):
    with pytest.raises(ValueError, match="expected path=value, such as"):
        overlays.assignment(text)


def test_assignment_that_is_no_yaml_is_refused():
    with pytest.raises(ValueError, match=r"--set 'a=\[1': the value is not valid YAML"):
        overlays.assignment("a=[1")


# what stages refer to


def test_start_of_stages():
    config = configure("mini", None, ["stages.hard.start=easy", "stages.text_encoder.start=base"])
    assert [start_of(config, name) for name in config.stages] == ["base", "easy", "easy", "base"]


def test_prompts_of_a_domain():
    config = configure("mini")
    assert prompt_set(config.stages["easy"].winner, config) == "prompts"
    assert prompt_set(config.stages["hard"].loser, config) == "real"
    assert prompt_set(config.stages["normal"].winner, config) == "real"
    without = configure("mini", None, ["data.prompts=null", "data.eval_prompts=null"])
    assert prompt_set(without.stages["easy"].winner, without) == "real"


def test_every_field_of_a_stage_is_a_path():
    """`--set` reaches what is not in the recipe."""
    config = configure("mini", None, ["stages.easy.optim.ema=0.9", "stages.easy.flip=true", "sampling.steps=3"])
    stage = config.stages["easy"]
    assert isinstance(config, RunConfig) and isinstance(stage, Stage)
    assert (stage.optim.ema, stage.flip, config.sampling.steps) == (0.9, True, 3)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("stages.rpo.validation.features=rewart", "stages.rpo.validation.features: 'rewart' is not in scorers"),
        ("stages.rpo.pairs.features=rewart", "stages.rpo.pairs.features: 'rewart' is not in scorers"),
        (
            "stages.rpo.pairs={kind: score, scorer: clip_t}",
            "stages.rpo.pairs: the objective rpo needs labels from rewards",
        ),
        ("stages.rpo.optim.ema=0.9", "stages.rpo.optim.ema: 0.9 exports an average that no validation has seen"),
        ("stages.rpo.validation.select=1.5", "stages.rpo.validation.select: Input should be less than or equal to 1"),
        ("data.validation_prompts=null", "stages.rpo.validation: needs data.validation_prompts"),
        ("evaluation.likeness=[clip_j]", "evaluation.likeness: 'clip_j' is not in scorers"),
    ],
)
def test_impossible_subject_run_is_refused(assignment, expected):
    assert any(line.startswith(expected) for line in problems(assignment, recipe="rpo_mini"))


def test_misspelt_stage_is_suggested():
    lines = problems("stages.esay.steps=10")
    assert lines[0] == "stages.esay.winner: is required; did you mean stages.easy?"
    assert problems("stages.new={}")[0] == "stages.new.winner: is required"


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("data.real={kind: foldr, path: x}", "data.real.kind: 'foldr' is unknown; did you mean 'folder'?"),
        ("stages.easy.objective.kind=ppo", "stages.easy.objective.kind: 'ppo' is unknown; did you mean 'rpo'?"),
        ("stages.easy.objective.kind=dop", "stages.easy.objective.kind: 'dop' is unknown; did you mean 'dpo'?"),
        ("stages.easy.pairs.kind=xyz", "stages.easy.pairs.kind: 'xyz' is unknown; one of score, reward, given"),
    ],
)
def test_unknown_kind_is_refused_with_what_there_is(assignment, expected):
    assert expected in problems(assignment)
