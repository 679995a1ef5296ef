"""Athec's statistics against images whose values can be worked out by hand."""

import colorsys
import math

import pytest
import torch

from raypref.scorers import athec

SIDE = 48


def measure(*images: torch.Tensor) -> list[dict[str, float]]:
    rows = athec.Athec()(torch.stack(images), [""] * len(images)).tolist()
    return [dict(zip(athec.Athec.columns, row, strict=True)) for row in rows]


def plain(red: float, green: float, blue: float) -> torch.Tensor:
    return torch.tensor([red, green, blue], dtype=torch.float).view(3, 1, 1).expand(3, SIDE, SIDE).clone()


def test_a_plain_image():
    [found] = measure(plain(0.2, 0.6, 0.4))
    assert found["brightness"] == pytest.approx(0.299 * 0.2 + 0.587 * 0.6 + 0.114 * 0.4)
    assert found["saturation"] == pytest.approx(2 / 3) and found["value"] == pytest.approx(0.6)
    assert found["hue_count"] == 1 and found["contrast_range"] == 1
    # one place in the opponent colours: rg = -102, yb = 0
    assert found["colorfulness"] == pytest.approx(0.3 * 102, rel=1e-4)
    for name in ("brightness_sd", "saturation_sd", "value_sd", "entropy", "sharpness", "balance"):
        assert found[name] == pytest.approx(0, abs=1e-4), name
    assert found["depth_of_field"] == 1
    assert found["thirds"] == pytest.approx(math.hypot(1 / 6, 1 / 6), abs=1e-5)


def test_two_halves():
    image = plain(0, 0, 0)
    image[:, :, SIDE // 2 :] = torch.tensor([1.0, 0, 0]).view(3, 1, 1)  # black and red
    [found] = measure(image)
    assert found["value"] == found["value_sd"] == pytest.approx(0.5)
    assert found["saturation"] == found["saturation_sd"] == pytest.approx(0.5)
    assert found["entropy"] == pytest.approx(math.log(2))
    assert found["contrast_range"] == round(255 * 0.299) + 1  # from black to red's grey
    # rg is 0 or 255, yb 0 or 127.5: spread and mean are half of each
    assert found["colorfulness"] == pytest.approx(1.3 * math.hypot(127.5, 63.75), rel=1e-5)
    # the Laplacian is +76 and -76 in the two columns of the edge
    assert found["sharpness"] == pytest.approx(255 * 0.299 * math.sqrt(2 / SIDE), rel=1e-4)


def test_hsv_equals_colorsys():
    colors = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    colors[:3] = torch.tensor([[0.5, 0.5, 0.5], [0, 0, 0], [1, 0, 0.5]])
    found = torch.stack([x.flatten() for x in athec.hsv(colors.view(50, 3, 1, 1))], dim=1)
    expected = torch.tensor([colorsys.rgb_to_hsv(*color) for color in colors.tolist()])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_hues_are_counted_where_they_are_common_and_visible():
    image = plain(0, 0, 0)
    for place, color in enumerate(([0.9, 0, 0], [0, 0.9, 0], [0, 0, 0.9])):
        image[:, place] = torch.tensor(color).view(3, 1)
    image[:, 3, :2] = torch.tensor([0.9, 0.9, 0]).view(
        3, 1
    )  # yellow, in 2 of 48 pixels of a row: 4 % of the commonest hue
    image[:, 4] = torch.tensor([0.9, 0.8, 0.9]).view(3, 1)  # too pale
    [found] = measure(image)
    assert found["hue_count"] == 3
    image[:, 3, :4] = torch.tensor([0.9, 0.9, 0]).view(3, 1)
    assert measure(image)[0]["hue_count"] == 4


def test_contrast_range_leaves_out_a_tenth():
    grey = torch.full((100,), 100 / 255)
    grey[:6], grey[94:] = 0, 1.0  # 12 of 100 at the ends: one of them is needed for more than 90
    assert athec.histogram(grey.view(1, 10, 10))[0].item() == 101
    grey[3:6], grey[94:97] = 90 / 255, 105 / 255  # 88 + 3: either neighbour is enough, and the nearer one is taken
    assert athec.histogram(grey.view(1, 10, 10))[0].item() == 6


def test_a_sharp_middle_has_depth_of_field():
    noise = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    middle, corner = plain(0.5, 0.5, 0.5), plain(0.5, 0.5, 0.5)
    middle[:, 12:36, 12:36], corner[:, :8, :8] = noise[12:36, 12:36], noise[:8, :8]
    a, b, c = (found["depth_of_field"] for found in measure(middle, corner, noise.expand(3, SIDE, SIDE)))
    assert a > 3 and b == 0 and c == pytest.approx(1, abs=0.1)


def disc(x: float, y: float) -> torch.Tensor:
    """A bright disc on dark ground, its centre in sides of the image."""
    place = (torch.arange(SIDE) + 0.5) / SIDE
    inside = (place - x).square() + (place[:, None] - y).square() < 0.01
    return torch.where(inside, 0.9, 0.3).expand(3, SIDE, SIDE)


def test_composition_follows_what_stands_out():
    middle, left, right, third = measure(disc(0.5, 0.5), disc(0.2, 0.5), disc(0.8, 0.5), disc(2 / 3, 1 / 3))
    assert middle["balance"] < 0.03 and middle["thirds"] > 0.2
    for found in (left, right):
        assert found["balance"] == pytest.approx(0.27, abs=0.05)
    assert third["thirds"] < 0.1


def test_every_column_is_described():
    for name in athec.Athec.columns:
        assert name in athec.Athec.__doc__, name
