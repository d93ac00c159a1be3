"""The classifier reads each image by itself, at any size."""

import jax
import numpy as np
import pytest

from lods_jax.tabletop.classifier import HEADS, NONE, SIZE, Classifier, classify, load_classifier
from lods_jax.tabletop.objects import KINDS

N = 5
IMAGES = np.random.default_rng(0).random((N, SIZE, SIZE, 3), np.float32)


@pytest.fixture(scope="module")
def params():
    """Random, large enough to read different things in different noise; `init` would take ten seconds to compile."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(Classifier().init, jax.random.key(0), IMAGES[:1])["params"]
    return jax.tree.map(lambda leaf: rng.normal(scale=0.2, size=leaf.shape).astype(np.float32), shapes)


def test_a_reading_does_not_depend_on_the_company_of_an_image(params):
    """5 images in chunks of 4, the second filled up with black, against one by one; features are of size 4."""
    together = classify(params, IMAGES, chunk=4)
    for i in range(N):
        for all_of_it, own in zip(together, classify(params, IMAGES[i : i + 1], chunk=4), strict=True):
            np.testing.assert_allclose(all_of_it[i : i + 1], own, rtol=1e-4, atol=1e-5)
    assert len(set(together.color)) > 1


def test_a_reading_has_one_index_a_head_and_a_quality_an_image(params):
    read = classify(params, IMAGES, chunk=4)
    for name, classes in HEADS.items():
        values = getattr(read, name)
        assert values.shape == (N,)
        assert np.all((values >= 0) & (values < classes if name != "quality" else values <= 1))
    assert HEADS["kind"] == len(KINDS) + 1 == NONE + 1


def test_images_of_another_size_are_read_as_their_enlargements(params):
    small = IMAGES[:2, ::2, ::2]
    large = np.asarray(jax.image.resize(small, (2, SIZE, SIZE, 3), "linear"))
    for ours, theirs in zip(classify(params, small, chunk=4), classify(params, large, chunk=4), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_loading_a_classifier_that_is_not_there_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no classifier at .*none; train one with: lods train-prior") as error:
        load_classifier(tmp_path / "none")
    assert "\n" not in str(error.value)
