"""The judge reads each image by itself, and its negatives are images, but no longer images of an object."""

import jax
import numpy as np
import pytest

from lods_jax.tabletop import classify as judge_file
from lods_jax.tabletop.classifier import HEADS, NEGATIVES, NONE, SIZE, Judge, classify, load_classifier
from lods_jax.tabletop.objects import KINDS

N = 5
IMAGES = np.random.default_rng(0).random((N, SIZE, SIZE, 3), np.float32)
negatives = jax.jit(judge_file.negatives)


@pytest.fixture(scope="module")
def params():
    """Random, large enough to read different things in different noise; `init` would take ten seconds to compile."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(Judge().init, jax.random.key(0), IMAGES[:1])["params"]
    return jax.tree.map(lambda leaf: rng.normal(scale=0.2, size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def renders():
    """Discs on white: what the negatives spoil."""
    y, x = np.mgrid[:SIZE, :SIZE]
    inside = ((x - 32) ** 2 + (y - 32) ** 2 < 20**2)[..., None]
    return np.float32([np.where(inside, color, 1) for color in ((1, 0.2, 0), (0.2, 0.7, 0.3), (0.1, 0.1, 0.9))])


# --- negatives --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("which", range(len(NEGATIVES)), ids=list(NEGATIVES))
def test_a_negative_is_an_image_far_from_the_render_it_replaces(renders, which):
    bad = np.asarray(negatives(jax.random.key(0), renders, np.full(3, which)))
    assert bad.shape == renders.shape
    assert np.all((bad >= 0) & (bad <= 1 + 1e-6))  # false for NaN, too; blurred white may be rounded up
    assert np.all(np.abs(bad - renders).mean((1, 2, 3)) > 0.02)


def test_every_negative_of_a_batch_is_of_its_own_kind_and_draws_its_own_numbers(renders):
    same = np.tile(renders[:1], (3, 1, 1, 1))
    blobs = negatives(jax.random.key(0), same, np.zeros(3, int))
    mixed = negatives(jax.random.key(0), same, np.array([0, 0, 1]))
    np.testing.assert_array_equal(mixed[:2], blobs[:2])
    assert np.any(mixed[2] != blobs[2])
    assert np.any(blobs[0] != blobs[1])


def test_no_blur_is_the_identity_and_blur_leaves_an_even_image_alone():
    blur = jax.jit(judge_file._blur)
    np.testing.assert_allclose(blur(IMAGES[0], np.float32(0)), IMAGES[0], atol=1e-6)
    np.testing.assert_allclose(blur(np.full_like(IMAGES[0], 0.3), np.float32(5)), 0.3, atol=1e-6)


# --- reading ----------------------------------------------------------------------------------------------------------
def test_a_verdict_does_not_depend_on_the_company_of_an_image(params):
    """5 images in chunks of 4, the second filled up with black, against one by one; features are of size 4."""
    together = classify(params, IMAGES, chunk=4)
    for i in range(N):
        for all_of_it, own in zip(together, classify(params, IMAGES[i : i + 1], chunk=4), strict=True):
            np.testing.assert_allclose(all_of_it[i : i + 1], own, rtol=1e-4, atol=1e-5)
    assert len(set(together.color)) > 1


def test_a_verdict_has_one_index_a_head_and_image(params):
    read = classify(params, IMAGES, chunk=4)
    for name, classes in HEADS.items():
        indices = getattr(read, name)
        assert indices.shape == (N,)
        assert np.all((indices >= 0) & (indices < classes))
    assert HEADS["kind"] == len(KINDS) + 1 == NONE + 1


def test_loading_a_judge_that_is_not_there_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no judge at .*none; train one with: lods train-prior") as error:
        load_classifier(tmp_path / "none")
    assert "\n" not in str(error.value)
