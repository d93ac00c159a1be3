"""Which pixels of an image are the object, and how it is framed: no single pixel decides."""

import numpy as np
import pytest

from lods_jax.core.cutouts import centre, cut_out, framed


def disc(size=64, radius=20, centre=(32, 32)):
    """[size size] share of a pixel that a disc covers."""
    y, x = np.mgrid[:size, :size] + 0.5
    return np.clip(radius + 0.5 - np.hypot(y - centre[0], x - centre[1]), 0, 1).astype(np.float32)


def on(alpha, color, behind):
    return alpha[..., None] * np.float32(color) + (1 - alpha[..., None]) * np.float32(behind)


def opaque(rgb):
    return np.concatenate([rgb, np.ones((*rgb.shape[:2], 1), np.float32)], -1)


@pytest.mark.parametrize("behind", [(1, 1, 1), (0.2, 0.5, 0.3), (0, 0, 0)])
def test_a_plain_background_is_removed(behind):
    rng = np.random.default_rng(0)
    rgb = on(disc(), (0.9, 0.1, 0.1), behind) + 0.01 * rng.standard_normal((64, 64, 3)).astype(np.float32)
    alpha = cut_out(opaque(rgb.clip(0, 1)))[..., 3]
    assert np.mean(np.abs(alpha - (disc() > 0.2))) < 0.02


def test_what_has_the_colour_of_the_background_inside_the_object_stays():
    ring = disc(radius=24) - disc(radius=10)
    alpha = cut_out(opaque(on(ring, (0.9, 0.1, 0.1), (1, 1, 1))))[..., 3]
    assert alpha[32, 32] == 1
    assert alpha[2, 2] == 0


def test_an_alpha_is_taken_as_it_is():
    rgba = np.concatenate([on(disc(), (1, 0, 0), (0, 1, 0)), disc()[..., None]], -1)
    np.testing.assert_array_equal(cut_out(rgba), rgba)


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (opaque(np.random.default_rng(0).random((64, 64, 3), np.float32)), "neither an alpha nor a plain background"),
        (opaque(np.ones((64, 64, 3), np.float32)), "the image shows nothing"),
        (np.zeros((64, 64, 4), np.float32), "the image shows nothing"),
        (np.ones((1, 1, 4), np.float32), "at least 8 x 8 pixels, got 1 x 1"),
        (np.ones((4, 900, 4), np.float32), "at least 8 x 8 pixels, got 900 x 4"),
    ],
)
def test_what_has_no_object_is_refused(picture, says):
    with pytest.raises(ValueError, match=says):
        cut_out(picture)


