"""Noise that stays over the steps: normal and white in every view, and one noise at one surface point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.cameras import project, rays, turntable
from lods_jax.core.noise_schedule import (
    STABLE_DIFFUSION,
    add_noise,
    flow_matching,
    from_betas,
    scaled_linear_betas,
    signal_and_noise,
)
from lods_jax.core.types import Render
from lods_jax.distillation.fixed_noise import CUBE, one_noise, surface_noise, surface_voxels
from lods_jax.distillation.inversions import along_path
from lods_jax.distillation.objectives import cfd, dsd, sds
from lods_jax.distillation.scores import Denoiser, score
from lods_jax.priors.ddim import ddim

SIZE, CHANNELS, VIEWS = 8, 2, 18  # views 20 degrees apart
CAMERA = turntable(VIEWS)
KEYS = jax.random.split(jax.random.key(0), 256)
INSIDE = slice(2, 6)  # latent pixels that the sphere covers whole


def sphere(camera, n=64, radius=0.7):
    """What cameras see of an opaque ball; and the surface points."""
    origins, directions = rays(camera, n, n)
    along = -jnp.sum(origins * directions, -1, keepdims=True)
    inside = radius**2 - jnp.sum(origins**2, -1, keepdims=True) + along**2
    reach = along - jnp.sqrt(jnp.maximum(inside, 0))
    hit = (inside > 0).astype(jnp.float32)
    forward = camera.c2w[:, None, None, :3, 2]
    depth = hit * reach * jnp.sum(directions * forward, -1, keepdims=True)
    return Render(jnp.ones((*hit.shape[:3], 3)), hit, depth, {}), origins + reach * directions


def latents(camera):
    return jnp.zeros((len(camera.view), SIZE, SIZE, CHANNELS))


def two(i, j):
    return jax.tree.map(lambda x: x[jnp.array([i, j])], CAMERA)


PAIR = two(0, 1)
RENDER, POINTS = sphere(PAIR)
draw = jax.jit(jax.vmap(lambda key, *seen: surface_noise(jnp.stack([key] * 2), *seen), (0, None, None, None)))


@pytest.fixture(scope="module")
def drawn():
    return np.asarray(draw(KEYS, latents(PAIR), RENDER, PAIR))  # [keys views h w c]


def correlation(a, b):
    """Over keys and channels, of unit normals [k ... c]."""
    return (a * b).mean((0, -1))


def test_every_pixel_is_standard_normal_at_edges_too(drawn):
    """256 keys and two channels: a variance is known to 6 percent, its mean over 128 pixels to 0.6."""
    variance = (drawn**2).mean((0, -1))
    assert variance.mean() == pytest.approx(1, abs=0.02)
    assert abs(variance - 1).max() < 0.3
    assert abs(drawn.mean()) < 0.01
    assert (drawn**4).mean() == pytest.approx(3, abs=0.1)  # a normal's, and of no mixture of scales


def test_pixels_of_a_view_are_independent_but_for_the_voxels_on_their_border(drawn):
    """Two latent pixels share a row of voxels out of seven or so."""
    right, below = correlation(drawn[:, :, :, 1:], drawn[:, :, :, :-1]), correlation(drawn[:, :, 1:], drawn[:, :, :-1])
    far = correlation(drawn[:, :, :, 2:], drawn[:, :, :, :-2])
    assert right.mean() < 0.1
    assert below.mean() < 0.1
    assert abs(far.mean()) < 0.01


def test_one_surface_point_has_one_noise_in_two_views(drawn):
    """The views are 20 degrees apart, and their pixels cut the surface otherwise: what is shared is the voxels that both met."""
    step = 64 // SIZE
    centres = POINTS[0, step // 2 :: step, step // 2 :: step][INSIDE, INSIDE].reshape(-1, 3)
    places, _ = project(jax.tree.map(lambda x: x[1:], PAIR), centres, SIZE, SIZE)
    x, y = np.floor(np.asarray(places[0])).astype(int).T
    here = drawn[:, 0, INSIDE, INSIDE].reshape(len(KEYS), -1, CHANNELS)
    assert correlation(here, drawn[:, 1, y, x]).mean() > 0.2
    assert abs(correlation(here, drawn[:, 1, SIZE - 1 - y, x]).mean()) < 0.03  # of other points


def test_a_camera_that_rolls_over_sees_the_noise_upside_down(drawn):
    over = PAIR.replace(c2w=PAIR.c2w @ jnp.diag(jnp.array([-1.0, -1.0, 1.0, 1.0]))[None])
    rolled = np.asarray(draw(KEYS[:8], latents(over), sphere(over)[0], over))
    shared = correlation(rolled[:, :, ::-1, ::-1][:, :, INSIDE, INSIDE], drawn[:8, :, INSIDE, INSIDE])
    assert shared.mean() > 0.9  # rounding puts a sample on the border of two voxels into the other one


def test_behind_the_object_the_noise_is_fixed_to_the_picture(drawn):
    np.testing.assert_array_equal(drawn[:, 0, 0, 0], drawn[:, 1, 0, 0])
    empty = jax.tree.map(jnp.zeros_like, RENDER)
    nothing = np.asarray(draw(KEYS[:2], latents(PAIR), empty, PAIR))
    np.testing.assert_array_equal(nothing[:, 0], nothing[:, 1])
    assert np.isfinite(nothing).all()
    np.testing.assert_array_equal(nothing[:, 0, 0, 0], drawn[:2, 0, 0, 0])


def test_voxels_of_the_background_are_none_of_the_surface():
    voxels = np.asarray(surface_voxels(RENDER, PAIR, 64, 64, 0.03))
    seen = np.asarray(RENDER.opacity[..., 0]) > 0.5
    assert voxels[seen].min() >= 0
    assert voxels[seen].max() < CUBE**3
    assert len(np.unique(voxels[0][~seen[0]])) == (~seen[0]).sum()
    assert voxels[~seen].min() >= CUBE**3


def test_one_noise_is_that_of_its_key_in_all_views():
    z = latents(PAIR)
    first, again, other = (one_noise(jnp.stack([key] * 2), z, RENDER, PAIR) for key in (KEYS[0], KEYS[0], KEYS[1]))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[0], first[1])
    assert float(jnp.abs(first - other).min()) > 0


# --- paths ------------------------------------------------------------------------------------------------------------------
SEEDS, DEVIATION = 16, 0.3
NOISE = jax.random.normal(jax.random.key(1), (SEEDS, 1, 1, 1))
ROWS = {name: jnp.zeros((SEEDS, 1, 1)) for name in ("prompt", "null")}


def two_modes(psi, z_t, t, cond):
    """eps of a pixel that is around -1 or around 1 with equal probability, in closed form."""
    signal, sigma = signal_and_noise(STABLE_DIFFUSION, t, z_t)
    variance = signal**2 * DEVIATION**2 + sigma**2
    x0_of = lambda mean: mean + signal * DEVIATION**2 * (z_t - signal * mean) / variance  # noqa: E731
    share = jax.nn.sigmoid(2 * signal * z_t / variance)
    return (z_t - signal * (share * x0_of(1.0) + (1 - share) * x0_of(-1.0))) / sigma


def follow(objective, start, noise, steps=200, rate=3.0):
    """Where a pixel for each seed ends, from one start, while the timestep falls."""
    denoiser, keys = Denoiser(two_modes, STABLE_DIFFUSION), jax.random.split(jax.random.key(0), SEEDS)

    def step(i, z):
        t = (980 - 960 * jnp.sqrt(i / (steps - 1))).astype(jnp.int32)
        return z - rate * score(objective, denoiser, {}, {"render": z}, ROWS, (t, t), keys, fixed=noise)

    return np.asarray(jax.jit(lambda: jax.lax.fori_loop(0, steps, step, jnp.full((SEEDS, 1, 1, 1), start)))()).ravel()


def test_seeds_of_dsd_end_where_a_sampler_ends_from_their_noise_wherever_they_start():
    """In either mode: the seed decides, and not the start, which lies in one of the two."""
    sampled = ddim(lambda z_t, t, cond: two_modes({}, z_t, t, cond), NOISE, *ROWS.values(), STABLE_DIFFUSION, s=1.0, steps=50)
    mode = np.sign(np.asarray(sampled)).ravel()
    assert 3 < (mode > 0).sum() < SEEDS - 3
    for start in (0.5, -0.5):
        ends = follow(dsd(1.0), start, NOISE)
        np.testing.assert_array_equal(np.sign(ends), mode)
        assert abs(np.abs(ends) - 1).max() < 3 * DEVIATION


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(
    "schedule",
    [flow_matching(), from_betas(scaled_linear_betas(0.00085, 0.012), zero_terminal_snr=True)],
    ids=["flow", "zero snr"],
)
def test_where_the_process_ends_in_noise_a_path_over_one_image_keeps_the_noise_that_it_begins_with(schedule, steps):
    """The prior knows the image 1, so that the flow is a straight path between it and the noise, at every timestep."""
    t, one = jnp.array([300, 500, 800]), jnp.ones((3, 1, 1, 1))

    def eps_of(text, z_t, t):
        signal, sigma = signal_and_noise(schedule, t, z_t)
        return (z_t - signal * one) / sigma

    z_t, predicted = along_path(steps, 1.0, 0.05)(schedule, eps_of, one, t, 0.7 * one)
    np.testing.assert_allclose(z_t, add_noise(schedule, one, 0.7 * one, t), atol=2e-3)  # a thousandth of signal at the start
    np.testing.assert_allclose(predicted, 0.7, atol=2e-3)


def test_cfd_is_sds_whose_noise_is_given():
    e, t = {"y": NOISE, "null": 2 * NOISE}, jnp.full(SEEDS, 500)
    np.testing.assert_array_equal(cfd(3.0).residual(e, NOISE, t), sds(3.0).residual(e, NOISE, t))
    assert cfd().noise is surface_noise
    assert cfd().inversion is None
