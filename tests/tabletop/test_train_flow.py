"""Laws of the trainer of the prior of flow matching, on networks of one small block: what it begins as, learns, and leaves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.noise_schedule import add_noise
from lods_jax.core.types import Cond
from lods_jax.priors import flax_networks
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.tabletop import denoising, fine_tuning, fitting, train_flow, train_prior
from lods_jax.tabletop.architectures import networks
from lods_jax.tabletop.fitting import make_step, optimizer
from lods_jax.tabletop.prior_batches import caption_ids
from tests.small_prior import SIZE, add_architecture, write_prior

KEY, BATCH = jax.random.key(0), 4
T = jnp.full(BATCH, 799)
TX = optimizer("adamw")


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        add_architecture(patch)
        patch.setattr(train_prior, "LATENT", 8)
        patch.setattr(train_prior, "PREVIEW", train_prior.PREVIEW[:1])
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    write_prior(out := tmp_path_factory.mktemp("prior") / "prior")
    return out


@pytest.fixture(scope="module")
def trained(folder):
    """The state after steps on one image, its losses, and the image and its caption."""
    task = train_flow.task_of(folder, BATCH)
    fit, step, losses = fine_tuning.first_fit(task, TX, folder), make_step(task.recipe, TX), []
    table, _ = caption_ids()
    batch = jax.random.normal(KEY, (1, 8, 8, 4)).repeat(BATCH, 0), jnp.asarray(table[0, 0, 0, -1])[None].repeat(BATCH, 0)
    for _ in range(16):
        fit, metrics = step(fit, batch, KEY, 3e-3)
        losses.append(float(metrics["loss"]))
    return fit, losses, batch


@pytest.fixture(scope="module")
def out(folder, trained, tmp_path_factory):
    """The folder that a sitting leaves which ends in that state."""
    out, sampled = tmp_path_factory.mktemp("prior") / "flow", []

    def samples(*asked, flow, shape, **options):
        sampled.append(flow)
        return jnp.zeros((1, *shape))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "train_for", lambda *asked: asked[-2](trained[0]))  # `save` is the last but one
        patch.setattr(train_prior, "sample_latents", samples)
        fine_tuning.fine_tune(train_flow.task_of(folder, BATCH), out, 1.0, folder, name="adamw")
    assert sampled == [True] * 3
    return out


@pytest.fixture(scope="module")
def told(out):
    """(parameters, z_t, t, token ids) -> the clean latents that the prior of the folder tells with them."""
    prior = stable_diffusion(out)
    weights = prior.init(KEY)

    @jax.jit
    def told(params, z_t, t, ids):
        tokens = flax_networks.encode_text(networks(SIZE).text, params["text"], ids)
        return prior.predict_x0(weights | {"unet": params["unet"]}, {}, z_t, t, Cond(tokens))

    return told


def test_steps_on_one_image_lower_the_loss(trained):
    _, losses, _ = trained
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_a_sitting_leaves_a_prior_of_flow_matching_its_checkpoint_and_a_picture(out):
    assert json.loads((out / "model_index.json").read_text())["scheduler"][1] == "FlowMatchEulerDiscreteScheduler"
    assert stable_diffusion(out).noise_schedule.straight
    assert (out / "checkpoint.safetensors").exists()
    assert [file.name for file in (out / "samples").iterdir()] == [f"flow-{16 * BATCH:08d}.png"]


def test_what_is_learned_is_what_the_folder_is_asked(folder, trained, told):
    """At sigma = 0.8 the clean latents are nearer to the one image than with the weights that it began as."""
    fit, _, (z, ids) = trained
    z_t = add_noise(denoising.FLOW_MATCHING, z, jax.random.normal(jax.random.key(1), z.shape), T)
    before = fine_tuning.averaged(folder, networks(SIZE))
    first, last = (jnp.mean((told(params, z_t, T, ids) - z) ** 2) for params in (before, fit.params))
    assert last < 0.8 * first


def test_samples_of_training_are_those_of_the_folder(trained, told):
    """Of one step, from noise alone: the schedule, the time that the network is told, and the velocity to clean latents."""
    fit, _, (_, ids) = trained
    samples = denoising.sample_latents(SIZE, fit.params, ids, ids, KEY, 1.0, (8, 8, 4), 1, flow=True)
    noise = jax.random.normal(KEY, (BATCH, 8, 8, 4))
    np.testing.assert_allclose(samples, jnp.clip(told(fit.params, noise, 0 * T + 999, ids), -4, 4), atol=1e-4)
