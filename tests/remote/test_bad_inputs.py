"""Bad rows inside a job are set aside with a reason and counted; too many of them stop it with one clear error."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest

from raypref.artifacts import Store, iter_rows
from raypref.images import decode
from raypref.mini import renderer
from raypref.remote.tables import TooManyRejected
from tests.remote import world


def real_tasks(config) -> tuple:
    index = next(t for t in world.tasks_of(config, "index") if t.name == "real")
    pool = next(t for t in world.tasks_of(config, "pool") if t.parents[0] == index.path and t.spec["domain"] == "real")
    return index, pool


def test_bad_files_are_set_aside_with_their_reasons(finished):
    index, pool = real_tasks(finished.config)
    prompts = {
        row["id"]: row["ref"].rpartition("/")[2].strip('"}') for row in iter_rows(Store(str(finished.run)), index.path)
    }
    rejected = world.rejected(finished.run, pool)
    assert {prompts[row["id"]]: row["reason"] for row in rejected} == world.BAD
    assert all(row["detail"] for row in rejected)
    assert world.manifest(finished.run, pool)["rejected"] == {
        "count": len(world.BAD),
        "reasons": dict.fromkeys((row["reason"] for row in rejected), 1),
    }
    assert sorted(row["reason"] for row in world.rejected(finished.run, index)) == ["empty caption", "malformed row"]
    malformed = next(row for row in world.rejected(finished.run, index) if row["reason"] == "malformed row")
    assert "line 8" in malformed["detail"] and "JSON" in malformed["detail"]


def test_unusual_files_are_used_as_8_bit_rgb(finished):
    index, pool = real_tasks(finished.config)
    store = Store(str(finished.run))
    names = {row["id"]: row["ref"] for row in iter_rows(store, index.path)}
    found = {
        name: np.asarray(decode(row["images"][0], 1000))
        for row in iter_rows(store, pool.path)
        for name in world.ODD
        if f"/{name}" in names[row["prompt_id"]]
    }
    assert set(found) == set(world.ODD)
    assert all(pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8 for pixels in found.values())
    drawn = [renderer.person(9, 100 + i)[1].mean((0, 1)) for i in range(2)]
    # a person in ink, the same in 16 bits of grey, and another one half transparent over white
    assert np.abs(found["cmyk.jpg"].mean((0, 1)) - drawn[0]).max() < 8
    assert np.abs(found["deep.png"].mean((0, 1)) - drawn[0] @ (0.299, 0.587, 0.114)).max() < 8
    assert np.abs(found["alpha.png"].mean((0, 1)) - (drawn[1] + 255) / 2).max() < 8


def test_the_job_goes_on_with_the_good_rows(finished):
    _, pool = real_tasks(finished.config)
    number = world.GOOD + len(world.ODD)
    assert world.manifest(finished.run, pool)["rows"] == number
    pairs = next(t for t in world.tasks_of(finished.config, "pairs") if t.name == "2-hard")
    assert world.manifest(finished.run, pairs)["rows"] == number


@pytest.mark.parametrize("bad", [(), ("truncated.jpg",)], ids=["in the listing", "among the images"])
def test_too_many_bad_rows_stop_the_job_every_time_until_it_may_go_on(local_ray, tiny, tmp_path, bad):
    photos = world.real_folder(tmp_path / "photos", good=3, odd=(), bad=bad)
    if not bad:
        with (photos / "metadata.jsonl").open("a") as file:
            file.write('{"file_name": "0.png", "text": ""}\n')
    else:
        lines = (photos / "metadata.jsonl").read_text().splitlines()
        (photos / "metadata.jsonl").write_text(
            "\n".join(line for line in lines if "person" in line and line.endswith("}"))
        )
    changes = {"data": {"prompts": {"count": 4}, "max_rejected": 0.0}, "stages": {"easy": None}}
    config = world.small(tiny, real=photos, changes=changes)
    for _ in range(2):
        with pytest.raises(TooManyRejected, match=r"1 of 4 .*max_rejected=0\b") as caught:
            world.walk(config, tmp_path / "run")
        assert "/real-" in str(caught.value) and "mend the source, or raise" in str(caught.value)
        [sidecar] = (tmp_path / "run").glob(f"{str(caught.value).partition(':')[0]}/0*.json")
        [row] = json.loads(sidecar.read_text())["rejected"]
        assert row["reason"] == ("truncated" if bad else "empty caption")
    world.walk(
        config.model_copy(update={"data": config.data.model_copy(update={"max_rejected": 0.25})}), tmp_path / "run"
    )
    _, pool = real_tasks(config)
    assert world.manifest(tmp_path / "run", pool)["rows"] == 3


def test_images_without_a_finite_score_neither_win_nor_lose(local_ray, finished, tiny, tmp_path):
    for name in ("sources", "pools"):
        shutil.copytree(finished.run / name, tmp_path / "run" / name)
    config = world.small(
        tiny, "data.max_rejected=0.9", changes={"scorers": {"preference": {"kind": f"{world.SCORERS}:Patchy"}}}
    )
    before = world.files(tmp_path / "run/pools")
    world.walk(config, tmp_path / "run2", tmp_path / "run", until="1-easy")
    assert world.files(tmp_path / "run/pools") == before
    pool = next(t for t in world.tasks_of(config, "pool") if t.spec["set"] == "prompts")
    score = next(t for t in world.tasks_of(config, "score") if t.spec["pool"] == pool.path)
    pairs = next(t for t in world.tasks_of(config, "pairs") if t.name == "1-easy")
    store = Store(str(tmp_path / "run"))
    values = {row["prompt_id"]: [v[0] for v in row["values"]] for row in iter_rows(store, score.path)}
    nan = {f"{id}/{n}" for id, scores in values.items() for n, value in enumerate(scores) if math.isnan(value)}
    assert 20 < len(nan) < 120
    rejected = world.rejected(tmp_path / "run", score)
    assert {row["id"] for row in rejected} == nan and {row["reason"] for row in rejected} == {"score is not finite"}
    assert world.manifest(tmp_path / "run", score)["rejected"]["count"] == len(nan)
    images = {row["prompt_id"]: row["images"] for row in iter_rows(store, pool.path)}
    made = list(iter_rows(Store(str(tmp_path / "run2")), pairs.path))
    assert 20 < len(made) <= 48
    for pair in made:
        for role in ("winner", "loser"):
            number = images[pair["prompt_id"]].index(pair[role])
            assert values[pair["prompt_id"]][number] == pytest.approx(pair[f"{role}_score"])
        finite = [v for v in values[pair["prompt_id"]] if not math.isnan(v)]
        assert pair["winner_score"] == max(finite) > pair["loser_score"] == min(finite)
