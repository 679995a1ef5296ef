"""What an actor or worker gets of a cluster: a pure rule, so that it can be checked for clusters that are not here."""

import pytest

from raypref.recipes import RECIPES
from raypref.remote.cluster import share
from tests.conftest import configured


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("gpus", [0, 1, 2, 8])
def test_every_recipe_fits_on_what_there_is(name, gpus):
    config = configured(name)
    total = {"CPU": 16.0, "GPU": float(gpus)}
    generate, score, train = (share(config, kind, total) for kind in ("generate", "score", "train"))
    assert generate.actors * generate.gpus + score.actors * score.gpus <= gpus
    assert generate.actors * generate.cpus + score.actors * score.cpus <= 16
    assert train.actors * train.gpus <= gpus


def test_given_actors_share_one_gpu():
    config = configured("hgdpo_sd15", "resources.generate.actors=2")
    part = share(config, "generate", {"CPU": 8, "GPU": 1})
    assert (part.actors, part.gpus, part.device) == (2, 0.375, "cuda")


def test_without_gpus_the_device_is_the_cpu():
    part = share(configured("mini"), "train", {"CPU": 8, "GPU": 4})
    assert (part.actors, part.gpus, part.device, part.threads) == (2, 0, "cpu", 1)