@pytest.mark.parametrize(("size", "edge"), [(64, 64), (48, 200), (90, 30)])
def test_framing_puts_the_object_in_the_middle_at_its_share(size, edge):
    alpha = disc(size, size / 8, (size / 4, 0.7 * size))
    rgba = np.concatenate([on(alpha, (0.3, 0.6, 0.9), (0, 0, 0)) / np.maximum(alpha, 1e-6)[..., None], alpha[..., None]], -1)
    out = framed(rgba.clip(0, 1), edge, 0.7)
    rows, columns = (np.flatnonzero((out[..., 3] > 0.5).any(axis)) for axis in (1, 0))
    for inside in (rows, columns):
        assert abs((inside[0] + inside[-1] + 1) / 2 - edge / 2) <= 0.05 * edge
        assert abs(len(inside) - 0.7 * edge) <= 0.1 * edge
    np.testing.assert_allclose(out[edge // 2, edge // 2], [0.3, 0.6, 0.9, 1], atol=0.01)


def test_a_picture_as_it_is_keeps_its_centre_square():
    rgba = np.random.default_rng(0).random((40, 60, 4), np.float32)
    rgba[..., 3] = 1
    np.testing.assert_allclose(framed(rgba, 40), rgba[:, 10:50], atol=1e-5)


def test_colours_do_not_bleed_in_from_what_is_transparent():
    """A red disc on transparent green: no green after shrinking."""
    rgba = np.concatenate([on((disc() > 0.5).astype(np.float32), (1, 0, 0), (0, 1, 0)), (disc() > 0.5)[..., None]], -1)
    out = framed(rgba.astype(np.float32), 16)
    assert out[..., 1].max() < 1e-3


# --- no single pixel decides ----------------------------------------------------------------------------------------------------
def object_alpha(size=96):
    return disc(size, 26, (size / 2, size / 2))


def with_alpha(alpha, color=(0.9, 0.2, 0.1)):
    return np.concatenate([np.ones((*alpha.shape, 3), np.float32) * np.float32(color), alpha[..., None]], -1)


def box_of(rgba):
    rows, columns = (np.flatnonzero((rgba[..., 3] > 0.5).any(axis)) for axis in (1, 0))
    return rows[0], rows[-1], columns[0], columns[-1]


def same_frame(a, b):
    """The same object at the same place, colours by how much they are seen; a soft edge may be narrower."""
    a, b = (framed(cut_out(x), 64, 0.7) for x in (a, b))
    assert box_of(a) == box_of(b)
    assert np.mean(np.abs(a[..., 3] - b[..., 3])) < 0.02
    assert np.mean(np.abs(a[..., :3] * a[..., 3:] - b[..., :3] * b[..., 3:])) < 0.02


@pytest.mark.parametrize("holes", [1, 4, 40])
def test_a_few_transparent_pixels_leave_a_plain_background_a_background(holes):
    rgb = on(object_alpha(), (0.9, 0.2, 0.1), (1, 1, 1))
    stray = opaque(rgb)
    rows, columns = np.random.default_rng(holes).integers(0, 96, (2, holes))
    stray[rows, columns] = 0  # black and transparent, as editors leave them
    expected, found = cut_out(opaque(rgb)), cut_out(stray)
    outside = np.hypot(*(np.mgrid[:96, :96] + 0.5 - 48)) > 30
    np.testing.assert_array_equal(found[outside, 3], expected[outside, 3])
    assert box_of(found) == box_of(expected)


def test_an_even_alpha_is_no_matte():
    rgb = on(object_alpha(), (0.9, 0.2, 0.1), (1, 1, 1))
    faint = np.concatenate([rgb, np.full((96, 96, 1), 254 / 255, np.float32)], -1)
    np.testing.assert_array_equal(cut_out(faint)[..., 3], cut_out(opaque(rgb))[..., 3])


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_dust_far_from_the_object_does_not_move_its_frame(size):
    clean = with_alpha(object_alpha())
    dusty = clean.copy()
    dusty[2 : 2 + size, 3 : 3 + size, 3] = 1
    dusty[90:92, 5:7, 3] = 0.6
    same_frame(dusty, clean)
    on_white = [opaque(x[..., :3] * x[..., 3:] + 1 - x[..., 3:]) for x in (dusty, clean)]
    same_frame(*on_white)


@pytest.mark.parametrize("width", [1, 2])
def test_a_line_along_the_border_is_no_part_of_a_small_object(width):
    """What cropping and scanning leave: more pixels than a small object has, and no body."""
    clean = with_alpha(disc(96, 9, (48, 48)))
    lined = clean.copy()
    lined[:width, :, 3] = lined[:, -width:, 3] = 1
    same_frame(lined, clean)


def test_a_part_that_weighs_something_stays():
    """Two balls, one a third as wide as the other: a ninth of the area."""
    alpha = np.maximum(disc(96, 24, (40, 40)), disc(96, 8, (80, 80)))
    np.testing.assert_array_equal(cut_out(with_alpha(alpha))[..., 3], alpha)


@pytest.mark.parametrize("haze", [26, 40, 90])
def test_haze_is_no_object(haze):
    """An even rest of alpha all over the image, up to a third."""
    clean = object_alpha()
    hazy = np.maximum(clean, np.float32(haze / 255))
    found = cut_out(with_alpha(hazy))[..., 3]
    assert found[0, 0] == 0
    np.testing.assert_allclose(found[clean == 1], 1, atol=1e-6)
    same_frame(with_alpha(hazy), with_alpha(clean))


def test_uneven_haze_is_no_object_either():
    clean = object_alpha()
    noise = np.random.default_rng(0).uniform(0, 50 / 255, clean.shape).astype(np.float32)
    same_frame(with_alpha(np.maximum(clean, noise)), with_alpha(clean))


@pytest.mark.parametrize("haze", [26, 45])
def test_a_halo_or_a_shadow_is_no_object(haze):
    """A faint disc around the object, which does not reach the border."""
    clean = object_alpha()
    faint = np.maximum(clean, np.float32(haze / 255) * disc(96, 40, (50, 46)))
    found = cut_out(with_alpha(faint))[..., 3]
    assert found[50, 46 + 36] == 0
    same_frame(with_alpha(faint), with_alpha(clean))


def test_what_is_all_glass_stays():
    """An image of alpha 0.3 on alpha 0 is a translucent object, not haze."""
    alpha = 0.3 * object_alpha()
    np.testing.assert_array_equal(cut_out(with_alpha(alpha))[..., 3], alpha)


def test_where_alpha_is_all_there_is_to_go_by_it_is_taken():
    """Nearly all of the image is object, and its colours are no plain background."""
    rgb = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    alpha = np.ones((64, 64), np.float32)
    alpha[:, 0] = 0
    np.testing.assert_array_equal(cut_out(np.concatenate([rgb, alpha[..., None]], -1))[..., 3], alpha)


@pytest.mark.parametrize("size", [16, 37, 64])
def test_the_centre_of_depths_holds_only_depths_that_are_there(size):
    depth = np.random.default_rng(0).choice([2.0, 3.0, 1e10], (48, 64)).astype(np.float32)
    found = centre(depth, size)
    assert found.shape == (size, size)
    assert set(np.unique(found)) <= {2.0, 3.0, np.float32(1e10)}
    np.testing.assert_array_equal(centre(depth, 48), depth[:, 8:56])
