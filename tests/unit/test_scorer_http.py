"""A reward served elsewhere, against a real HTTP server."""

import json
import time

import numpy as np
import pytest
import torch

from raypref import scorers
from tests.reward_server import brightness, pixels, serve

IMAGES = torch.arange(3 * 3 * 16 * 20).reshape(3, 3, 16, 20).remainder(256).float() / 255
PROMPTS = ["one", "three", "a red hat"]


def load(url, **options):
    return scorers.load("http", {"url": url, **options})


def test_images_arrive_without_loss_and_scores_come_back_in_order():
    with serve(brightness) as (url, seen):
        scores = load(url)(IMAGES, PROMPTS)
    assert len(seen) == 1 and seen[0][0]["prompts"] == PROMPTS and set(seen[0][0]) == {"images", "prompts"}
    received = np.stack(pixels(seen[0][0]))
    assert np.array_equal(received, (IMAGES * 255).round().byte().permute(0, 2, 3, 1).numpy())
    expected = torch.tensor([image.mean().item() + len(prompt) for image, prompt in zip(IMAGES, PROMPTS, strict=True)])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


def test_a_service_that_fails_twice_is_asked_again_with_a_growing_pause():
    times = []

    def answer(body, number):
        times.append(time.monotonic())
        return brightness(body, number) if number > 2 else (503, "busy")

    with serve(answer) as (url, seen):
        assert load(url, retries=2)(IMAGES, PROMPTS).shape == (3,)
    assert len(seen) == 3 and times[2] - times[1] > 0.5


def test_a_service_that_goes_on_failing_is_named_with_its_status():
    with (
        serve(lambda body, number: (500, "out of memory")) as (url, seen),
        pytest.raises(RuntimeError, match=rf"{url}: status 500 .*: out of memory"),
    ):
        load(url, retries=1)(IMAGES, PROMPTS)
    assert len(seen) == 2


@pytest.mark.parametrize(("status", "reason"), [(400, "Bad Request"), (401, "Unauthorized"), (404, "Not Found")])
def test_a_refusal_is_told_at_once(status, reason):
    with (
        serve(lambda body, number: (status, "no such model")) as (url, seen),
        pytest.raises(RuntimeError, match=f"status {status} {reason}: no such model"),
    ):
        load(url)(IMAGES, PROMPTS)
    assert len(seen) == 1


def test_a_redirect_is_not_followed(monkeypatch):
    """It would take the token to another host."""
    monkeypatch.setenv("REWARD_TOKEN", "secret")
    with serve(brightness) as (other, others), serve(lambda body, number: (302, other)) as (url, _):
        with pytest.raises(RuntimeError, match="status 302"):
            load(url, headers_env={"X-Token": "REWARD_TOKEN"})(IMAGES, PROMPTS)
        assert not others


def test_a_slow_service_is_waited_for_no_longer_than_told():
    def slow(body, number):
        time.sleep(5)
        return brightness(body, number)

    with serve(slow) as (url, seen):
        start = time.monotonic()
        with pytest.raises(RuntimeError, match=r"no answer in 2 attempt\(s\) of 0.2 s: .*timed out"):
            load(url, timeout_s=0.2, retries=1)(IMAGES, PROMPTS)
        assert time.monotonic() - start < 4 and len(seen) == 2


def test_a_service_that_is_not_there():
    with serve(brightness) as (url, _):
        pass
    with pytest.raises(RuntimeError, match=r"no answer in 1 attempt\(s\)"):
        load(url, retries=0)(IMAGES, PROMPTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"scores": [1, 2]}', "2 scores for 3 images; one an image"),
        ('{"scores": [1, 2, 3, 4]}', "4 scores for 3 images"),
        ('{"scores": [1, "2", 3]}', "scores must be a list of numbers"),
        ('{"scores": [1, null, 3]}', "scores must be a list of numbers"),
        ('{"scores": [1, true, 3]}', "scores must be a list of numbers"),
        ('{"scores": [[1], [2], [3]]}', "scores must be a list of numbers"),
        ('{"scores": 1}', "scores must be a list of numbers"),
        ('{"rewards": [1, 2, 3]}', r'the answer is not {"scores": \[\.\.\.\]}: {"rewards"'),
        ("[1, 2, 3]", "the answer is not"),
        ("<html>hello</html>", "the answer is not .*hello"),
    ],
)
def test_answers_that_are_none(text, message):
    with serve(lambda body, number: (200, text)) as (url, seen), pytest.raises(ValueError, match=message):
        load(url)(IMAGES, PROMPTS)
    assert len(seen) == 1


def test_a_score_that_is_not_a_number_is_for_the_shard_to_set_aside():
    with serve(lambda body, number: (200, json.dumps({"scores": [1, float("nan"), 3]}))) as (url, _):
        scores = load(url)(IMAGES, PROMPTS)
    assert scores[[0, 2]].tolist() == [1, 3] and scores[1].isnan()


def test_headers_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("REWARD_TOKEN", "Bearer secret\n")
    options = {"headers_env": {"Authorization": "REWARD_TOKEN"}}
    with serve(brightness) as (url, seen):
        load(url, **options)(IMAGES, PROMPTS)
    assert seen[0][1]["Authorization"] == "Bearer secret"
    monkeypatch.delenv("REWARD_TOKEN")
    with pytest.raises(
        ValueError, match=r"headers_env.Authorization: the environment variable 'REWARD_TOKEN' is not set"
    ):
        load(url, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "reward.example/score"}, r"url: 'reward.example/score' must be http\(s\)://host/path"),
        ({"url": "ftp://reward.example"}, r"url: .*must be http"),
        ({"url": "http://x", "timeout_s": 0}, "timeout_s=0 must be above 0"),
        ({"url": "http://x", "retries": -1}, "retries=-1 0 or more"),
    ],
)
def test_arguments_that_cannot_be_used(options, message):
    with pytest.raises(ValueError, match=message):
        scorers.load("http", options)
