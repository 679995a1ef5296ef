"""Inception's features for FID, with random weights in the layout of the published file."""

import pickle

import numpy as np
import pytest
import torch

from raypref import metrics, scorers

fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="needs the extra fid")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The keys and shapes of torchvision's network, which the published file was ported to: 1008 classes, no second head."""
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    network = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    path = tmp_path_factory.mktemp("fid") / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(network.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def scorer(weights):
    return scorers.load("inception", {"model": weights})


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(1))


def test_features_equal_the_librarys(weights, scorer, images):
    found = scorer(images, [""] * 3)
    network = fidelity.FeatureExtractorInceptionV3("by hand", ["2048"], weights)
    [expected] = network(torch.from_numpy((images.numpy() * 255).round().astype(np.uint8)))
    assert found.shape == (3, 2048) and found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, expected)
    assert (found - found[:1]).abs().max() > 1e-3


def test_an_image_has_one_value_in_any_batch_and_order(scorer, images):
    whole = scorer(images, [""] * 3)
    for order in ([1], [2, 1, 0]):
        torch.testing.assert_close(scorer(images[order], [""] * len(order)), whole[order], atol=1e-4, rtol=1e-4)


def test_the_frechet_distance_of_features_equals_the_librarys_fid():
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 12)), 1 + rng.normal(size=(50, 12)) @ rng.normal(size=(12, 12))
    statistics = [{"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} for x in (a, b)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


class Trap:
    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def test_a_file_that_would_run_code_is_refused_before_the_library_sees_it(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"fc.bias": Trap()}, path)
    with pytest.raises(ValueError, match=rf"scorer 'inception' .*{path} holds more than tensors"):
        scorers.load("inception", {"model": str(path)})
    path.write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(ValueError, match="holds more than tensors"):
        scorers.load("inception", {"model": str(path)})
    assert not Trap.sprung


def test_other_weights_and_no_file_are_said(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth holds other weights than those of FID's Inception"):
        scorers.load("inception", {"model": str(tmp_path / "other.pth")})
    with pytest.raises(ValueError, match="no_such_file"):
        scorers.load("inception", {"model": "/no_such_file"})
