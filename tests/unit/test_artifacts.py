"""The run directory: whole files or none, manifests that say what differs, and bytes that do not depend on the day."""

import errno
import hashlib
import json
import os
import subprocess
import threading

import pyarrow as pa
import pytest

from raypref import artifacts
from raypref.artifacts import Store

FIELDS = {"kind": "generated", "seed": 0, "sampling": {"steps": 25, "guidance": 7.5}}
TABLE = pa.table({"id": ["a", "b", "c"], "prompt": ["x", "y", "z"], "ref": ["{}"] * 3})


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def shard(store, index=0, path="pools/p", table=TABLE, fingerprint="f", **others):
    return artifacts.write_shard(store, path, index, table, fingerprint, **others)


# files


def test_write_makes_directories_and_leaves_nothing_else(store, tmp_path):
    store.write("a/b/c.bin", b"data")
    store.write("a/b/c.bin", b"other data")
    assert store.read("a/b/c.bin") == b"other data"
    assert os.listdir(tmp_path / "a/b") == ["c.bin"]


def test_full_disk_leaves_the_old_content_and_no_temporary_file(tmp_path):
    """On a file system of 1 MiB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {mounted.stderr.decode().strip()}")
    try:
        store = Store(str(tmp_path))
        store.write("pools/00000.parquet", b"old")
        with pytest.raises(OSError, match="free space or choose another --run-dir") as caught:
            store.write("pools/00000.parquet", bytes(4 << 20))
        assert caught.value.errno == errno.ENOSPC
        assert "00000.parquet" in str(caught.value)
        assert store.read("pools/00000.parquet") == b"old"
        assert store.names("pools") == ["00000.parquet"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_failed_rename_leaves_no_temporary_file(store, tmp_path):
    """Where a directory stands in the way (it fails for root, too)."""
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="free space or choose another --run-dir"):
        store.write("taken", b"data")
    assert os.listdir(tmp_path) == ["taken"]


def test_file_too_large_for_the_process_leaves_no_temporary_file(tmp_path):
    """As a full disk, through a limit on file sizes, which needs no privileges."""
    program = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
from raypref.artifacts import Store
store = Store({str(tmp_path)!r})
store.write("f", b"old")
try:
    store.write("f", bytes(4 << 20))
except OSError as error:
    print(error)
"""
    from sys import executable

    out = subprocess.run([executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "free space or choose another --run-dir" in out
    assert (tmp_path / "f").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_readers_never_see_a_part_of_a_file(store):
    contents = {bytes([i]) * 200_000 for i in range(4)}
    store.write("f", next(iter(contents)))
    stop = threading.Event()
    seen = []

    def read():
        while not stop.is_set():
            seen.append(store.read("f"))

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(10):
        for data in contents:
            store.write("f", data)
    stop.set()
    thread.join()
    assert len(seen) > 3 and set(seen) <= contents


def test_names_exists_remove_delete(store):
    assert store.names("nothing/here") == []
    assert not store.exists("f")
    store.remove("f")
    store.write("d/g", b"")
    store.write("d/f", b"")
    assert store.names("d") == ["f", "g"]
    assert store.exists("d/f") and store.exists("d")
    store.remove("d/f")
    assert store.names("d") == ["g"]
    store.delete("d")
    assert store.names() == []


def test_local_and_remote_stores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Store("runs/x").local == tmp_path / "runs/x"
    assert Store(f"file://{tmp_path}/y").local == tmp_path / "y"
    Store(f"file://{tmp_path}/y").write("f", b"1")
    assert Store("y").read("f") == b"1"


def test_push_and_pull_copy_folders_whole(store, tmp_path):
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "f").write_bytes(b"1")
    (source / "deep" / "er" / "g").write_bytes(b"2")
    store.push(source, "train/lora")
    assert store.read("train/lora/deep/er/g") == b"2"
    store.pull("train/lora", tmp_path / "target")
    files = {
        str(p.relative_to(tmp_path / "target")): p.read_bytes() for p in (tmp_path / "target").rglob("*") if p.is_file()
    }
    assert files == {"f": b"1", "deep/er/g": b"2"}


def test_broken_json_says_what_to_do(store):
    store.write("m.json", b'{"kind": ')
    with pytest.raises(ValueError, match=r"m\.json: not valid JSON .*delete it"):
        store.read_json("m.json")


# hashes and bytes


def test_digest_depends_on_values_alone():
    assert artifacts.digest({"a": 1, "b": [1, 2]}) == artifacts.digest({"b": (1, 2), "a": 1})
    values = [{}, {"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": None}, {"b": 1}, {"a": [1]}]
    assert len({artifacts.digest(v) for v in values}) == len(values)
    assert artifacts.digest(FIELDS) == "02524bb3e04fb3f5"  # another value would orphan all artifacts that exist


def test_parquet_bytes_are_deterministic():
    rows = [{"id": f"{i}", "prompt": "p" * i, "ref": ""} for i in range(200)]
    tables = [pa.Table.from_pylist(rows, artifacts.INDEX) for _ in range(2)]
    tables.append(pa.concat_tables([tables[0].slice(0, 70), tables[0].slice(70)]).combine_chunks())
    assert len({artifacts.parquet_bytes(t) for t in tables}) == 1
    assert artifacts.parquet_bytes(tables[0]) != artifacts.parquet_bytes(tables[0].slice(1))
    groups = pa.parquet.ParquetFile(pa.BufferReader(artifacts.parquet_bytes(tables[0])))
    assert [groups.metadata.row_group(i).num_rows for i in range(groups.num_row_groups)] == [64, 64, 64, 8]


# shards


def test_a_shard_is_its_table_and_then_its_sidecar(store):
    summary = shard(store, 3, rejected=[{"id": "d", "reason": "corrupt", "detail": "x"}], statistics={"n": 1})
    data = store.read("pools/p/00003.parquet")
    assert summary == store.read_json("pools/p/00003.json")
    assert summary["sha256"] == hashlib.sha256(data).hexdigest()
    assert (summary["rows"], summary["size"], summary["file"]) == (3, len(data), "00003.parquet")
    assert store.read_table("pools/p/00003.parquet") == TABLE
    assert store.read_table("pools/p/00003.parquet", ["ref"]).column_names == ["ref"]


def test_finished_shards_are_those_with_a_sidecar(store):
    assert artifacts.finished_shards(store, "pools/p", "f") == set()
    shard(store, 0)
    shard(store, 12)
    store.write("pools/p/00002.parquet", b"no sidecar yet")
    store.write("pools/p/00003.json", b"{}")  # its table was deleted
    store.write("pools/p/00004.json.ab12cd34.tmp", b"a process was killed here")
    store.write("pools/p/manifest.json", b"{}")
    store.write("pools/p/rejected.parquet", b"")
    assert artifacts.finished_shards(store, "pools/p", "f") == {0, 12}


def test_shards_of_other_inputs_are_refused(store):
    shard(store)
    with pytest.raises(ValueError, match=r"made from other inputs \(fingerprint f, expected g\); delete"):
        artifacts.finished_shards(store, "pools/p", "g")


def test_finalize_is_idempotent_and_byte_identical(store):
    shard(store, 0, rejected=[{"id": "d", "reason": "corrupt", "detail": "x"}], statistics={"dropped": {"tie": 2}})
    shard(store, 1, statistics={"dropped": {"tie": 1, "gap": 4}})
    manifest = artifacts.finalize(store, "pools/p", "pool", FIELDS, 2)
    assert manifest["rows"] == 6
    assert [f["file"] for f in manifest["files"]] == ["00000.parquet", "00001.parquet"]
    assert manifest["rejected"] == {"count": 1, "reasons": {"corrupt": 1}}
    assert manifest["statistics"] == {"dropped": {"tie": 3, "gap": 4}}
    first = {name: store.read(f"pools/p/{name}") for name in store.names("pools/p")}
    assert artifacts.finalize(store, "pools/p", "pool", FIELDS, 2) == manifest
    assert {name: store.read(f"pools/p/{name}") for name in store.names("pools/p")} == first
    assert "rejected.parquet" in first
    # and made anew elsewhere, in another order, the bytes are the same
    shard(store, 1, "pools/q", statistics={"dropped": {"tie": 1, "gap": 4}})
    again = {"rejected": [{"id": "d", "reason": "corrupt", "detail": "x"}], "statistics": {"dropped": {"tie": 2}}}
    shard(store, 0, "pools/q", **again)
    artifacts.finalize(store, "pools/q", "pool", FIELDS, 2)
    assert {name: store.read(f"pools/q/{name}") for name in store.names("pools/q")} == first


def test_finalize_needs_every_shard(store):
    shard(store, 0)
    with pytest.raises(FileNotFoundError):
        artifacts.finalize(store, "pools/p", "pool", FIELDS, 2)
    assert artifacts.read_manifest(store, "pools/p") is None


def test_manifest_is_read_for_equal_fields(store):
    shard(store)
    manifest = artifacts.finalize(store, "pools/p", "pool", FIELDS, 1)
    assert artifacts.read_manifest(store, "pools/p") == manifest
    assert artifacts.read_manifest(store, "pools/p", json.loads(json.dumps(FIELDS))) == manifest
    assert artifacts.read_manifest(store, "pools/q", FIELDS) is None


def test_manifest_of_other_fields_names_them(store):
    shard(store)
    artifacts.finalize(store, "pools/p", "pool", FIELDS, 1)
    other = {"kind": "generated", "sampling": {"steps": 30, "guidance": 7.5}, "seed": 0, "count": 8}
    with pytest.raises(ValueError) as caught:
        artifacts.read_manifest(store, "pools/p", other)
    assert "sampling.steps: 25 -> 30; count: None -> 8; use another --run-dir" in str(caught.value)
    assert "guidance" not in str(caught.value)


def test_manifest_of_another_schema_version_is_refused(store):
    store.write_json("pools/p/manifest.json", {"schema_version": 99})
    with pytest.raises(ValueError, match="schema_version 99, this version reads 2"):
        artifacts.read_manifest(store, "pools/p")


def test_rows_come_in_order_over_shards(store):
    for index in (1, 0):
        rows = [{"id": f"{index}-{i}", "prompt": "", "ref": ""} for i in range(70)]
        shard(store, index, table=pa.Table.from_pylist(rows, artifacts.INDEX))
    artifacts.finalize(store, "pools/p", "index", {}, 2)
    rows = list(artifacts.iter_rows(store, "pools/p", ["id"]))
    assert [row["id"] for row in rows] == [f"{shard}-{i}" for shard in (0, 1) for i in range(70)]
    assert list(rows[0]) == ["id"]


# statistics


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ({}, {"n": 1}, {"n": 1}),
        ({"n": 1}, {}, {"n": 1}),
        ({"n": 1, "x": 0.5}, {"n": 2, "x": 0.25}, {"n": 3, "x": 0.75}),
        ({"d": {"tie": 1}}, {"d": {"tie": 2, "gap": 3}}, {"d": {"tie": 3, "gap": 3}}),
        ({"d": {"gap": 3}}, {"d": {"tie": 2}}, {"d": {"gap": 3, "tie": 2}}),
        (
            {"h": {"edges": [0, 1, 2], "counts": [1, 2]}},
            {"h": {"edges": [0, 1, 2], "counts": [0, 5]}},
            {"h": {"edges": [0, 1, 2], "counts": [1, 7]}},
        ),
        ({"n": 0}, {}, {"n": 0}),
        ({"d": {}}, {}, {"d": {}}),
        ({}, {}, {}),
    ],
)
def test_statistics_add(a, b, expected):
    assert artifacts.add_statistics(a, b) == expected


def test_differences_name_every_field_in_which_two_values_differ():
    old = {"a": 1, "b": {"c": 2, "d": [1, 2]}, "e": "x"}
    assert list(artifacts.differences(old, old)) == []
    new = {"a": 1, "b": {"c": 3, "d": [1]}, "f": None, "g": 0}
    expected = ["b.c: 2 -> 3", "b.d: [1, 2] -> [1]", "e: 'x' -> None", "g: None -> 0"]
    assert list(artifacts.differences(old, new)) == expected
