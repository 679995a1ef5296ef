"""The renderer of the miniature world: pure, readable captions, a visible realism gap."""

import numpy as np
import pytest

from raypref.mini import renderer


def test_person_is_a_function_of_seed_and_index():
    text, image = renderer.person(3, 5)
    again_text, again = renderer.person(3, 5)
    assert text == again_text
    np.testing.assert_array_equal(image, again)
    assert not np.array_equal(image, renderer.person(3, 6)[1])
    assert not np.array_equal(image, renderer.person(4, 5)[1])
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8


def test_order_of_rendering_does_not_matter():
    """Caches (cloth, gradients, textures) must not be changed by the images drawn from them."""
    first = [renderer.person(0, i)[1] for i in range(12)]
    backwards = [renderer.person(0, i)[1] for i in reversed(range(12))][::-1]
    np.testing.assert_array_equal(first, backwards)


@pytest.mark.parametrize("index", range(30))
def test_caption_round_trip(index):
    attributes = renderer.sample_attributes(11, index)
    text = renderer.caption(attributes)
    assert renderer.parse_caption(text) == attributes
    assert 20 <= len(text.split()) <= 28
    assert set(text.split()) <= set(renderer.VOCABULARY)


def test_every_value_survives_the_round_trip():
    base = renderer.sample_attributes(0, 0)
    for name, words in renderer.ATTRIBUTES.items():
        for word in words:
            assert renderer.parse_caption(renderer.caption({**base, name: word}))[name] == word


def test_parse_ignores_unknown_words_and_refuses_nothing_known():
    assert renderer.parse_caption("An oil painting, RED shirt, beach!? cap") == {
        "shirt_color": "red",
        "accessory": "cap",
    }
    with pytest.raises(ValueError, match="no attribute"):
        renderer.parse_caption("a bowl of fruit")


def test_captions_do_not_depend_on_realism():
    assert renderer.person(0, 1, realism=0.0)[0] == renderer.person(0, 1, realism=1.0)[0]


def saturation(image):
    return (image.max(-1).astype(float) - image.min(-1)).mean()


def sharpness(image):
    grey = image.mean(-1)
    return np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()


def test_realism_gap_shows_in_colour_and_sharpness():
    for statistic in (saturation, sharpness):
        levels = [np.mean([statistic(renderer.person(2, i, r)[1]) for i in range(24)]) for r in (0.0, 0.4, 0.8, 1.0)]
        assert levels == sorted(levels)
        assert levels[-1] > 1.4 * levels[0]


def test_blend_is_exact_at_its_ends_and_checked():
    real, degraded = renderer.render_pair(renderer.sample_attributes(0, 0), 1)
    np.testing.assert_array_equal(renderer.blend(real, degraded, 1.0), real)
    np.testing.assert_array_equal(renderer.blend(real, degraded, 0.0), degraded)
    with pytest.raises(ValueError, match="realism"):
        renderer.blend(real, degraded, 1.5)


def test_each_attribute_changes_the_image():
    base = renderer.sample_attributes(0, 3)
    base["accessory"] = "nothing"
    for name, words in renderer.ATTRIBUTES.items():
        images = [renderer.render({**base, name: word}, 9, realism=0.0).astype(int) for word in words]
        for i in range(1, len(images)):
            assert np.abs(images[i] - images[0]).max() > 25, (name, words[i])
