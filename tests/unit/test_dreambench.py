"""DreamBench's protocol: what is evaluated, what may change, means and tables."""

import pytest

from raypref import dreambench
from raypref.artifacts import Store, write_manifest
from raypref.config import build
from raypref.curriculum import plan
from tests.conftest import configured


def row(subject: str, model: str, *values: float | None, prompts: int = 25) -> dict:
    metrics = dict(zip(dreambench.METRICS, values, strict=True))
    return {"subject": subject, "model": model, **metrics, "prompts": prompts, "references": 5}


ROWS = [
    row("dog", "base", 0.25, 0.5, 0.25),
    row("dog", "rpo", 0.5, 0.75, 0.25),
    row("can", "base", 0.75, None, 0.5),
    row("can", "rpo", 1.0, 0.25, 0.125),
]


def evaluation(own, *assignments: str):
    """The configuration by which a run is evaluated."""
    tree = dreambench.laid_over(own.model_dump(mode="json")) | {"stages": {}}
    return build(tree, None, list(assignments))


def finish(own, run: Store) -> None:
    for task in plan(own):
        if task.kind == "train":
            write_manifest(run, task.path, task.kind, task.fields, 1, {})


@pytest.fixture
def run(tmp_path):
    return Store(str(tmp_path))


def test_means_are_over_the_subjects_of_each_model():
    assert dreambench.means(ROWS) == [
        {"model": "base", "subjects": 2, "dino": 0.5, "clip_i": 0.5, "clip_t": 0.375},
        {"model": "rpo", "subjects": 2, "dino": 0.75, "clip_i": 0.5, "clip_t": 0.1875},
    ]


def test_what_a_finished_run_evaluates_is_not_evaluated_again(run):
    """Its recipe has the protocol's scorers and settings."""
    own = configured("rpo_sd15")
    finish(own, run)
    tasks = dreambench.tasks(evaluation(own), own, run, run)
    assert {task.kind for task in tasks} == {"index", "pool", "score", "evaluate"}
    assert {task.path for task in tasks} <= {task.path for task in plan(own)}
    assert [task.model for task in tasks if task.kind == "evaluate"] == ["base", "rpo"]
    assert {t.spec["set"] for t in tasks if t.kind == "index"} == {"eval_prompts", "eval_real"}


def test_every_stage_is_evaluated_with_the_weights_it_has_whatever_the_evaluation_changes(run):
    own = configured("rpo_mini", "evaluation.images=1")
    finish(own, run)
    (weights,) = (task.path for task in plan(own) if task.kind == "train")
    changes = ("scorers.likeness.args.model=other", "scorers.dino.kind=mini_features", "sampling.steps=3")
    tasks = dreambench.tasks(evaluation(own, *changes), own, run, run)
    pools = {task.model: task for task in tasks if task.kind == "pool" and task.spec["domain"] == "generated"}
    assert pools["rpo"].parents[1] == weights
    assert pools["rpo"].fields["count"] == 4 and pools["rpo"].fields["sampling"]["steps"] == 3


def test_a_stage_that_is_not_finished_is_named_with_the_command_that_finishes_it(run):
    own = configured("rpo_mini")
    pools = Store("/pools")
    command = rf"python jobs/rpo\.py --config {run.uri}/config\.json --run-dir {run.uri} --pools /pools"
    with pytest.raises(ValueError, match=rf"stage rpo is not trained .*; finish it with: {command}$"):
        dreambench.tasks(evaluation(own), own, run, pools)


def test_a_model_as_it_is_has_one_row(run):
    own = configured("dreambench_sd15")
    tasks = dreambench.tasks(own, own, run, run)
    assert [task.model for task in tasks if task.kind == "evaluate"] == ["base"]
    assert not {"pairs", "train"} & {task.kind for task in tasks}


def test_another_evaluation_is_refused(run):
    own = configured("dreambench_sd15", "evaluation.likeness=[dino]")
    with pytest.raises(ValueError, match=r"only evaluation\.images can be changed"):
        dreambench.tasks(own, own, run, run)


@pytest.mark.parametrize(
    "change",
    [
        {"scorers": {"dino": {"args": {"model": "folder"}}}, "resources": None},
        {"evaluation": {"images": 2}, "data": {"max_rejected": 0.3}, "sampling": {"steps": 50}},
    ],
)
def test_what_training_cannot_notice_may_change(change):
    dreambench.check_changes([change])


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"stages": {"rpo": {"steps": 5}}}, r"stages\.rpo\.steps"),
        ({"evaluation": {"images": 4, "likeness": ["a"]}}, r"evaluation\.likeness"),
        ({"data": {"eval_prompts": {}}}, r"data\.eval_prompts"),
        ({"recipe": "mini"}, "recipe"),
        ({"samplings": 1}, "samplings"),
    ],
)
def test_a_change_of_what_was_trained_is_refused(change, path):
    with pytest.raises(ValueError, match=f"{path}: an evaluation takes over .* it can change scorers, sampling"):
        dreambench.check_changes([{"scorers": {"dino": {"kind": "dino"}}}, change])


def test_the_protocol_has_no_departures():
    rows = [row(f"subject {i}", "rpo", 0.5, 0.5, 0.5) for i in range(30)]
    assert dreambench.departures(rows, [full()]) == []


def full(*assignments: str):
    return configured("rpo_sd15", "data.eval_real={kind: folder, path: photos}", *assignments)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("evaluation.images=1", "Images a prompt: 1 instead of 4."),
        ("data.eval_real=null", "References: a held-out share of data.real (data.holdout) instead of every photo."),
        ("scorers.dino.args.model=facebook/dino-vitb8", "DINO: by dino facebook/dino-vitb8 instead of dino."),
        (
            "scorers.clip_t.args.model=/models/clip",
            "CLIP-T: by open_clip /models/clip instead of open_clip ViT-B-16 openai.",
        ),
    ],
)
def test_departures_from_the_protocol_are_said(assignment, expected):
    rows = [row(f"subject {i}", "rpo", 0.5, 0.5, 0.5) for i in range(30)]
    assert dreambench.departures(rows, [full(assignment)]) == [expected]


def test_fewer_subjects_and_prompts_and_several_bases_are_said():
    rows = [*ROWS, row("cat", "base", 0.5, 0.5, 0.5, prompts=3)]
    assert dreambench.departures(rows, [full(), full("model.base=other")]) == [
        "Subjects: 3 instead of 30.",
        "Prompts a subject: 3 instead of 25.",
        "Base models differ between subjects: other, stable-diffusion-v1-5/stable-diffusion-v1-5.",
    ]


def test_tables_have_the_published_figures_beside_the_means():
    result = dreambench.summarize(ROWS, [full()], {"clock": "all photos are bad"})
    lines = dreambench.markdown(result).splitlines()
    assert lines[2] == "| model                                  | subjects | DINO  | CLIP-I | CLIP-T |"
    assert lines[4] == "| base                                   | 2        | 0.500 | 0.500  | 0.375  |"
    assert lines[7] == "| RPO, lambda_val 0.5 (arXiv 2407.12164) | 30       | 0.652 | 0.833  | 0.314  |"
    assert "| can     | base  | 0.750 | –      | 0.500  | 25      | 5          |" in lines
    assert lines[-1] == "* clock: all photos are bad"
    assert "only over all 30 subjects" in result["notes"][0]
    assert result["settings"]["scorers"]["dino"] == {"kind": "dino", "args": {}}
