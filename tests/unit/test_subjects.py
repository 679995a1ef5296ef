"""A subject's photos as the data of a run."""

import pytest

from raypref import cli, subjects
from raypref.recipes import configure
from raypref.scoring import without_token


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "dog6"
    folder.mkdir()
    (folder / "00.jpg").write_bytes(b"x")
    return folder


@pytest.mark.parametrize("live", [False, True])
def test_no_evaluation_prompt_is_trained_or_validated_on(live):
    sets = subjects.prompts("dog", "sks", live)
    assert {name: len(set(prompts)) for name, prompts in sets.items()} == {"train": 8, "validation": 8, "eval": 25}
    assert len(set().union(*sets.values())) == 41
    assert all("sks dog" in prompt for prompts in sets.values() for prompt in prompts)


def test_class_of_dreambench_layout(photos):
    (photos.parent / "prompts_and_classes.txt").write_text("Classes\n\nsubject_name,class\ndog,dog\ndog6, corgi\n")
    data = subjects.expand({"data": {"subject": str(photos), "eval_real": None}}, [])["data"]
    assert data["real"] == data["eval_real"] == {
        "kind": "folder", "path": str(photos), "caption": "a photo of sks corgi"
    }  # fmt: skip
    assert data["token"] == "sks" and "subject" not in data
    assert data["prompts"]["prompts"][0] == "a sks corgi in a desert"


def test_what_is_said_stays(photos):
    mine = {"kind": "list", "prompts": ["a zwx dog"]}
    data = {"subject": str(photos), "class_noun": "dog", "token": "zwx", "prompts": mine}
    found = subjects.expand({"data": data | {"real": "of the recipe"}}, [{"data": data}])["data"]
    assert found["real"]["path"] == str(photos)
    assert found["prompts"] == mine
    assert "a zwx dog wearing a santa hat" in found["eval_prompts"]["prompts"]  # a dog is a live subject


def test_class_noun_makes_a_run(photos):
    config = configure("rpo_mini", [], [f"data.subject={photos}", "data.class_noun=dog"])
    assert config.data.real.caption == "a photo of sks dog"
    assert len(config.data.eval_prompts.prompts) == 25


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"subject": "nowhere"}, r"data\.subject='nowhere': no such folder with photos"),
        ({"class_noun": "dog"}, r"data\.class_noun='dog' needs data\.subject"),
    ],
)
def test_what_is_missing_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        subjects.expand({"data": data}, [])


def test_unknown_class_is_asked_for(photos):
    with pytest.raises(ValueError, match=r"there is no .*prompts_and_classes\.txt; say .* --set data\.class_noun=dog"):
        subjects.expand({"data": {"subject": str(photos)}}, [])
    (photos.parent / "prompts_and_classes.txt").write_text("subject_name,class\ncat,cat\n")
    with pytest.raises(ValueError, match=r"prompts_and_classes\.txt does not list it"):
        subjects.expand({"data": {"subject": str(photos)}}, [])


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        ("a photo of sks dog", "a photo of dog"),
        ("a sks, dog", "a dog"),
        ("sksx dog", "sksx dog"),
        ("a red sks dog in the snow", "a red dog in the snow"),
    ],
)
def test_scorers_never_see_the_rare_token(prompt, seen):
    assert without_token(prompt, "sks") == seen
    assert without_token(prompt, None) == prompt


def test_class_images_of_dreambooth_do_not_name_the_subject(photos):
    config = configure("dreambooth_sd15", [], [f"data.subject={photos}", "data.class_noun=dog"])
    assert set(config.data.prompts.prompts) == {"a photo of dog"}
    assert config.data.real.caption == "a photo of sks dog"


@pytest.mark.parametrize(("pattern", "names"), [("d*", ["dog", "duck"]), ("[a-c]*", ["cat"])])
def test_a_pattern_is_one_run_for_each_folder(tmp_path, pattern, names):
    for name in ("cat", "dog", "duck"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "00.jpg").write_bytes(b"x")
    options = ["--set", f"data.subject={tmp_path}/{pattern}", "--set", "data.class_noun=toy"]
    configs = cli.load_configs(cli.parser("a job", "rpo_mini").parse_args(options))
    assert list(configs) == names
    assert [config.data.real.path for config in configs.values()] == [str(tmp_path / name) for name in names]


def test_a_pattern_without_folders_is_refused(tmp_path):
    options = cli.parser("a job", "rpo_mini").parse_args(["--set", f"data.subject={tmp_path}/*"])
    with pytest.raises(ValueError, match="matches no folder"):
        cli.load_configs(options)
