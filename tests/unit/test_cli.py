"""From the options of a job to its configuration."""

import json

import pytest

from raypref import cli
from raypref.recipes import configure


def load(*arguments: str):
    return cli.load_config(cli.parser("a job", "mini").parse_args(arguments))


def test_local_folders_are_absolute_for_workers_in_other_directories(tmp_path, monkeypatch):
    (tmp_path / "sd15").mkdir()
    (tmp_path / "scorer").mkdir()
    monkeypatch.chdir(tmp_path)
    config = load(
        "--set", "model.base=./sd15", "--set", "scorers.preference.args.model=scorer", "--set", "data.real.kind=folder",
        "--set", "data.real.path=photos",
    )  # fmt: skip
    assert config.model.base == str(tmp_path / "sd15")
    assert config.scorers["preference"].args == {"model": str(tmp_path / "scorer"), "scale": True}
    assert config.data.real.path == str(tmp_path / "photos")
    assert config.scorers["clip_t"].args["model"] == "mini:clip"


def test_an_empty_curriculum_is_for_evaluation_alone():
    options = cli.parser("a job", "rpo_mini").parse_args(["--set", "stages.rpo=null"])
    with pytest.raises(ValueError, match=r"stages: none is left to train; --set stages=null"):
        cli.load_configs(options)
    assert not cli.load_configs(options, untrained=True)[""].stages


def test_config_of_a_run_replays_it_whatever_the_recipe(tmp_path):
    config = configure("mini", [{"seed": 3, "stages": {"normal": None}}])
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.model_dump(mode="json")))
    assert load("--config", str(file)) == config
    assert load("--config", str(file), "--set", "seed=4").seed == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1]", "expected a mapping of fields"), ("a: [", "not valid YAML"), (None, "No such file")],
)
def test_config_files_that_cannot_be_used(tmp_path, text, message):
    file = tmp_path / "x.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load("--config", str(file))
