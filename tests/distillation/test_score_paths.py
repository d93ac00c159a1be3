"""Laws of the ways from latent score to pixels: one direction if the autoencoder is linear and orthonormal, one length always."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lods_jax.cli.command_line import parse
from lods_jax.core.cameras import sample_orbit
from lods_jax.core.noise_schedule import (
    STABLE_DIFFUSION,
    T,
    add_noise,
    flow_matching,
    score_weight,
    velocity_weight,
    x0_to_eps,
)
from lods_jax.core.types import Reference, Render, Scene
from lods_jax.distillation.auxiliary_priors import AuxiliaryPrior
from lods_jax.distillation.objectives import sds
from lods_jax.distillation.score_paths import ENCODER, blend, clipped, mixed, push_forward, reconstruction, score_to_step, split
from lods_jax.distillation.train_step import init_state, make_train_step, select_view_prompts
from lods_jax.priors.gaussian import gaussian
from lods_jax.scenes.images import pixels
from lods_jax.training.build import timeline_of
from lods_jax.training.schedules import score_path_of
from tests.toy import TINY

BATCH, SIZE = 2, 4  # views, and the edge of what an autoencoder sees
ROWS = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE * SIZE * 3, 12)))[0].T.astype(np.float32)  # 12 orthonormal ones
KEY = jax.random.key(0)


def resized(x):
    return jax.image.resize(x, (len(x), SIZE, SIZE, 3), "bilinear", antialias=False)


def linear(scale: float = 1.0):
    """A prior whose latents are 12 coordinates: E = scale W after a resize, D = W^T / scale."""
    prior = gaussian({"": 0.2, "y": 1.0}, 0.5)
    encode = lambda weights, rgb, key: scale * (resized(rgb).reshape(len(rgb), -1) @ ROWS.T)[:, None, None]  # noqa: E731
    decode = lambda weights, z: (z[:, 0, 0] / scale @ ROWS).reshape(len(z), SIZE, SIZE, 3)  # noqa: E731
    return prior._replace(encode=encode, decode=decode)


def bent():
    """The same with an encoder and a decoder that are no transposes of each other."""
    prior = linear()
    encode = lambda weights, rgb, key: jnp.tanh(prior.encode(weights, rgb, key)) + rgb.mean()  # noqa: E731
    decode = lambda weights, z: jax.nn.sigmoid(2 * prior.decode(weights, z) + jnp.sum(z**2))  # noqa: E731
    return prior._replace(encode=encode, decode=decode)


def grads(prior, path, scene=None, step=0, reference=None, **options):
    """Gradients of the first step, or of a later one, of a scene of pixels or of another."""
    scene = scene or pixels(6, 6, start=0.4)
    texts = {"prompt": prior.embed({}, ["y"] * 4), "null": prior.embed({}, [""] * 4)}
    tx = optax.sgd(0.1)
    build = make_train_step(
        scene, prior, sds(3.0), cameras=lambda keys, views: sample_orbit(keys, views, BATCH), window=lambda step: (20, 980),
        tx_theta=tx, tx_psi=tx, batch=BATCH, score_path=path, **options,
    )  # fmt: skip
    state = init_state(scene, {}, tx, tx, KEY).replace(step=jnp.asarray(step))
    return build.compute_grads(state, {}, texts, reference, KEY, jnp.arange(BATCH))


@pytest.mark.parametrize("scale", [1.0, 7.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_all_ways_are_one_where_the_autoencoder_is_linear_and_orthonormal(scale, share):
    """Whatever the unit of the latents; and through a resize of the renders, here from 6 to 4 pixels."""
    prior = linear(scale)
    chain = grads(prior, ENCODER).g_theta["rgb"]
    assert float(jnp.abs(chain).max()) > 1e-3
    np.testing.assert_allclose(grads(prior, blend(lambda step: share)).g_theta["rgb"], chain, rtol=1e-4, atol=1e-7)


def held(rgb):
    """The part of a render of the size of the autoencoder that its latents hold."""
    return (rgb.reshape(len(rgb), -1) @ ROWS.T @ ROWS).reshape(rgb.shape)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_reconstruction_is_the_same_where_the_autoencoder_holds_the_render(share):
    free = pixels(SIZE, SIZE, start=0.4)
    scene = free._replace(render=lambda theta, *rest: free.render({"rgb": held(theta["rgb"][None])[0]}, *rest))
    chain, both = (
        grads(linear(), path, scene).g_theta["rgb"] for path in (ENCODER, blend(lambda step: share, reconstructs=True))
    )
    assert float(jnp.abs(chain).max()) > 1e-3
    np.testing.assert_allclose(both, chain, rtol=1e-3, atol=1e-6)


def test_a_short_step_of_a_reconstruction_is_the_push_forward_and_what_the_autoencoder_loses():
    prior, step = bent(), 1e-3
    z, g = jax.random.normal(KEY, (2, BATCH, 1, 1, 12))
    rgb = jax.random.uniform(KEY, (BATCH, SIZE, SIZE, 3))
    lost = rgb - prior.decode({}, z)
    found = (reconstruction(prior, {}, z, step * g, rgb) - lost) / step
    np.testing.assert_allclose(found, push_forward(prior, {}, z, g, rgb), atol=1e-2)
    np.testing.assert_allclose(reconstruction(prior, {}, z, step * g, rgb, slicing=True), lost + step * found, atol=1e-5)


def test_a_scene_that_moves_against_a_reconstruction_meets_the_decoded_estimate():
    """Through the resize too: no render of the scene's size is nearer to the target at the autoencoder's."""
    prior, rgb = linear(), jax.random.uniform(KEY, (BATCH, 6, 6, 3))
    z0 = jax.random.normal(KEY, (BATCH, 1, 1, 12))
    z = jax.random.normal(jax.random.key(1), z0.shape)
    for _ in range(300):
        rgb -= 0.5 * reconstruction(prior, {}, z, z - z0, rgb)
    np.testing.assert_allclose(resized(rgb), prior.decode({}, z0), atol=1e-4)


@pytest.mark.parametrize("weight", [score_weight, velocity_weight])
@pytest.mark.parametrize("schedule", [STABLE_DIFFUSION, flow_matching(3.0)], ids=["diffusion", "flow"])
def test_a_score_times_its_step_leads_to_the_estimate_of_the_clean_latents(schedule, weight):
    """Of a denoiser that knows the clean latents y: z_t minus its noise, over alpha, is y; and so is z minus the step."""
    t = jnp.array([10, 500, 979])
    z, y, noise = jax.random.normal(KEY, (3, 3, 2, 2, 4))
    eps = x0_to_eps(schedule, y, add_noise(schedule, z, noise, t), t)
    score = weight(schedule, t)[:, None, None, None] * (eps - noise)
    np.testing.assert_allclose(z - score_to_step(schedule, t, weight)[:, None, None, None] * score, y, atol=1e-3)


def test_a_score_of_pure_noise_has_a_finite_step():
    assert np.isfinite(score_to_step(STABLE_DIFFUSION._replace(alpha_bar=np.zeros(T, np.float32)), jnp.array([T - 1]))).all()


def test_an_auxiliary_prior_of_weight_0_pulls_at_nothing():
    """Its render is not held by its autoencoder, and what it would do about that has no weight."""
    path = blend(lambda step: 1.0, reconstructs=True)
    aux = AuxiliaryPrior("other", linear(3.0), sds(3.0), select_view_prompts, lambda step: (20, 980), lambda step: 0.0)
    texts = {"prompt": linear().embed({}, ["y"] * 4), "null": linear().embed({}, [""] * 4)}
    given = {"reference": Reference(auxiliary=(({}, texts),)), "auxiliary_priors": [aux]}
    alone, beside = grads(bent(), path), grads(bent(), path, **given)
    np.testing.assert_allclose(beside.g_theta["rgb"], alone.g_theta["rgb"], rtol=1e-5, atol=1e-8)


def test_the_decoders_way_differs_where_the_autoencoder_is_bent():
    chain, pushed = (grads(bent(), path).g_theta["rgb"].ravel() for path in (ENCODER, blend(lambda step: 1.0)))
    cosine = chain @ pushed / jnp.linalg.norm(chain) / jnp.linalg.norm(pushed)
    assert float(cosine) < 0.99
    half = grads(bent(), blend(lambda step: 0.5)).g_theta["rgb"].ravel()
    for end in (chain, pushed):  # between both
        assert float(half @ end / jnp.linalg.norm(half) / jnp.linalg.norm(end)) > float(cosine)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_each_view_keeps_the_length_of_the_encoders_direction(share):
    encoder, decoder = jax.random.normal(KEY, (2, 3, 5, 5, 3)) * jnp.array([1.0, 10.0, 0.1]).reshape(1, 3, 1, 1, 1)
    rms = lambda x: jnp.sqrt(jnp.mean(x**2, (1, 2, 3)))  # noqa: E731
    np.testing.assert_allclose(rms(mixed(encoder, 1e3 * decoder, share)), rms(encoder), rtol=1e-5)


def test_a_clip_shortens_long_pixels_and_turns_none():
    """Whatever the unit: a view of ten times the length is cut at the same pixels."""
    x = jax.random.normal(KEY, (2, 8, 8, 3)).at[:, 2, 3].mul(50.0) * jnp.array([1.0, 10.0]).reshape(2, 1, 1, 1)
    length, after = jnp.linalg.norm(x, axis=-1), jnp.linalg.norm(cut := clipped(x, 2.0), axis=-1)
    bound = 2 * jnp.sqrt(jnp.mean(length**2, (1, 2)))[:, None, None]
    np.testing.assert_allclose(after, jnp.minimum(length, bound), rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(cut * x, -1), after * length, rtol=1e-5)
    np.testing.assert_array_equal(clipped(x, 100.0), x)
    np.testing.assert_array_equal(clipped(0 * x, 1.0), 0)


def test_a_clip_reaches_the_scene():
    prior = linear()
    cut, whole = (grads(prior, ENCODER._replace(pixel_clip=clip)).g_theta["rgb"] for clip in (0.5, 0.0))
    assert float(jnp.linalg.norm(cut)) < 0.9 * float(jnp.linalg.norm(whole))


def test_where_there_is_no_score_nothing_moves():
    zero = jnp.zeros((2, 5, 5, 3))
    np.testing.assert_array_equal(mixed(zero, zero, 0.5), zero)
    np.testing.assert_array_equal(mixed(zero, zero + 1, 0.5), zero)


@pytest.mark.parametrize("slicing", [False, True])
def test_a_push_forward_is_how_the_decoded_picture_changes(slicing):
    """Beside a finite difference; 1e-3 is its own error."""
    prior, z, g = bent(), *jax.random.normal(KEY, (2, BATCH, 1, 1, 12))
    rgb, eps = jnp.zeros((BATCH, SIZE, SIZE, 3)), 1e-3
    change = (prior.decode({}, z + eps * g) - prior.decode({}, z - eps * g)) / (2 * eps)
    np.testing.assert_allclose(push_forward(prior, {}, z, g, rgb, slicing), change, atol=1e-3)


def test_white_is_no_end_of_the_way():
    """A decoder clips to [0, 1] for people; its derivative does not, or nothing would pull a white wall back."""
    prior = gaussian({"": 0.2}, 0.5)
    z = jnp.full((1, 4, 4, 3), 1.5)
    np.testing.assert_array_equal(prior.decode({}, z), 1.0)
    np.testing.assert_array_equal(push_forward(prior, {}, z, -jnp.ones_like(z), z), -1.0)


def shaded():
    """A scene of a shape, a shade and a probe, whose product is the render."""

    def render(theta, aux, camera, keys, probe):
        rgb = (theta["shape"][None] + probe["means2d"][:, None, None]) * theta["shade"][None]
        return Render(rgb, rgb[..., :1], rgb[..., :1], {})

    init = lambda key: ({"shape": jnp.full((6, 6, 3), 0.6), "shade": jnp.linspace(0.4, 0.8, 108).reshape(6, 6, 3)}, {})  # noqa: E731
    probe = lambda aux, b: {"means2d": jnp.zeros((b, 3))}  # noqa: E731
    return Scene(init, render, probe, lambda aux, grad, render: aux, colors=("shade",))


def test_split_gives_colours_to_the_decoder_and_the_rest_to_the_encoder():
    """The probe, by which Gaussians are refined, is geometry."""
    chain, pushed, both = (grads(bent(), path, shaded()) for path in (ENCODER, blend(lambda step: 1.0), split()))
    np.testing.assert_allclose(both.g_theta["shape"], chain.g_theta["shape"], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(both.g_theta["shade"], pushed.g_theta["shade"], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(both.outputs.means2d_grad["means2d"], chain.outputs.means2d_grad["means2d"], rtol=1e-5, atol=1e-8)
    for name in ("shape", "shade"):
        assert not np.allclose(chain.g_theta[name], pushed.g_theta[name], rtol=0.01)


def test_split_needs_leaves_that_are_colours_alone():
    with pytest.raises(ValueError, match="no leaves that are colours alone"):
        grads(bent(), split())


def test_a_share_may_change_in_the_course_of_a_run():
    """The encoder first, the decoder later."""
    path = blend(lambda step: jnp.where(step < 5, 0.0, 1.0))
    for step, same in ((4, ENCODER), (5, blend(lambda step: 1.0))):
        np.testing.assert_allclose(
            grads(bent(), path, step=step).g_theta["rgb"], grads(bent(), same, step=step).g_theta["rgb"], rtol=1e-5, atol=1e-8
        )


def test_regularizers_weigh_the_same_on_each_way():
    """Of a score of zero, what is left is the gradient of the cost alone."""
    prior = bent()._replace(predict=lambda weights, psi, z_t, t, cond: jnp.zeros_like(z_t))
    cost = {"regularizers": lambda render, step: {"dark": jnp.mean(render.rgb, (1, 2, 3))}}
    quiet = lambda path: grads(prior, path, **cost).g_theta["rgb"] - grads(prior, path).g_theta["rgb"]  # noqa: E731
    np.testing.assert_allclose(quiet(blend(lambda step: 1.0)), quiet(ENCODER), atol=1e-7)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("flags", "shares"),
    [
        ([], [(0.5, 0.5), (0.5, 0.5)]),
        (["--score-path", "encoder"], None),
        (["--score-path", "encoder", "--score-path.pixel-clip", "2"], None),
        (["--score-path", "decoder"], [(1.0, 1.0), (1.0, 1.0)]),
        (["--score-path", "split"], [(0.0, 1.0), (0.0, 1.0)]),
        (["--score-path", "blend"], [(0.5, 0.5), (0.5, 0.5)]),
        (["--score-path", "blend", "--score-path.decoder-share", "0", "1"], [(0.0, 0.0), (1.0, 1.0)]),
        (["--score-path", "split", "--score-path.through-decoder", "push-forward"], [(0.0, 1.0), (0.0, 1.0)]),
    ],
)
def test_a_configuration_names_the_way(flags, shares):
    """Before and after the milestone of the run; the default preset reconstructs."""
    config = parse([*TINY, *flags]).settings
    path = score_path_of(config.score_path, timeline_of(config))
    found = path.geometry and [(float(path.geometry(step)), float(path.colors(step))) for step in (0, config.steps - 1)]
    assert found == shares
    assert path.reconstructs == (path.geometry is not None and "push-forward" not in flags)
    assert path.pixel_clip == 2.0 * ("2" in flags)
