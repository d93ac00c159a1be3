"""What a training batch asks, and what it says is right."""

import jax
import numpy as np
import pytest

from lods_jax.tabletop import train_classifier as tc
from lods_jax.tabletop.classifier import HEADS, NONE
from lods_jax.tabletop.damage import DAMAGES, NOTHING
from lods_jax.tabletop.dataset import sample_defects
from lods_jax.tabletop.objects import DEFECTS, KINDS

B, D = 32, 6


@pytest.fixture(scope="module")
def batch(monkeypatch_module):
    """Discs of 32 px as renders; of the defective objects one half is right all the same."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    inside = (np.hypot(x - 16, y - 16) < 9)[None, ..., None]
    rgb = np.where(inside, rng.integers(0, 255, (B, 1, 1, 3)), 255).astype(np.uint8)
    labels = rng.integers(0, (12, 8, 3, 4), (B, 4))
    true = rgb[:D]
    bad = np.where(np.arange(D)[:, None, None, None] < 2, true, 255).astype(np.uint8)
    return jax.jit(tc.examples)(jax.random.key(0), rgb, labels, bad, true, labels[:D])


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tc, "SIZE", 32)
        yield patch


CLEAN, KEPT = B - len(DAMAGES), D - len(NOTHING)


def test_every_image_is_asked_for_its_quality_and_true_renders_for_everything(batch):
    images, targets, asked = batch
    assert images.shape == (B + D, 32, 32, 3)
    assert set(targets) == set(asked) == set(HEADS)
    assert np.all(asked["quality"])
    for head in ("kind", "color", "pattern"):
        assert np.all(asked[head][:CLEAN])
    assert not np.any(asked["color"][CLEAN:])


def test_true_renders_have_quality_1_and_images_of_nothing_0(batch):
    _, targets, _ = batch
    np.testing.assert_array_equal(targets["quality"][:CLEAN], 1)
    np.testing.assert_array_equal(targets["quality"][-len(NOTHING) :], 0)
    assert np.all(targets["kind"][-len(NOTHING) :] == NONE)
    assert np.all(targets["kind"][:CLEAN] != NONE)


def test_a_defect_that_does_not_show_costs_nothing(batch):
    _, targets, _ = batch
    quality = np.asarray(targets["quality"])[B : B + KEPT]
    np.testing.assert_array_equal(quality[:2], 1)
    assert np.all(quality[2:] < 0.5)


@pytest.mark.slow
def test_defective_objects_differ_from_true_ones_where_the_defect_shows_and_share_everything_else():
    bad, true = sample_defects(jax.random.key(0), 8, 32)
    differs = np.abs(bad.astype(int) - true.rgb).max((1, 2, 3)).reshape(len(DEFECTS), 8) > 20
    assert np.all(differs.any(1))
    assert [KINDS[k] for k in true.labels[::8, 0]] == list(DEFECTS.values())
    np.testing.assert_array_equal(bad[:, 0, 0], true.rgb[:, 0, 0])  # the same background
