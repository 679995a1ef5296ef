"""Sources: prompts, their configuration and the held-out part."""

import itertools
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel, ValidationError

from raypref import sources
from raypref.sources import ImageFolder, ImageParquet, PromptsFile, Renderer, WebDataset, iter_prompts, iter_references


def prompts(path, text=None, **fields) -> list[dict]:
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(iter_prompts(PromptsFile(path=str(path), **fields)))


def test_txt(tmp_path):
    rows = prompts(tmp_path / "p.txt", "\ufeffa cat\n\n  a dog  \r\nSalvador Dalí\u2028x")
    assert rows == [
        {"id": "00000000", "prompt": "a cat"},
        {"id": "00000001", "prompt": "a dog"},
        {"id": "00000002", "prompt": "Salvador Dalí\u2028x"},
    ]
    assert [r["prompt"] for r in prompts(tmp_path / "p.txt", limit=2)] == ["a cat", "a dog"]


def test_txt_that_is_not_utf8_sets_aside_the_line(tmp_path):
    rows = prompts(tmp_path / "p.txt", b"one\nDal\xed\nthree")
    assert [r["prompt"] for r in rows] == ["one", "", "three"]
    assert "UTF-8" in rows[1]["error"] and "error" not in rows[0]


def test_jsonl(tmp_path):
    lines = ['{"caption": "a", "id": 7}', '{"caption": "b"', "[1]", ""]
    lines += ['{"caption": 5}', '{"caption": "\\ud800"}', '{"id": "z"}']
    rows = prompts(tmp_path / "p.jsonl", "\n".join(lines), column="caption")
    assert [r["id"] for r in rows] == ["7", "00000001", "00000002", "00000003", "00000004", "z"]
    assert [r["prompt"] for r in rows] == ["a", "", "", "", "", ""]
    assert "line 2" in rows[1]["error"] and "line 3" in rows[2]["error"] and "int" in rows[3]["error"]
    assert "line 6" in rows[4]["error"] and "error" not in rows[5]


def test_jsonl_that_is_nested_without_end(tmp_path):
    rows = prompts(tmp_path / "p.jsonl", '{"prompt": "a"}\n' + "[" * 200_000)
    assert [r["prompt"] for r in rows] == ["a", ""] and "error" in rows[1]


@pytest.mark.parametrize(
    ("ids", "rows"),
    [
        (["a", "b", "a"], (1, 3)),
        ([None, None, "00000001"], (2, 3)),
        (["x", "00000002", None], (2, 3)),
        ([1, 1], (1, 2)),
    ],
)
def test_duplicate_ids_are_named(tmp_path, ids, rows):
    text = "\n".join(json.dumps({"prompt": "p"} | ({"id": i} if i is not None else {})) for i in ids)
    with pytest.raises(ValueError, match=rf"rows {rows[0]} and {rows[1]}"):
        prompts(tmp_path / "p.jsonl", text)


def test_own_ids_that_look_like_indices_may_be_shuffled(tmp_path):
    text = "\n".join(json.dumps({"prompt": "p", "id": f"{i:08d}"}) for i in (0, 1, 4, 2, 3))
    assert [r["id"][-1] for r in prompts(tmp_path / "p.jsonl", text)] == ["0", "1", "4", "2", "3"]


def test_csv_and_tsv(tmp_path):
    rows = prompts(tmp_path / "p.csv", 'id,prompt\nx,"a, ""b""\nc"\ny,d\nz\n')
    assert [(r["id"], r["prompt"]) for r in rows] == [("x", 'a, "b"\nc'), ("y", "d"), ("z", "")]
    rows = prompts(tmp_path / "p.tsv", 'Prompt\tNote\n"Hello\t1\na sign "stop"\t\n', column="Prompt")
    assert [r["prompt"] for r in rows] == ['"Hello', 'a sign "stop"']


def test_csv_with_an_open_quote_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="line"):
        prompts(tmp_path / "p.csv", 'prompt\nok\n"open\nlost\n')
    with pytest.raises(ValueError, match="utf-8"):
        prompts(tmp_path / "q.csv", b"prompt\nDal\xed\n")


