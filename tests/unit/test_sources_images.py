"""Sources of images: what is listed, and the bytes that are fetched for it; on real files in temporary folders."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypref.images import BadImage, decode, encode
from raypref.sources import ImageFolder, ImageParquet, PromptsFile, Renderer, WebDataset, iter_prompts, iter_references
from raypref.sources.fetching import fetch
from raypref.sources.paths import address_of, place


def png(shade: int) -> bytes:
    return encode(np.full((16, 16, 3), shade, np.uint8), "png")


def shade(data: bytes) -> int:
    return int(np.array(decode(data, 10_000))[0, 0, 0])


def listed(source) -> list[dict]:
    rows = list(iter_references(source))
    assert rows == json.loads(json.dumps(rows))
    return rows


def fetched(rows) -> list:
    return fetch([row["ref"] for row in rows])


def write_tar(path, members: dict[str, bytes]):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


# ---- folders


def test_folder_with_metadata(tmp_path):
    (tmp_path / "sub dir").mkdir()
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "sub dir" / "b#%20.png").write_bytes(png(2))
    lines = [
        {"file_name": "a.png", "text": "one", "id": "first"},
        {"file_name": "sub dir/b#%20.png", "text": " "},
        {"file_name": "gone.png", "text": "lost"},
        {"file_name": "../out.png", "text": "out"},
        {"file_name": "/etc/passwd", "text": "abs"},
        {"file_name": "sub dir/../a.png", "text": "again"},
        {"text": "t"},
    ]
    text = "\n".join([json.dumps(line) for line in lines] + ["{broken"])
    (tmp_path / "metadata.jsonl").write_text(text)
    rows = listed(ImageFolder(path=str(tmp_path)))
    assert [r["prompt"] for r in rows] == ["one", "", "lost", "out", "abs", "again", "t", ""]
    assert rows[0]["id"] == "first" and rows[1]["id"] == "00000001"
    got = fetched(rows)
    assert [shade(got[i]) for i in (0, 1, 5)] == [1, 2, 1]
    assert [got[i].reason for i in (2, 3, 4, 6, 7)] == ["missing", "refused", "refused", "refused", "refused"]
    assert "leaves the folder" in rows[3]["ref"]["error"] and "line 8" in rows[7]["ref"]["error"]
    rows = listed(ImageFolder(path=str(tmp_path), caption="default"))
    assert [r["prompt"] for r in rows] == ["one", "default", "lost", "out", "abs", "again", "t", ""]


def test_metadata_without_file_names(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"image": "a.png", "text": "x"}')
    with pytest.raises(ValueError, match="it has: image, text"):
        iter_references(ImageFolder(path=str(tmp_path)))


def test_folder_with_text_files(tmp_path):
    for i, name in enumerate(["b.PNG", "a.v1.png", "sub/c.png", "none.png", ".hidden/d.png", "._b.png", "latin.png"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(i))
    captions = {"b.txt": "bee\n", "a.v1.txt": "ay", "sub/c.txt": "", "stray.txt": "x"}
    for name, text in captions.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.txt").write_bytes(b"Dal\xed")
    rows = listed(ImageFolder(path=str(tmp_path)))
    assert [Path(r["ref"].get("path", "-")).name for r in rows] == ["a.v1.png", "b.PNG", "-", "none.png", "c.png"]
    assert [r["prompt"] for r in rows] == ["ay", "bee", "", "", ""]
    assert [r["id"] for r in rows] == [f"{i:08d}" for i in range(5)]
    assert "UTF-8" in rows[2]["ref"]["error"]
    assert [shade(b) for b in fetched(rows[:2])] == [1, 0]
    default = listed(ImageFolder(path=str(tmp_path), caption="an image", limit=4))
    assert [r["prompt"] for r in default] == ["ay", "bee", "", "an image"]


def test_relative_and_file_uris(tmp_path, monkeypatch):
    (tmp_path / "x y#%41.png").write_bytes(png(3))
    monkeypatch.chdir(tmp_path)
    for path in (".", "file://" + str(tmp_path)):
        [row] = listed(ImageFolder(path=path, caption="c"))
        assert shade(fetched([row])[0]) == 3
        assert str(tmp_path) in row["ref"]["path"]


def test_addresses_of_objects_keep_endpoint_and_special_characters():
    path = "s3://bucket/pictures?region=eu-west-1&endpoint_override=localhost%3A9000&scheme=http"
    _, inner = place(path)
    assert inner == "bucket/pictures"
    address = address_of(path, "bucket/pictures/a b#?%41.png")
    assert address.startswith("s3://bucket/pictures/a%20b") and address.endswith("scheme=http")
    assert place(address)[1] == "bucket/pictures/a b#?%41.png"


def test_secrets_in_a_uri_are_refused():
    with pytest.raises(ValueError, match="environment"):
        iter_references(ImageFolder(path="s3://key:secret@bucket/pictures"))


# ---- parquet


def write_images(path, shades, struct=False, captions=None, **options):
    values = [png(s) for s in shades]
    if struct:
        values = [{"bytes": value, "path": None} for value in values]
    captions = captions or [f"shade {s}" for s in shades]
    pq.write_table(pa.table({"image": values, "caption": captions}), path, **options)


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_images(tmp_path, struct):
    write_images(tmp_path / "b.parquet", range(100, 105), struct, row_group_size=2)
    write_images(tmp_path / "a.parquet", range(0, 150), struct, row_group_size=80)
    for path in (tmp_path, tmp_path / "*.parquet", tmp_path / "[ab].parquet"):
        rows = listed(ImageParquet(path=str(path)))
        assert [r["prompt"] for r in rows] == [f"shade {s}" for s in (*range(150), *range(100, 105))]
    assert rows[151]["id"] == "00000151" and (rows[154]["ref"]["row_group"], rows[154]["ref"]["row"]) == (2, 0)
    some = [rows[i] for i in (154, 3, 79, 80, 149, 150, 3)]
    assert [shade(b) for b in fetched(some)] == [104, 3, 79, 80, 149, 100, 3]
    assert len(listed(ImageParquet(path=str(tmp_path / "b.parquet"), limit=3))) == 3


def test_parquet_nulls_and_bad_references(tmp_path):
    path = tmp_path / "a.parquet"
    image = pa.array([{"bytes": None, "path": "x.png"}, None, {"bytes": png(2), "path": None}])
    pq.write_table(pa.table({"image": image, "caption": ["a", None, "c"]}), path)
    rows = listed(ImageParquet(path=str(path)))
    assert [r["prompt"] for r in rows] == ["a", "", "c"]
    wrong = [rows[2]["ref"] | change for change in ({"row": 99}, {"row_group": 9}, {"column": "no"})]
    got = fetch([r["ref"] for r in rows] + wrong)
    assert shade(got[2]) == 2
    assert [g.reason for g in (*got[:2], *got[3:])] == ["missing", "missing", "unreadable", "unreadable", "unreadable"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_column": "jpg"}, "image_column 'jpg' .*one of: image, caption"),
        ({"caption_column": "text"}, "caption_column 'text' .*one of: image, caption"),
        ({"image_column": "caption"}, "is string; give a column of encoded bytes"),
    ],
)
def test_wrong_parquet_columns(tmp_path, fields, message):
    write_images(tmp_path / "a.parquet", [1])
    with pytest.raises(ValueError, match=message):
        iter_references(ImageParquet(path=str(tmp_path), **fields))


# ---- webdatasets


def test_webdataset(tmp_path):
    write_tar(
        tmp_path / "s-0.tar",
        {
            "0001.png": png(1),
            "0001.txt": b"one",
            "0002.json": b'{"caption": "two"}',
            "0002.PNG": png(2),
            "0002.cls": b"9",
            "dir/0003.png": png(3),
            "dir/0003.json": b'{"text": "three"}',
            "0004.png": png(4),
            "0005.caption": b"alone",
            "readme.md": b"hi",
            "0006.png": png(6),
            "0006.txt": b"  ",
            "0006.json": b"{",
            "0006.caption": b"six",
        },
    )
    write_tar(tmp_path / "s-1.tar", {"0001.png": png(11), "0001.txt": "Dalí".encode()})
    rows = listed(WebDataset(path=str(tmp_path / "s-*.tar")))
    keys = ["0/0001", "0/0002", "0/dir/0003", "0/0004", "0/0005", "0/0006", "1/0001"]
    assert [r["id"] for r in rows] == [f"s-{key}" for key in keys]
    assert [r["prompt"] for r in rows] == ["one", "two", "three", "", "alone", "six", "Dalí"]
    got = fetched(rows)
    assert [shade(g) for i, g in enumerate(got) if i != 4] == [1, 2, 3, 4, 6, 11]
    assert got[4].reason == "refused" and "no image" in str(got[4])
    for row in rows[:4]:  # the offsets are those of the bytes in the archive
        data = Path(row["ref"]["path"]).read_bytes()
        assert data[row["ref"]["offset"] :][: row["ref"]["length"]] == got[rows.index(row)]


def test_webdataset_members_that_leave_the_archive(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"../x.png": png(1), "/y.png": png(2), "z.png": png(3)})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    rows = listed(WebDataset(path=str(tmp_path / "a.tar")))
    assert ["error" in r["ref"] for r in rows] == [True, True, False, True]
    assert shade(fetched(rows)[2]) == 3


def test_webdataset_long_names_and_duplicate_keys(tmp_path):
    long = "d" * 150 + "/" + "k" * 120
    [row] = listed(WebDataset(path=str(write_tar(tmp_path / "a.tar", {f"{long}.png": png(8), f"{long}.txt": b"t"}))))
    assert (row["id"], row["prompt"], shade(fetched([row])[0])) == (f"a/{long}", "t", 8)
    write_tar(tmp_path / "b.tar", {"1.png": png(1), "2.png": png(2), "1.txt": b"apart"})
    with pytest.raises(ValueError, match="'b/1' twice, in rows 1 and 3"):
        list(iter_references(WebDataset(path=str(tmp_path / "b.tar"))))


def test_damaged_archives(tmp_path):
    big = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = write_tar(tmp_path / "a.tar", {"1.png": encode(big, "png"), "2.png": encode(big, "png"), "3.png": png(3)})
    whole = path.read_bytes()
    second = 512 + -(-len(encode(big, "png")) // 512) * 512
    path.write_bytes(whole[: second + 2000])  # cut inside of the second image
    rows = listed(WebDataset(path=str(path)))
    assert [r["ref"].get("error", "")[:19] for r in rows] == ["", "", "archive is damaged:"]
    assert [type(g) for g in fetched(rows)] == [bytes, BadImage, BadImage]
    assert fetched(rows)[1].reason == "truncated"
    path.write_bytes(whole[:second] + b"junk" * 128 + whole[second + 512 :])  # header of the second image
    rows = listed(WebDataset(path=str(path)))
    assert len(rows) == 2 and "no member header" in rows[1]["ref"]["error"]
    for data in (b"", b"not a tar" * 200):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not an uncompressed tar"):
            iter_references(WebDataset(path=str(path)))


# ---- the rest


def test_renderer():
    person = pytest.importorskip("raypref.mini.renderer").person
    source = Renderer(seed=3, count=4, start=10)
    rows = listed(source)
    assert [r["id"] for r in rows] == ["00000010", "00000011", "00000012", "00000013"]
    assert list(iter_prompts(source)) == [{"id": r["id"], "prompt": r["prompt"]} for r in rows]
    for index, row, data in zip(range(10, 14), rows, fetched(rows), strict=True):
        caption, array = person(3, index)
        assert row["prompt"] == caption
        np.testing.assert_array_equal(np.array(decode(data, 100_000)), array)


def test_fetch_mixes_kinds_and_failures(tmp_path):
    write_images(tmp_path / "a.parquet", [5, 6])
    tar = str(write_tar(tmp_path / "a.tar", {"1.png": png(7)}))
    (tmp_path / "f.png").write_bytes(png(8))
    good = [
        listed(ImageParquet(path=str(tmp_path)))[1],
        listed(WebDataset(path=tar))[0],
        listed(ImageFolder(path=str(tmp_path)))[0],
    ]
    bad = [
        {"error": "set aside"},
        {},
        {"kind": "what"},
        {"kind": "file", "path": str(tmp_path)},
        {"kind": "file", "path": tar, "offset": 512, "length": 10**7},
        {"kind": "renderer", "seed": "x"},
    ]
    got = fetch([r["ref"] for r in good] + bad)
    assert [shade(g) for g in got[:3]] == [6, 7, 8]
    assert all(isinstance(g, BadImage) for g in got[3:]) and "set aside" in str(got[3])
    assert fetch([]) == []


def test_real_data():
    folder = os.environ.get("RAYPREF_TEST_DATA")
    if not folder:
        pytest.skip("RAYPREF_TEST_DATA does not name a folder of test data")
    people = list(iter_prompts(PromptsFile(path=f"{folder}/partiprompts/people.tsv", column="Prompt")))
    assert len(people) == 177 and people[0]["prompt"] == "Salvador Dalí"
    rows = listed(ImageFolder(path=f"{folder}/dreambench", caption="a photo"))
    assert len(rows) > 80 and all(decode(data, 10_000_000) for data in fetched(rows[:10]))
    cifar = listed(ImageParquet(path=f"{folder}/cifar10", limit=10_500))
    assert [decode(data, 2000).size for data in fetched(cifar[9_990:10_010])] == [(32, 32)] * 20
