"""Pairs as Pick-a-Pic's columns: what `datasets` reads, the sides, the labels, and how much is held at a time."""

import io

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

from raypref.artifacts import iter_rows
from raypref.curriculum import plan
from raypref.exports import Options, export, pairs
from raypref.exports.pairs import SCHEMA, Told, count, histogram, row_of, write_parquet
from tests.runs import config_of, write_pairs, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    """The stage easy has its pairs and is not trained."""
    return write_run(tmp_path_factory.mktemp("run"), config_of(tiny), (), ("easy",))


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    options = Options(license="cc-by-4.0", source_notes=("Photos: J. Doe", "Prompts: A. Roe"))
    return export(run, ["pairs"], tmp_path_factory.mktemp("out") / "pairs", options=options)


@pytest.fixture(scope="module")
def stored(run) -> dict[str, dict]:
    """The run's pairs by the bytes of their two images, which tell them apart."""
    path = next(f"pairs/{name}" for name in run.names("pairs"))
    return {frozenset((row["winner"], row["loser"])): row for row in iter_rows(run, path)}


def test_datasets_reads_the_folder(folder, stored, tmp_path):
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))
    assert list(found) == ["train"] and found["train"].column_names == SCHEMA.names
    assert found["train"].features["jpg_0"] == datasets.Value("binary")
    assert len(found["train"]) == len(stored) == 90
    for row in found["train"]:
        pair = stored[frozenset((row["jpg_0"], row["jpg_1"]))]
        side = 0 if row["jpg_0"] == pair["winner"] else 1
        assert row[f"label_{side}"] == pair["label"] and row["label_0"] + row["label_1"] == 1
        assert row["best_image_uid"] == row[f"image_{side}_uid"] and row["are_different"] and row["has_label"]
        assert (row["caption"], row["num_example_per_prompt"]) == (pair["prompt"], 2)
    assert Image.open(io.BytesIO(found["train"][0]["jpg_0"])).size == (16, 16)
    assert {row["label_0"] for row in found["train"]} == {0.0, 0.25, 0.75, 1.0}
    streamed = datasets.load_dataset(str(folder), split="train", streaming=True)
    assert next(iter(streamed)) == found["train"][0]


def pair(id: str, label: float = 1.0, **changes) -> dict:
    return {
        "pair_id": id, "loser_prompt": "a prompt", "winner": b"good", "loser": b"bad", "winner_source": "real",
        "loser_source": "base", "winner_score": 2.0, "loser_score": 1.0, "label": label, **changes,
    }  # fmt: skip


def test_the_position_says_nothing_and_belongs_to_the_pair():
    rows = [row_of(pair(f"p{i}#0"), i, 1) for i in range(2000)]
    first = [row["jpg_0"] == b"good" for row in rows]
    assert 0.46 < np.mean(first) < 0.54
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.07
    assert [row_of(pair(f"p{i}#0"), 7, 1)["jpg_0"] for i in range(2000)] == [row["jpg_0"] for row in rows]
    for row, won in zip(rows, first, strict=True):
        assert (row["label_0"], row["label_1"]) == ((1, 0) if won else (0, 1))
        assert (row["model_0"], row["model_1"]) == (("real", "base") if won else ("base", "real"))


def test_ties_and_equal_images():
    row = row_of(pair("p", 0.5), 0, 1)
    assert row["best_image_uid"] is None and (row["label_0"], row["label_1"]) == (0.5, 0.5)
    assert not row_of(pair("p", loser=b"good"), 0, 1)["are_different"]
    row = row_of(pair("p", 0.25), 0, 1)  # the labels of a reward may prefer the generated image
    assert row["best_image_uid"] == row["image_0_uid" if row["jpg_0"] == b"bad" else "image_1_uid"]


def test_the_caption_is_the_prompt_under_which_both_were_compared():
    assert row_of(pair("p", prompt="a photo of sks dog", loser_prompt="a dog"), 0, 1)["caption"] == "a dog"