def test_parquet_prompts(tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"text": ["a", None, "c"], "big": [b"x" * 100] * 3}), path, row_group_size=2)
    assert [r["prompt"] for r in prompts(path, column="text")] == ["a", "", "c"]
    pq.write_table(pa.table({"prompt": ["a", "b"], "id": [10, 11]}), path)
    assert [r["id"] for r in prompts(path)] == ["10", "11"]
    pq.write_table(pa.table({"id": ["a", "b"]}), path)
    assert [(r["id"], r["prompt"]) for r in prompts(path, column="id")] == [("a", "a"), ("b", "b")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.docx", b"x", r"\.txt, \.jsonl, \.parquet, \.csv, \.tsv"),
        ("p.txt", b" \n\n", "no rows"),
        ("p.jsonl", b'{"text": "a", "n": 1}', "'prompt' .*set column to one of: text, n"),
        ("p.csv", b"text,n\na,1\n", "set column to one of: text, n"),
        ("p.csv", b"", "set column"),
        ("p.csv", b"prompt\n", "no rows"),
        ("p.parquet", b"no parquet", "not readable Parquet"),
    ],
)
def test_wrong_prompt_files(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        iter_prompts(PromptsFile(path=str(tmp_path / name)))  # at once, before the first row is asked for


def test_paths_that_do_not_exist(tmp_path):
    for source in (
        ImageFolder(path=str(tmp_path / "no")),
        ImageParquet(path=str(tmp_path / "no.parquet")),
        WebDataset(path=str(tmp_path / "no.tar")),
    ):
        with pytest.raises(ValueError, match=f"{source.kind} source: path .*does not exist"):
            iter_references(source)
    with pytest.raises(ValueError, match="does not exist"):
        iter_prompts(PromptsFile(path=str(tmp_path / "no.txt")))
    with pytest.raises(ValueError, match=r"holds no file that ends in \.tar"):
        iter_references(WebDataset(path=str(tmp_path / "*.tar")))
    with pytest.raises(ValueError, match=r"holds no file that ends in \.jpg"):
        iter_references(ImageFolder(path=str(tmp_path)))


def test_listing_is_a_stream(tmp_path):
    path = tmp_path / "p.jsonl"
    with path.open("w") as file:
        file.writelines(json.dumps({"prompt": f"prompt {i} " + "x" * 200}) + "\n" for i in range(50_000))
    list(itertools.islice(iter_prompts(PromptsFile(path=str(path))), 10))
    tracemalloc.start()
    assert sum(1 for _ in iter_prompts(PromptsFile(path=str(path)))) == 50_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20  # the file is 12 MB


def test_held_out():
    ids = [f"{i:08d}" for i in range(10_000)]
    out = {i for i in ids if sources.held_out(i, 0.1, seed=0)}
    assert 850 < len(out) < 1150
    assert out <= {i for i in ids if sources.held_out(i, 0.2, seed=0)}  # a larger share only adds
    assert out != {i for i in ids if sources.held_out(i, 0.1, seed=1)}
    assert not any(sources.held_out(i, 0.0, 0) for i in ids) and all(sources.held_out(i, 1.0, 0) for i in ids)
    pinned = [3, 20, 21, 23, 28, 39]  # a split must never change
    assert [int(i) for i in ids[:40] if sources.held_out(i, 0.1, 0)] == pinned


def test_models_are_tagged_and_strict():
    class Data(BaseModel):
        prompts: sources.PromptSource
        real: sources.ImageSource

    text = {"kind": "prompts", "path": "p.txt"}
    data = Data.model_validate({"prompts": text, "real": {"kind": "webdataset", "path": "a.tar"}})
    assert isinstance(data.prompts, PromptsFile) and isinstance(data.real, WebDataset)
    assert Data.model_validate_json(data.model_dump_json()) == data
    folder = {"kind": "folder", "path": "x"}
    for wrong in (folder | {"extra": 1}, folder | {"kind": "zip"}, folder | {"path": ""}, folder | {"limit": 0}):
        with pytest.raises(ValidationError):
            Data.model_validate({"prompts": text, "real": wrong})
    for model in (PromptsFile, ImageFolder, ImageParquet, WebDataset, Renderer):
        assert all(field.description for field in model.model_fields.values())
