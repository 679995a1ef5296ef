"""Sources of preference pairs: which image wins, with what label, and what becomes of bad rows; on real files."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypref import listing
from raypref.artifacts import INDEX, Store, digest, finalize, iter_rows
from raypref.sources import PairFolders, PairJsonl, PairWebDataset, PickAPic, held_out, iter_pairs
from raypref.sources.fetching import fetch
from tests.unit.test_sources_images import png, shade, write_tar


def listed(source) -> list[dict]:
    rows = list(iter_pairs(source))
    assert rows == json.loads(json.dumps(rows))
    return rows


def pairs(rows: list[dict]) -> list[tuple]:
    """(winner's shade, loser's shade, label, prompt) of the rows that are pairs, from the bytes that are fetched."""
    good = [row for row in rows if "images" in row["ref"]]
    files = fetch([ref for row in good for ref in row["ref"]["images"]])
    return [
        (shade(files[2 * i]), shade(files[2 * i + 1]), row["ref"]["label"], row["prompt"]) for i, row in enumerate(good)
    ]


def outcomes(rows: list[dict]) -> list[str]:
    return [row["ref"].get("dropped") or row["ref"].get("error") or "pair" for row in rows]


# ---- Pick-a-Pic

FULL = [  # label_0, label_1, has_label
    (1.0, 0.0, True),
    (0.0, 1.0, True),
    (0.5, 0.5, True),
    (0.0, 0.0, False),
    (0.25, 0.75, True),
]


def table(labels=FULL, **columns) -> pa.Table:
    """Rows whose images are of the shades 10 i and 10 i + 1, in the columns of yuvalkirstain/pickapic_v2."""
    numbers = range(len(labels))
    full = {
        "are_different": [True for _ in numbers],
        "caption": [f"caption {i}" for i in numbers],
        "jpg_0": [png(10 * i % 250) for i in numbers],
        "jpg_1": [png(10 * i % 250 + 1) for i in numbers],
        **{name: [row[i] for row in labels] for i, name in enumerate(("label_0", "label_1", "has_label"))},
        "ranking_id": list(numbers),
    } | columns
    return pa.table({name: values for name, values in full.items() if values is not None})


EXPECTED = [(0, 1, 1.0, "caption 0"), (11, 10, 1.0, "caption 1"), (41, 40, 0.75, "caption 4")]


def test_pick_a_pic_puts_the_preferred_image_first(tmp_path):
    pq.write_table(table(), tmp_path / "train-00000-of-00001.parquet", row_group_size=2)
    rows = listed(PickAPic(path=str(tmp_path)))
    assert pairs(rows) == EXPECTED
    assert outcomes(rows) == ["pair", "pair", "tie", "no label", "pair"]
    assert [row["id"] for row in rows] == [f"{i:08d}" for i in range(5)]
    assert len(listed(PickAPic(path=str(tmp_path), limit=2))) == 2


def test_ties_are_kept_with_their_label(tmp_path):
    pq.write_table(table(), tmp_path / "a.parquet")
    rows = listed(PickAPic(path=str(tmp_path / "a.parquet"), ties="keep"))
    assert (20, 21, 0.5, "caption 2") in pairs(rows)
    assert outcomes(rows) == ["pair", "pair", "pair", "no label", "pair"]


def test_columns_that_a_smaller_data_set_may_lack(tmp_path):
    numbers = {
        "label_0": [1, 0],
        "label_1": None,
        "has_label": None,
        "id": ["x", "y"],
    }  # integers, as some exports have
    pq.write_table(table(FULL[:2], **numbers), tmp_path / "a.parquet")
    rows = listed(PickAPic(path=str(tmp_path)))
    assert pairs(rows) == EXPECTED[:2]
    assert [row["id"] for row in rows] == ["x", "y"]


def test_images_of_the_datasets_library(tmp_path):
    struct = {name: [{"bytes": png(shade), "path": None}] for name, shade in (("jpg_0", 3), ("jpg_1", 4))}
    pq.write_table(table(FULL[:1], **struct), tmp_path / "a.parquet")
    assert pairs(listed(PickAPic(path=str(tmp_path)))) == [(3, 4, 1.0, "caption 0")]


def test_folder_that_save_to_disk_wrote(tmp_path):
    """Arrow streams of several batches beside state.json, and a cache file of `map`, which is no data."""
    for number, part in enumerate((table().slice(0, 3), table().slice(3, 2))):
        with pa.ipc.new_stream(tmp_path / f"data-{number:05d}-of-00002.arrow", part.schema) as writer:
            writer.write_table(part, max_chunksize=2)
    with pa.ipc.new_stream(tmp_path / "cache-1f.arrow", part.schema) as writer:
        writer.write_table(part)
    (tmp_path / "state.json").write_text("{}")
    rows = listed(PickAPic(path=str(tmp_path)))
    assert pairs(rows) == EXPECTED
    images = rows[1]["ref"]["images"]
    wrong = [images[0] | change for change in ({"row_group": 9}, {"row": 9}, {"column": "no"})]
    assert [getattr(file, "reason", "") for file in fetch([*wrong[:1], *images])] == ["unreadable", "", ""]
    assert [file.reason for file in fetch(wrong)] == ["unreadable"] * 3


@pytest.mark.parametrize(
    "label, words",
    [
        ((0.0, 0.0, True), "do not add up to 1"),
        ((2.0, -1.0, True), "do not add up to 1"),
        ((float("nan"), 1.0, True), "do not add up to 1"),
        ((None, 1.0, True), "label_0 None"),
    ],
)
def test_labels_that_say_nothing(tmp_path, label, words):
    pq.write_table(table([label]), tmp_path / "a.parquet")
    (row,) = listed(PickAPic(path=str(tmp_path)))
    assert words in row["ref"]["error"]


@pytest.mark.parametrize(
    "columns, words",
    [
        ({"jpg_1": None, "label_0": None}, "without jpg_1, label_0; it has: are_different, caption, jpg_0"),
        ({"jpg_0": ["a"]}, "jpg_0 of string, not encoded bytes"),
    ],
)
def test_columns_that_must_be_there(tmp_path, columns, words):
    pq.write_table(table(FULL[:1], **columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=words):
        iter_pairs(PickAPic(path=str(tmp_path)))


def test_splits_are_not_mixed(tmp_path):
    for name in ("train-00000-of-00001-b66ac.parquet", "test-00000-of-00001-17e.parquet"):
        pq.write_table(table(), tmp_path / name)
    with pytest.raises(ValueError, match=r"several splits; give the files of one, such as .*/test-\* "):
        iter_pairs(PickAPic(path=str(tmp_path)))
    assert len(listed(PickAPic(path=str(tmp_path / "train-*")))) == 5


@pytest.mark.parametrize("data", [b"", b"no arrow at all"])
def test_unreadable_arrow(tmp_path, data):
    (tmp_path / "a.arrow").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.arrow, which is not readable Arrow"):
        iter_pairs(PickAPic(path=str(tmp_path)))


def test_arrow_that_is_cut_short(tmp_path):
    with pa.ipc.new_stream(tmp_path / "a.arrow", table().schema) as writer:
        writer.write_table(table(), max_chunksize=1)
    whole = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match=r"a\.arrow, which is not readable Arrow"):
        listed(PickAPic(path=str(tmp_path)))


# ---- webdatasets


def test_webdataset_of_winners_and_losers(tmp_path):
    members = {"1.winner.jpg": png(1), "1.loser.png": png(2), "1.txt": b"one"}
    members |= {
        "d/2.LOSER.png": png(4),
        "d/2.winner.png": png(3),
        "d/2.json": b'{"prompt": "two"}',
        "d/2.mask.png": b"x",
    }
    write_tar(tmp_path / "s.tar", members)
    rows = listed(PairWebDataset(path=str(tmp_path / "*.tar")))
    assert pairs(rows) == [(1, 2, 1.0, "one"), (3, 4, 1.0, "two")]
    assert [row["id"] for row in rows] == ["s/1", "s/d/2"]


def test_webdataset_with_labels(tmp_path):
    a = {"1.jpg_0.jpg": png(1), "1.jpg_1.jpg": png(2), "1.original_prompt.txt": b"one"}
    a |= {"1.label_0.txt": b"0\n", "1.label_1.txt": b"1\n"}
    b = {"2.0.png": png(3), "2.1.png": png(4), "2.json": b'{"caption": "two", "label_0": 0.75}'}
    c = {"3.0.png": png(5), "3.1.png": png(6), "3.json": b'{"caption": "three", "label_0": 0.5, "label_1": 0.5}'}
    d = {"4.0.png": png(5), "4.1.png": png(6), "4.json": b'{"has_label": false, "label_0": 0, "label_1": 0}'}
    write_tar(tmp_path / "s.tar", a | b | c | d)
    rows = listed(PairWebDataset(path=str(tmp_path)))
    assert pairs(rows) == [(2, 1, 1.0, "one"), (3, 4, 0.75, "two")]
    assert outcomes(rows)[2:] == ["tie", "no label"]
    assert pairs(listed(PairWebDataset(path=str(tmp_path), ties="keep")))[2] == (5, 6, 0.5, "three")


def test_samples_of_a_webdataset_that_are_no_pair(tmp_path):
    members = {"1.winner.png": png(1), "1.txt": b"one", "2.0.png": png(1), "2.1.png": png(2), "2.txt": b"two"}
    members |= {"3.0.png": png(1), "3.1.png": png(2), "3.json": b"{", "4.txt": b"four", "readme.md": b"x"}
    rows = listed(PairWebDataset(path=str(write_tar(tmp_path / "s.tar", members))))
    assert [row["id"] for row in rows] == ["s/1", "s/2", "s/3", "s/4"]
    for row, words in zip(
        rows, ("has not two images", "label_0 None", ".json is not valid", "has not two"), strict=True
    ):
        assert words in row["ref"]["error"]
    write_tar(tmp_path / "s.tar", {f"{k}.{role}.png": png(1) for k in (1, 2) for role in ("winner", "loser")})
    with_again = {"1.winner.png": png(1), "2.txt": b"x", "1.loser.png": png(2)}
    with pytest.raises(ValueError, match="'t/1' twice"):
        listed(PairWebDataset(path=str(write_tar(tmp_path / "t.tar", with_again))))


# ---- metadata.jsonl


def write_images(folder, shades: dict[str, int]):
    for name, value in shades.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(value))
    return folder


def test_metadata_of_pairs(tmp_path):
    write_images(tmp_path, {"a.png": 1, "b.png": 2, "sub/c d.png": 3})
    lines = [
        {"winner": "a.png", "loser": "b.png", "text": "one", "id": "first"},
        {"winner": "sub/c d.png", "loser": "a.png", "text": " ", "prompt": "two"},
        {"winner": "b.png", "loser": "a.png", "caption": "three"},
        {"winner": "../x.png", "loser": "a.png", "text": "out"},
        {"winner": "a.png", "text": "alone"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join([*map(json.dumps, lines), "{broken"]))
    for path in (tmp_path, tmp_path / "metadata.jsonl"):
        rows = listed(PairJsonl(path=str(path)))
        assert pairs(rows) == [(1, 2, 1.0, "one"), (3, 1, 1.0, "two"), (2, 1, 1.0, "three")]
        assert [row["id"] for row in rows][:2] == ["first", "00000001"]
        for row, words in zip(rows[3:], ("leaves the folder", "no file name as loser", "line 6"), strict=True):
            assert words in row["ref"]["error"]


@pytest.mark.parametrize("line", [{"chosen": "a", "rejected": "b", "text": "x"}, {"winner": "a", "loser": "b"}])
def test_metadata_of_something_else(tmp_path, line):
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    with pytest.raises(ValueError, match=f"need winner, loser and text .*first has: {', '.join(line)}"):
        iter_pairs(PairJsonl(path=str(tmp_path)))


def test_own_ids_are_unique(tmp_path):
    write_images(tmp_path, {"a.png": 1, "b.png": 2})
    line = json.dumps({"winner": "a.png", "loser": "b.png", "text": "one", "id": "same"})
    (tmp_path / "metadata.jsonl").write_text(f"{line}\n{line}\n")
    with pytest.raises(ValueError, match=r"pair_jsonl source: .* 'same' twice, in rows 1 and 2"):
        listed(PairJsonl(path=str(tmp_path)))


# ---- folders


@pytest.fixture
def folders(tmp_path) -> PairFolders:
    write_images(tmp_path / "w", {"a.png": 1, "sub/b #%41.png": 2, "alone.png": 3})
    write_images(tmp_path / "l", {"a.png": 11, "sub/b #%41.png": 12, "orphan.png": 13})
    (tmp_path / "w" / "a.txt").write_text("one")
    (tmp_path / "l" / "a.txt").write_text("of a loser: not read")
    return PairFolders(path=str(tmp_path / "w"), losers=str(tmp_path / "l"), caption="default")


def test_folders_with_equal_names(folders):
    rows = listed(folders)
    assert pairs(rows) == [(1, 11, 1.0, "one"), (2, 12, 1.0, "default")]
    errors = [row["ref"]["error"] for row in rows if "error" in row["ref"]]
    assert "winner 'alone.png' has no loser of that name in" in errors[0]
    assert "loser 'orphan.png' has no winner of that name in" in errors[1]
    assert len(rows) == 4


def test_folders_with_metadata(folders, tmp_path):
    lines = [{"file_name": "a.png", "text": "ay"}, {"file_name": "sub/b #%41.png", "text": "bee", "id": "b"}]
    (tmp_path / "w" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = listed(folders)
    assert pairs(rows) == [(1, 11, 1.0, "ay"), (2, 12, 1.0, "bee")]
    assert [row["id"] for row in rows] == ["00000000", "b", "00000002"]


def test_folders_by_uri(folders, tmp_path):
    assert pairs(
        listed(PairFolders(path=f"file://{tmp_path}/w/", losers=f"file://{tmp_path}/l", caption="default"))
    ) == [
        (1, 11, 1.0, "one"),
        (2, 12, 1.0, "default"),
    ]


@pytest.mark.parametrize(
    "losers, words",
    [
        ("gone", "losers '.*gone' is no folder"),
        ("w", "losers '.*w' is the folder of the winners"),
        ("e", "holds no file"),
    ],
)
def test_wrong_folder_of_losers(folders, tmp_path, losers, words):
    (tmp_path / "e").mkdir()
    with pytest.raises(ValueError, match=words):
        iter_pairs(folders.model_copy(update={"losers": str(tmp_path / losers)}))


# ---- their index


def index(tmp_path, source: dict, part="all", **changes):
    fields = {"source": source, "part": part, "limit": None, "shard_size": 2, "holdout": 0.5, "seed": 0} | changes
    store = Store(str(tmp_path / "run"))
    count = listing.write_index(store, "sources/pairs-0", fields, digest(fields))
    return finalize(store, "sources/pairs-0", "index", fields, count), list(iter_rows(store, "sources/pairs-0")), fields


def test_index_counts_pairs_without_a_preference_apart_from_bad_rows(tmp_path):
    labels = [*FULL, (0.5, 0.5, True), (0.3, 0.3, True)]
    captions = ["one", " ", *(f"caption {i}" for i in range(2, 7))]
    pq.write_table(table(labels, caption=captions), tmp_path / "a.parquet")
    manifest, rows, fields = index(tmp_path, PickAPic(path=str(tmp_path / "a.parquet")).model_dump())
    assert [row["prompt"] for row in rows] == ["one", "caption 4"]
    assert json.loads(rows[1]["ref"])["label"] == 0.75
    assert manifest["statistics"] == {"dropped": {"tie": 2, "no label": 1}}
    assert manifest["rejected"] == {"count": 2, "reasons": {"empty caption": 1, "malformed row": 1}}
    assert Store(str(tmp_path / "run")).read_table("sources/pairs-0/00001.parquet").schema == INDEX
    assert listing.count_rows(fields) == 4  # what may become a pair or be bad, as in other sources


def test_source_in_which_nobody_preferred_anything(tmp_path):
    pq.write_table(table([(0.5, 0.5, True)] * 3), tmp_path / "a.parquet")
    for _ in range(2):  # the second time, all shards are there
        with pytest.raises(ValueError, match=r"data.pairs: no row of .* holds a preference"):
            index(tmp_path, PickAPic(path=str(tmp_path / "a.parquet")).model_dump())


def test_held_out_part_of_pairs_is_prompts_that_no_pair_has(tmp_path):
    prompts = [f"prompt {i % 10}" for i in range(40)]
    ids = {"id": [f"id{i}" for i in range(40)], "caption": prompts}
    pq.write_table(
        table([(1.0, 0.0, True)] * 40, jpg_0=[png(1)] * 40, jpg_1=[png(2)] * 40, **ids), tmp_path / "a.parquet"
    )
    source = PickAPic(path=str(tmp_path / "a.parquet")).model_dump()
    _, train, _ = index(tmp_path / "train", source, "train")
    _, held, _ = index(tmp_path / "held", source, "held_out")
    expected = [f"prompt {i}" for i in range(10) if held_out(f"prompt {i}", 0.5, 0)]
    assert [row["prompt"] for row in held] == expected and 0 < len(expected) < 10
    assert {row["ref"] for row in held} == {"{}"}
    assert {row["prompt"] for row in train} == {f"prompt {i}" for i in range(10)} - set(expected)
    assert len(train) == 4 * (10 - len(expected))
