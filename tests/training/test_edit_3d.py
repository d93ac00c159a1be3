"""Editing in 3D: what DDS leaves alone, what is fitted first, and that an edit goes on without the run that it came from."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lods_jax.cli import main
from lods_jax.config import load
from lods_jax.core.cameras import sample_orbit
from lods_jax.core.types import Reference
from lods_jax.distillation.objectives import dds, lods_embedding
from lods_jax.distillation.train_step import init_state, make_train_step
from lods_jax.priors.gaussian import gaussian
from lods_jax.scenes.images import pixels
from lods_jax.training.build import build
from lods_jax.training.edit_3d import edit_config
from lods_jax.training.loop import first_shapes, first_state
from tests.toy import TINY, final, metrics, same

BATCH = 4
PRIOR = gaussian({"": 0.2, "a": 0.4, "b": 1.0}, 0.5)
TEXTS = {name: PRIOR.embed({}, [text] * 4) for name, text in (("prompt", "b"), ("source", "a"), ("null", ""))}
SCENE = pixels(1, 1, start=0.4)


def step_of(objective, scene=SCENE, prior=PRIOR, **options):
    """The train step of one pixel under an objective, and its first state."""
    tx = optax.adam(0.02)
    psi = PRIOR.init_psi({}, jax.random.key(1), TEXTS["null"][0], objective.trained_queries)
    cameras = lambda keys, views: sample_orbit(keys, views, BATCH, group=prior.views)  # noqa: E731
    made = make_train_step(
        scene, prior, objective, cameras=cameras, window=lambda step: (20, 980), tx_theta=tx, tx_psi=tx, batch=BATCH, **options
    )
    return made, init_state(scene, psi, tx, tx, jax.random.key(2))


def grads(made, state, texts, source):
    return jax.jit(made.compute_grads)(state, {}, texts, Reference(source=source), jax.random.key(3), jnp.arange(BATCH)).g_theta


def test_dds_leaves_an_object_alone_that_is_the_source_under_one_text():
    """Cameras, backgrounds and the noises of both are those of the view: nothing is left to differ."""
    made, state = step_of(dds())
    source = SCENE.init(jax.random.key(2))
    alike = grads(made, state, TEXTS | {"source": TEXTS["prompt"]}, source)
    np.testing.assert_allclose(alike["rgb"], 0, atol=1e-6)
    assert np.abs(grads(made, state, TEXTS, source)["rgb"]).min() > 1e-3
    other = jax.tree.map(lambda x: x + 0.3 if jnp.issubdtype(x.dtype, jnp.floating) else x, source)
    assert np.abs(grads(made, state, TEXTS | {"source": TEXTS["prompt"]}, other)["rgb"]).min() > 1e-3


@pytest.mark.parametrize("views", [1, 2, 4])
def test_the_source_is_seen_on_the_background_of_its_view_in_groups_too(views):
    """A group has one background, of which the object before must be told as well: else DDS pulls at the difference of two."""

    def render(theta, aux, camera, keys, means2d_probe):
        behind = jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 3)))(keys)
        shown = SCENE.render(theta, aux, camera, keys, means2d_probe)
        return shown.replace(rgb=shown.rgb + behind)

    made, state = step_of(dds(), SCENE._replace(render=render), PRIOR._replace(views=views))
    alike = grads(made, state, TEXTS | {"source": TEXTS["prompt"]}, SCENE.init(jax.random.key(2)))
    np.testing.assert_allclose(alike["rgb"], 0, atol=1e-6)


def test_dds_moves_the_source_by_the_difference_of_the_texts():
    """On a Gaussian prior both scores are linear: at s = 1 the edit lands on the source plus the difference of the means."""
    made, state = step_of(dds(s=1.0))
    source = SCENE.init(jax.random.key(2))
    grad = jax.jit(made.compute_grads)
    update = jax.jit(made.apply_grads)
    for _ in range(300):
        out = grad(state, {}, TEXTS, Reference(source=source), jax.random.key(3), jnp.arange(BATCH))
        state, _ = update(state, out)
    np.testing.assert_allclose(state.theta["rgb"], 0.4 + (1.0 - 0.4), atol=0.02)


def test_fit_first_moves_the_branch_alone_and_then_both():
    made, state = step_of(lods_embedding(7.5), fit_first=2)
    grad, update = jax.jit(made.compute_grads), jax.jit(made.apply_grads)
    for i in range(4):
        before = jax.tree.map(np.asarray, state)
        state, told = update(state, grad(state, {}, TEXTS, None, jax.random.key(3), jnp.arange(BATCH)))
        assert np.array_equal(state.theta["rgb"], before.theta["rgb"]) == (i < 2)
        assert not np.array_equal(state.psi["embedding"], before.psi["embedding"])
        assert np.isnan(told["score_rms"]) == (i < 2)
        assert not np.isnan(told["fit"])


# --- runs ---------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def source(toy, tmp_path_factory):
    """A run of a toy, which edits start from."""
    folder = tmp_path_factory.mktemp("source") / "run"
    assert main([*TINY, "--steps", "2", "--out", str(folder)]) == 0
    return folder


def edit(source, out, *flags):
    return main(["edit-3d", str(source), "--target", "a toy", "--steps", "4", "--anyway", "--out", str(out), *flags])


@pytest.fixture(scope="module")
def edited(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("edited") / "edit"
    assert edit(source, out, "--objective", "dds") == 0
    return out


def test_the_default_is_lods_whose_branch_is_fitted_first(source, tmp_path, monkeypatch):
    """At a small guidance scale, and at the learning rate of its kind of branch unless one is asked for."""
    seen = []
    monkeypatch.setattr("lods_jax.runs.run.start", lambda config, out: seen.append(config) or 0)
    for flags in ((), ("--objective", "lods-embedding"), ("--psi-lr", "0.02")):
        assert edit(source, tmp_path / "edit", *flags) == 0
    assert (seen[0].objective.name, seen[0].objective.guidance_scale, seen[0].edit.fit_first) == ("lods-lora", 7.5, 100)
    assert [config.optimizer.psi_lr for config in seen] == [0.003, 0.01, 0.02]


def test_an_edit_is_a_run_with_the_scene_of_the_other(source, edited):
    of, config = load(source / "config.yaml"), load(edited / "config.yaml")
    assert (config.prompt, config.source_prompt, config.objective.name) == ("a toy", "a thing", "dds")
    assert (config.gaussians.capacity, config.camera, config.prior) == (of.gaussians.capacity, of.camera, of.prior)
    begun = first_state(build(config))
    same(begun.theta, final(source, 2).theta)
    assert not np.array_equal(final(edited, 4).theta["sh"], begun.theta["sh"])
    assert int(final(edited, 4).aux["alive"].sum()) == int(begun.aux["alive"].sum())  # nothing is grown or pruned


def test_an_edit_goes_on_when_the_other_run_is_gone(source, edited, tmp_path):
    """From its copy, to the bits of the edit that was not stopped."""
    out = shutil.copytree(edited, tmp_path / "edit")
    shutil.rmtree(out / "checkpoints")
    (out / "run.json").write_text('{"state": "running"}')  # as a kill before the first checkpoint leaves it
    (out / "config.yaml").write_text((out / "config.yaml").read_text().replace(str(source), "/nowhere"))
    assert main(["resume", str(out)]) == 0
    assert load(out / "config.yaml").edit.run == "/nowhere"
    same(final(out, 4).theta, final(edited, 4).theta)


def test_lods_fits_its_branch_to_the_object_before_it_moves(source, tmp_path):
    out = tmp_path / "edit"
    assert edit(source, out, "--objective", "lods-embedding", "--fit-first", "2") == 0
    config = load(out / "config.yaml")
    assert (config.steps, config.edit.fit_first) == (6, 2)
    lines = metrics(out)
    assert ["score_rms" in line for line in lines] == [line["step"] > 2 for line in lines]
    assert all("fit" in line for line in lines)


def test_an_object_needs_no_more_capacity_after_the_first_step(source):
    """The first static shapes hold what the other run has needed."""
    config = load(source / "config.yaml")
    components = build(edit_config(config, source, "a toy", "a thing", config.objective, 4, 0, 0))
    many = components._replace(source=(components.source[0], components.source[1] | {"total": jnp.asarray(5000)}))
    assert first_shapes(many).capacity >= 5500 > first_shapes(components).capacity


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["text-to-3d", "a thing", "--objective", "dds", "--anyway"], "compares with a source object: use edit-3d"),
        (["edit-3d", "/nowhere", "--target", "a toy"], "/nowhere holds no run"),
    ],
)
def test_an_edit_without_an_object_is_refused_in_one_line(toy, flags, says, capsys):
    assert main(flags) == 2
    assert says in capsys.readouterr().err


def test_an_object_of_another_size_is_refused(source):
    config = load(source / "config.yaml")
    bigger = replace(config, gaussians=replace(config.gaussians, capacity=128))
    with pytest.raises(Exception, match=r"holds no object that this run could edit: .* is of another configuration"):
        build(edit_config(bigger, source, "a toy", "a thing", config.objective, 4, 0, 0))
