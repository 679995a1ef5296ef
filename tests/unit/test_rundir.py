"""Whose run directory it is."""

import pytest

from raypref.artifacts import Store
from raypref.recipes import configure
from raypref.rundir import check, claim


def mini(*assignments: str):
    return configure("mini", None, list(assignments))


@pytest.fixture
def run(tmp_path):
    store = Store(str(tmp_path / "run"))
    claim(mini(), store)
    return store


def test_a_first_attempt_that_made_nothing_binds_nobody(run):
    run.write("sources/prompts-1/00000.json", b"{}")
    assert check(mini("seed=1"), run)
    claim(mini("seed=1"), run)
    assert run.read_json("config.json")["seed"] == 1


@pytest.mark.parametrize("folder", ["pools", "scores", "pairs", "train", "eval"])
def test_work_belongs_to_its_configuration(run, folder):
    run.write(f"{folder}/x/00000.json", b"{}")
    before = run.read("config.json")
    with pytest.raises(
        ValueError, match=r"belongs to a run with another configuration:\n  stages\.easy\.steps: 100 -> 50"
    ):
        claim(mini("stages.easy.steps=50"), run)
    assert run.read("config.json") == before
    assert not check(mini(), run)


@pytest.mark.parametrize(
    "change", ["training.workers=1", "scorers.preference.batch_size=8", "resources.wait_s=5", "training.log_every=7"]
)
def test_how_a_run_works_may_change(run, change):
    run.write("pools/x/00000.json", b"{}")
    assert not check(mini(change), run)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty and holds no config\.json \(thesis\.txt\)"):
        check(mini(), Store(str(tmp_path)))
