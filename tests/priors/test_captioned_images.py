"""The exact priors against their definitions: a loop over all images, and the density of a Gaussian."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal
from PIL import Image

from lods_jax.core.noise_schedule import STABLE_DIFFUSION, eps_to_x0, flow_matching
from lods_jax.core.types import Cond, Query
from lods_jax.priors.captioned_images import (
    caption_gaussians,
    caption_moments,
    from_folder,
    posterior,
    posterior_mean,
    principal_axes,
)
from lods_jax.priors.ddim import ddim

KEY = jax.random.key(0)
WORDS = ["red", "blue", "mug", "car", "side", "front"]
ATTRIBUTES = np.array([(c, 2 + k, 4 + v) for c in (0, 1) for k in (0, 1) for v in (0, 1)] * 5)[:-3]  # 37 images
FEATURES = np.zeros((len(ATTRIBUTES), len(WORDS)), np.float32)
np.put_along_axis(FEATURES, ATTRIBUTES, 1.0, 1)
# Images that depend on their attributes, and differ within a caption.
_rng = np.random.default_rng(0)
IMAGES = np.clip(
    0.5
    + 0.15 * np.einsum("nk,khwc->nhwc", FEATURES, _rng.normal(size=(6, 4, 4, 3)))
    + 0.05 * _rng.normal(size=(len(FEATURES), 4, 4, 3)),
    0,
    1,
).astype(np.float32)

PIXELS = posterior_mean(IMAGES, FEATURES, WORDS)
PIXEL_WEIGHTS = PIXELS.init(KEY)
GAUSSIANS = caption_gaussians(IMAGES, FEATURES, WORDS, dims=8)
GAUSSIAN_WEIGHTS = GAUSSIANS.init(KEY)
BOTH = pytest.mark.parametrize(
    ("prior", "weights"), [(PIXELS, PIXEL_WEIGHTS), (GAUSSIANS, GAUSSIAN_WEIGHTS)], ids=["pixels", "gaussians"]
)
TIMESTEPS = jnp.array([0, 10, 100, 300, 500, 700, 999])
CAPTIONS = ["", "a red mug, side view", "blue", "a car", "front view", "red car", "blue mug, front view"]
Z = jax.random.normal(jax.random.key(1), (7, 4, 4, 3))
X_ALL = jnp.asarray(2 * IMAGES - 1)
X = X_ALL[:7]


def matching(caption):
    """Rows of the images that a caption describes."""
    named = [WORDS.index(word) for word in caption.replace(",", "").split() if word in WORDS]
    return np.flatnonzero(FEATURES[:, named].all(1))


def test_the_denoiser_is_the_posterior_mean_over_the_matching_images():
    """E[x0 | x_t, y] in float64, image by image."""
    alpha_bar = np.asarray(STABLE_DIFFUSION.alpha_bar[TIMESTEPS], np.float64)
    z_t = np.sqrt(alpha_bar)[:, None, None, None] * X + np.sqrt(1 - alpha_bar)[:, None, None, None] * Z
    eps = jax.jit(PIXELS.predict)(PIXEL_WEIGHTS, {}, z_t, TIMESTEPS, Cond(PIXELS.embed(PIXEL_WEIGHTS, CAPTIONS)))
    for row, (caption, ab) in enumerate(zip(CAPTIONS, alpha_bar, strict=True)):
        x = 2 * np.asarray(IMAGES[matching(caption)], np.float64) - 1
        log_weight = np.array([-np.sum((z_t[row] - np.sqrt(ab) * x_i) ** 2) / (2 * (1 - ab)) for x_i in x])
        weight = np.exp(log_weight - log_weight.max())
        x0 = np.einsum("n,nhwc->hwc", weight / weight.sum(), x)
        expected = (z_t[row] - np.sqrt(ab) * x0) / np.sqrt(1 - ab)
        # At t = 0 float32 evidence is good to 1e-4 and eps amplifies x0 by 34.
        np.testing.assert_allclose(eps[row], expected, atol=1e-3 if TIMESTEPS[row] < 50 else 3e-5)


def test_the_posterior_is_spread_in_noise_and_certain_without():
    """The limit of this prior: as t falls one image takes all the weight."""
    tokens = PIXELS.embed(PIXEL_WEIGHTS, [""] * 7)
    top = posterior(PIXEL_WEIGHTS, {}, X, TIMESTEPS, Cond(tokens)).max(1)
    assert top[0] > 0.999
    assert top[-1] < 0.2


def test_no_weight_goes_to_an_image_that_contradicts_the_caption():
    tokens = PIXELS.embed(PIXEL_WEIGHTS, CAPTIONS)
    share = posterior(PIXEL_WEIGHTS, {}, Z, jnp.full(7, 999), Cond(tokens))
    for row, caption in enumerate(CAPTIONS):
        np.testing.assert_array_equal(np.flatnonzero(share[row]), matching(caption))


def test_the_denoiser_of_one_image_is_that_image():
    prior = posterior_mean(IMAGES[:1], FEATURES[:1], WORDS)
    weights = prior.init(KEY)
    eps = prior.predict(weights, {}, Z, TIMESTEPS, Cond(prior.embed(weights, [""] * 7)))
    np.testing.assert_allclose(eps_to_x0(STABLE_DIFFUSION, eps, Z, TIMESTEPS), jnp.repeat(X[:1], 7, 0), atol=1e-5)


def test_eps_of_a_caption_is_minus_the_noise_level_times_the_score_of_its_gaussian():
    z_t = jax.random.normal(jax.random.key(2), (7, 1, 1, 8))
    tokens = GAUSSIANS.embed(GAUSSIAN_WEIGHTS, CAPTIONS)
    eps = jax.jit(GAUSSIANS.predict)(GAUSSIAN_WEIGHTS, {}, z_t, TIMESTEPS, Cond(tokens))
    for row, caption in enumerate(CAPTIONS):
        coords, ab = np.asarray(GAUSSIAN_WEIGHTS["coords"])[matching(caption)], STABLE_DIFFUSION.alpha_bar[TIMESTEPS[row]]
        cov = ab * (np.cov(coords.T, bias=True) + 0.01 * np.eye(8)) + (1 - ab) * np.eye(8)
        log_density = partial(multivariate_normal.logpdf, mean=np.sqrt(ab) * coords.mean(0), cov=jnp.asarray(cov))
        expected = -np.sqrt(1 - ab) * jax.grad(log_density)(z_t[row, 0, 0])
        np.testing.assert_allclose(eps[row, 0, 0], expected, rtol=1e-3, atol=1e-3)


def test_ddim_samples_of_a_caption_have_its_mean_and_covariance():
    tokens = GAUSSIANS.embed(GAUSSIAN_WEIGHTS, ["a red mug"])
    mean, cov = caption_moments(GAUSSIAN_WEIGHTS, {}, Cond(tokens))
    rows = jnp.repeat(tokens, 2000, 0)
    z = jax.random.normal(jax.random.key(3), (2000, 1, 1, 8))
    predict = partial(GAUSSIANS.predict, GAUSSIAN_WEIGHTS, {})
    samples = jax.jit(partial(ddim, predict, steps=50, s=1.0))(z, rows, rows, STABLE_DIFFUSION)[:, 0, 0]
    # Starting from N(0, 1) leaves 7 % of the mean behind, times the spread of the caption.
    np.testing.assert_allclose(samples.mean(0), mean[0], atol=0.1)
    np.testing.assert_allclose(np.cov(samples.T), cov[0], atol=0.1)


FLOW = flow_matching()
FLOWS = {
    "pixels": posterior_mean(IMAGES, FEATURES, WORDS, noise_schedule=FLOW),
    "gaussians": caption_gaussians(IMAGES, FEATURES, WORDS, dims=8, noise_schedule=FLOW),
}


@pytest.mark.parametrize(("kind", "weights"), [("pixels", PIXEL_WEIGHTS), ("gaussians", GAUSSIAN_WEIGHTS)])
def test_under_flow_matching_the_clean_latents_are_known_at_any_signal(kind, weights):
    """They are what the noise implies while there is signal, and of noise alone the mean of the caption."""
    prior, tokens = FLOWS[kind], FLOWS[kind].embed(weights, ["a red mug"] * 7)
    z_t = Z if kind == "pixels" else Z.reshape(7, 1, 1, -1)[..., :8]
    x0, eps = (jax.jit(f)(weights, {}, z_t, TIMESTEPS, Cond(tokens)) for f in (prior.predict_x0, prior.predict))
    np.testing.assert_allclose(eps_to_x0(FLOW, eps, z_t, TIMESTEPS)[:-1], x0[:-1], atol=1e-4)
    mean = X_ALL[matching("red mug")].mean(0) if kind == "pixels" else caption_moments(weights, {}, Cond(tokens))[0][-1]
    np.testing.assert_allclose(x0[-1].ravel(), mean.ravel(), atol=1e-5)


def test_even_where_evidence_is_strongest_no_image_contradicts_the_caption():
    """A white picture that is seen through noise of 0.001, under the caption of the black one: odds of e^(2.5e10) against it."""
    prior = posterior_mean(np.stack([np.zeros((64, 64, 3)), np.ones((64, 64, 3))]), np.eye(2), ["black", "white"])
    weights = prior.init(KEY)
    tokens = prior.embed(weights, ["black"])
    share = posterior(weights, {}, jnp.ones((1, 64, 64, 3)), jnp.zeros(1, jnp.int32), Cond(tokens), FLOW)
    np.testing.assert_array_equal(share, [[1.0, 0.0]])


@BOTH
@pytest.mark.parametrize("lora", [None, 0.5])
def test_gradients_are_finite_at_every_noise_level(prior, weights, lora):
    """With respect to the latents, a learned embedding and the adapter; hard captions included."""
    t = jnp.arange(0, 1000, 37)
    rgb = jnp.broadcast_to(jnp.asarray(IMAGES)[:1], (len(t), 4, 4, 3))
    tokens = jnp.tile(prior.embed(weights, ["", "red car"]), (len(t) // 2 + 1, 1, 1))[: len(t)]
    psi = prior.init_psi(weights, KEY, tokens[0], [Query("null", lora=0.5)])

    @jax.jit
    @partial(jax.grad, argnums=(0, 1, 2))
    def gradient(z, tokens, psi):
        cond = Cond(tokens, lora=None if lora is None else jnp.full(len(t), lora))
        return jnp.sum(prior.predict(weights, psi, z, t, cond) ** 2)

    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(prior.encode(weights, rgb, KEY), tokens, psi)))


@BOTH
def test_a_learned_embedding_can_leave_the_unconditional_one(prior, weights):
    """The gradient at y = 0 raises the logits of what the latents show."""
    rgb = jnp.asarray(IMAGES)[matching("red mug")]
    z, t = prior.encode(weights, rgb, KEY), jnp.full(len(rgb), 700)
    noise = jax.random.normal(KEY, z.shape)
    z_t = jnp.sqrt(STABLE_DIFFUSION.alpha_bar[700]) * z + jnp.sqrt(1 - STABLE_DIFFUSION.alpha_bar[700]) * noise
    psi = prior.init_psi(weights, KEY, prior.embed(weights, [""])[0], [Query("learned")])

    def denoising_loss(psi):
        tokens = jnp.repeat(psi["embedding"][None], len(rgb), 0)
        return jnp.mean((prior.predict(weights, {}, z_t, t, Cond(tokens)) - noise) ** 2)

    step = -jax.jit(jax.grad(denoising_loss))(psi)["embedding"][0]
    assert step[0] > step[1]  # red rather than blue
    assert step[2] > step[3]  # a mug rather than a car


@BOTH
def test_the_adapter_moves_even_a_hard_caption_and_is_off_at_scale_zero(prior, weights):
    """A shift of 1 beside the logit of a named word is lost in float32 unless the named words cancel first."""
    tokens = jnp.repeat(prior.embed(weights, ["a red mug"]), 2, 0)
    z = jnp.repeat(prior.encode(weights, jnp.asarray(IMAGES)[:1], KEY), 2, 0)
    psi = {"lora": jnp.arange(6.0)[None]}
    eps = prior.predict(weights, psi, z, jnp.array([999, 999]), Cond(tokens, lora=jnp.array([0.0, 1.0])))
    frozen = prior.predict(weights, {}, z, jnp.array([999, 999]), Cond(tokens))
    np.testing.assert_array_equal(eps[0], frozen[0])
    assert np.abs(eps[1] - frozen[1]).max() > 1e-4


def test_decoding_inverts_encoding():
    rgb = jnp.asarray(IMAGES)
    np.testing.assert_allclose(PIXELS.decode({}, PIXELS.encode({}, rgb, KEY)), rgb, atol=1e-6)
    full = caption_gaussians(IMAGES, FEATURES, WORDS, dims=36)  # all the variance there is
    weights = full.init(KEY)
    np.testing.assert_allclose(full.decode(weights, full.encode(weights, rgb, KEY)), rgb, atol=1e-5)


@BOTH
def test_a_large_render_is_seen_whole(prior, weights):
    """Every pixel of a render four times as large has a say in the latents."""
    rgb = jnp.full((1, 16, 16, 3), 0.5)
    assert prior.encode(weights, rgb, KEY).shape == prior.encode(weights, rgb[:, :4, :4], KEY).shape
    gradient = jax.grad(lambda rgb: jnp.sum(prior.encode(weights, rgb, KEY) ** 3))(rgb + 0.1)
    assert np.all(gradient != 0)


def test_pca_coordinates_keep_distances_and_have_mean_variance_one():
    full = caption_gaussians(IMAGES, FEATURES, WORDS, dims=36)
    coords = np.asarray(full.init(KEY)["coords"])
    np.testing.assert_allclose(np.mean(coords**2), 1.0, rtol=1e-5)
    between = lambda x: np.linalg.norm(x[1:] - x[0], axis=1)  # noqa: E731
    ratio = between(coords) / between(IMAGES.reshape(len(IMAGES), -1))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_principal_axes_are_the_leading_singular_vectors():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 90)) * 0.8 ** np.arange(90)
    _, _, axes = np.linalg.svd(x, full_matrices=False)
    overlap = np.abs(axes[:10] @ principal_axes(x, 10))
    np.testing.assert_allclose(overlap, np.eye(10), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a purple mug", "unknown word 'purple' in 'a purple mug'"), ("red blue", "no image shows 'red blue'")],
)
@BOTH
def test_a_caption_beyond_the_images_is_refused(prior, weights, text, message):
    with pytest.raises(ValueError, match=message):
        prior.embed(weights, ["", text])


def test_case_articles_and_commas_do_not_matter():
    a, b = PIXELS.embed(PIXEL_WEIGHTS, ["A red mug, side view", "side red mug"])
    np.testing.assert_array_equal(a, b)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match=r"features must be \[n k\]"):
        posterior_mean(IMAGES, FEATURES, WORDS[:-1])
    with pytest.raises(ValueError, match="features must be 0 or 1"):
        posterior_mean(IMAGES, FEATURES / 2, WORDS)
    with pytest.raises(ValueError, match=r"dims must be in 1..36 for 37 images"):
        caption_gaussians(IMAGES, FEATURES, WORDS, dims=37)
    with pytest.raises(ValueError, match="ridge must be positive, got 0"):
        caption_gaussians(IMAGES, FEATURES, WORDS, dims=8, ridge=0.0)


# --- from_folder
@pytest.fixture
def folder(tmp_path):
    """A red wide image and a half-transparent blue one."""
    Image.new("RGB", (12, 8), (255, 0, 0)).save(tmp_path / "red.png")
    blue = Image.new("RGBA", (8, 8), (0, 0, 255, 255))
    blue.paste((0, 0, 0, 0), (0, 0, 4, 8))
    blue.save(tmp_path / "blue.png")
    write(
        tmp_path,
        {"file_name": "red.png", "text": "a red mug"},
        {"file_name": "blue.png", "text": "a blue mug, side view"},
    )
    return tmp_path


def write(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_folder_of_captioned_images_becomes_a_prior(folder):
    images, features, words = from_folder(folder, size=8)
    assert words == ["blue", "mug", "red", "side"]
    np.testing.assert_array_equal(features, [[0, 1, 1, 0], [1, 1, 0, 1]])
    np.testing.assert_array_equal(images[0], np.broadcast_to([1, 0, 0], (8, 8, 3)))
    np.testing.assert_array_equal(images[1, :, :4], np.ones((8, 4, 3)))
    np.testing.assert_array_equal(images[1, :, 4:], np.broadcast_to([0, 0, 1], (8, 4, 3)))
    prior = posterior_mean(images, features, words)
    weights = prior.init(KEY)
    z = jax.random.normal(KEY, (1, 8, 8, 3))
    t = jnp.array([999])
    x0 = eps_to_x0(STABLE_DIFFUSION, prior.predict(weights, {}, z, t, Cond(prior.embed(weights, ["a red mug"]))), z, t)
    np.testing.assert_allclose(prior.decode(weights, x0)[0], images[0], atol=1e-4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2 is not a JSON object with texts file_name and text"),
        ('["red.png", "a mug"]', "line 2 is not a JSON object"),
        ({"file_name": "red.png"}, "line 2 is not a JSON object"),
        ({"file_name": "red.png", "text": 3}, "line 2 is not a JSON object"),
        ({"file_name": "none.png", "text": "a mug"}, "cannot read .*none.png"),
        ({"file_name": "metadata.jsonl", "text": "a mug"}, "cannot read .*metadata.jsonl as an image"),
        ({"file_name": "../red.png", "text": "a mug"}, "line 2 names a file outside the folder"),
    ],
)
def test_a_bad_line_of_a_folder_is_named(folder, row, message):
    write(folder, {"file_name": "red.png", "text": "a red mug"}, row)
    with pytest.raises(ValueError, match=message) as error:
        from_folder(folder)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_proper_list_of_images_is_refused(folder):
    write(folder)
    with pytest.raises(ValueError, match="is not a JSON object"):
        from_folder(folder)
    (folder / "metadata.jsonl").write_bytes(b'{"file_name": "red.png", "text": "caf\xe9"}')  # Latin-1
    with pytest.raises(ValueError, match="line 1 is not a JSON object"):
        from_folder(folder)
    (folder / "metadata.jsonl").write_text("")
    with pytest.raises(ValueError, match="lists no image"):
        from_folder(folder)
    with pytest.raises(ValueError, match=r"metadata.jsonl is missing"):
        from_folder(folder / "elsewhere")
