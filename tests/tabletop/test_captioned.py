import numpy as np

from lods_jax.priors.captioned_images import posterior_mean
from lods_jax.tabletop import captioned
from lods_jax.tabletop.dataset import Renders
from lods_jax.tabletop.objects import COMPOSITE


def fake_renders(key, part, size, split):
    """Two tiny images of every kind, so that nothing has to be traced."""
    kind = np.arange(24) % 12
    labels = np.stack([kind, kind % 8, kind % 3, kind % 4], 1)
    return Renders(np.full((24, size, size, 3), part, np.uint8), labels, *np.zeros((3, 24)))


def test_features_are_words_of_the_caption_and_the_cache_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(captioned, "fresh_renders", fake_renders)
    first = captioned.captioned_renders(2, 4, cache=tmp_path)
    monkeypatch.setattr(captioned, "fresh_renders", None)  # what is cached is not rendered again
    second = captioned.captioned_renders(2, 4, cache=tmp_path)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    rgb, features, words = first
    assert rgb.shape == (48, 4, 4, 3)
    named = [{word for word, on in zip(words, row, strict=True) if on} for row in features]
    assert named[0] == {"ball", "red", "plain"}  # a ball has no front
    assert named[4] == {"mug", "blue", "striped", "side"}
    assert all(("view" not in n) and (bool(n & set(COMPOSITE)) == (len(n) == 4)) for n in named)


def test_the_exact_prior_takes_them(tmp_path, monkeypatch):
    monkeypatch.setattr(captioned, "fresh_renders", fake_renders)
    prior = posterior_mean(*captioned.captioned_renders(1, 4, cache=tmp_path))
    assert prior.embed({}, ["a plain red ball", "a blue striped mug, side view"]).shape == (2, 1, 27)