def test_files_end_at_their_size_and_one_row_group_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "FILE_BYTES", 250_000)
    held = []

    def tables():
        before = pa.total_allocated_bytes()
        for i in range(20):
            rows = [
                row_of(pair(f"p{i}/{j}", winner=np.random.default_rng(i * 64 + j).bytes(2000)), j, 1) for j in range(64)
            ]
            held.append(pa.total_allocated_bytes() - before)
            yield pa.Table.from_pylist(rows, SCHEMA)

    write_parquet(tmp_path / "data", tables())
    files = sorted((tmp_path / "data").iterdir())
    assert [file.name for file in files] == [f"train-{i:05d}.parquet" for i in range(10)]
    assert sum(pq.read_metadata(file).num_rows for file in files) == 20 * 64
    assert max(held) < 3 * 64 * 2100  # of the 20 row groups at most what one takes, encoded and not


def test_the_card(folder):
    data, text = DatasetCard.load(folder / "README.md").data.to_dict(), (folder / "README.md").read_text()
    assert (data["license"], data["size_categories"]) == ("cc-by-4.0", ["n<1K"])
    assert data["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}]
    assert "| pairs | 90 |" in text and "| of these, with a label between 0 and 1 | 18 |" in text
    assert "| base-generated-prompts | base-generated-prompts | 90 |" in text and "| left out: tie | 3 |" in text
    assert "* Photos: J. Doe\n* Prompts: A. Roe\n" in text and "* prompts: renderer\n" in text
    bars = text.split("by `preference`:\n\n```\n")[1].split("\n```")[0].splitlines()
    assert [int(line.split()[3]) for line in bars] == [9] * 10
    assert text.rstrip().endswith("## Licence\n\ncc-by-4.0")


def test_a_card_without_licence_and_scores(tiny, tmp_path):
    config = config_of(tiny)
    run = write_run(tmp_path / "run", config, ())
    write_pairs(run, next(task.path for task in plan(config) if task.name == "1-easy"), scored=False)
    text = (export(run, ["pairs"], tmp_path / "out") / "README.md").read_text()
    assert "license" not in DatasetCard(text).data.to_dict() and text.rstrip().endswith("Not stated.")
    assert "Score gaps" not in text


def test_the_histogram_is_text():
    assert histogram(np.array([], np.float32)) == "" == histogram(np.array([np.nan], np.float32))
    assert (
        histogram(np.array([0.0, 0.0, 0.0, 1.0], np.float32), bins=2, width=6)
        == "  0 … 0.5  3  ██████\n0.5 … 1    1  ██"
    )


def test_a_stage_without_losers_has_nothing_to_compare(tiny, tmp_path):
    config = config_of(
        tiny, "stages.easy={loser: null, objective: {kind: sft}}", "stages.hard=null", "stages.text_encoder=null"
    )
    run = write_run(tmp_path / "run", config, (), ("easy",))
    with pytest.raises(ValueError, match="stage easy has no losers"):
        export(run, ["pairs"], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_pairs_that_are_not_made(tiny, tmp_path):
    run = write_run(tmp_path / "run", config_of(tiny), ())
    with pytest.raises(ValueError, match=r"no stage is finished; its stages: easy \(not paired\), hard \(not paired\)"):
        export(run, ["pairs"], tmp_path / "out")


def test_the_card_counts_by_the_label_not_by_the_place():
    """RPO's labels are probabilities: where one is below .5, the image that stands as the loser is the preferred one."""
    pair = {
        "pair_id": "a",
        "loser_prompt": "p",
        "winner": b"w",
        "loser": b"l",
        "winner_source": "real",
        "loser_source": "drawn",
    }
    told = Told()
    for label, winner, loser in ((0.9, 2.0, 1.0), (0.2, 1.0, 3.0)):
        row = pair | {"label": label, "winner_score": winner, "loser_score": loser}
        count(told, row, row_of(row, 0, 1))
    assert dict(told.sources) == {("real", "drawn"): 1, ("drawn", "real"): 1}
    assert list(told.gaps) == [1.0, 2.0] and told.soft == 2
