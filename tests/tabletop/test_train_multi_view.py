"""Laws of the trainer of the prior of four views, on networks of one small block: what it begins as, what a group is."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.cameras import VIEWS as VIEW_WORDS
from lods_jax.core.cameras import orbit_camera
from lods_jax.core.types import Cond
from lods_jax.priors import flax_networks, hub, sampling
from lods_jax.priors.multi_view import camera_vectors
from lods_jax.priors.registry import views_of
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.tabletop import fine_tuning, fitting, train_multi_view, train_prior
from lods_jax.tabletop.architectures import architecture, networks, of_views
from lods_jax.tabletop.dataset import Renders, sample_renders
from lods_jax.tabletop.fitting import make_step, optimizer
from lods_jax.tabletop.prior_batches import caption_ids
from lods_jax.tabletop.train_multi_view import VIEWS, joined_rows
from tests.small_prior import SIZE, add_architecture, write_prior

KEY, BATCH = jax.random.key(0), 8
TX = optimizer("adamw")


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        add_architecture(patch)
        patch.setattr(train_multi_view, "LATENT", 8)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    write_prior(out := tmp_path_factory.mktemp("prior") / "prior")
    return out


@pytest.fixture(scope="module")
def begun(folder, tmp_path_factory):
    """The folder of four views before the first step."""
    out = tmp_path_factory.mktemp("multiview")
    fit = fine_tuning.first_fit(train_multi_view.task_of(folder), TX, folder)
    vae = flax_networks.init(networks(SIZE).vae, jax.random.key(0))
    train_prior.write_folder(out, of_views(architecture(SIZE), VIEWS), {"vae": vae, **fit.ema}, {"samples": 7})
    return out


@pytest.fixture(scope="module")
def inputs():
    """z_t, t and tokens of two groups, and cameras."""
    k = jax.random.split(KEY, 2)
    fill = lambda x: jnp.full(2 * VIEWS, x, jnp.float32)  # noqa: E731
    cameras = orbit_camera(jnp.arange(2 * VIEWS) * jnp.pi / 2, fill(0.3), fill(2.0), fill(0.8)).c2w.reshape(-1, 16)
    return jax.random.normal(k[0], (8, 8, 8, 4)), jnp.full(8, 500), jax.random.normal(k[1], (8, 12, 64)), cameras


def predicted(folder, inputs, camera=None, **options):
    prior = stable_diffusion(folder, **options)
    z_t, t, tokens, _ = inputs
    return np.asarray(jax.jit(prior.predict)(prior.init(KEY), {}, z_t, t, Cond(tokens, camera=camera)))


# --- what it begins as ------------------------------------------------------------------------------------------------------
def test_one_view_without_a_camera_is_the_prior_that_it_begins_as_bit_for_bit(folder, begun, inputs):
    np.testing.assert_array_equal(predicted(begun, inputs, views=1), predicted(folder, inputs))


def test_at_first_a_camera_adds_nothing_and_the_views_see_each_other(folder, begun, inputs):
    joined = predicted(begun, inputs)
    np.testing.assert_allclose(predicted(begun, inputs, inputs[3]), joined, rtol=1e-5, atol=2e-6)
    assert np.abs(joined - predicted(folder, inputs)).max() > 1e-3


# --- folders ----------------------------------------------------------------------------------------------------------------
def test_the_folder_says_how_many_views_it_takes_and_goes_on_alone(folder, begun):
    """Float16 on disk; diffusers must not load it as a U-Net of its own, which would drop the layers of the camera."""
    assert (views_of(str(begun)), stable_diffusion(begun).views) == (VIEWS, VIEWS)
    assert "4 views together" in hub.family(begun)
    assert json.loads((begun / "model_index.json").read_text())["unet"] == ["lods_jax", "MultiViewUNet"]
    fit, meta = fine_tuning.former_fit(train_multi_view.task_of(folder), TX, folder, begun)
    assert (int(fit.samples), int(fit.step), meta["samples"]) == (7, 0, 7)
    saved = fine_tuning.averaged(begun, networks(SIZE, VIEWS))
    jax.tree.map(np.testing.assert_array_equal, fit.params, saved)


def test_text_to_image_puts_its_views_side_by_side(begun):
    images = sampling.text_to_image(begun, "a red mug", 2, 0, 3.0, 2)
    assert images.shape == (2, SIZE, VIEWS * SIZE, 3)


@pytest.mark.parametrize("views", [0, "four", None, 10**6])
def test_a_number_of_views_that_is_none_is_refused(begun, views):
    config = json.loads((begun / "unet" / "config.json").read_text()) | {"views": views}
    with pytest.raises(ValueError, match="views must be a whole number from 1 to 64, got "):
        flax_networks.unet(config)


# --- groups -----------------------------------------------------------------------------------------------------------------
def test_views_of_a_group_share_elevation_distance_and_background():
    r = sample_renders(KEY, {"mug": 8, "ball": 8}, 16, views=4, joint=True)
    for column in (r.labels[:, :3], r.elevation, r.radius, r.rgb[:, 0, 0]):
        of_group = column.reshape(4, VIEWS, -1)
        np.testing.assert_array_equal(of_group, np.repeat(of_group[:, :1], VIEWS, 1))
    turns = np.diff(r.azimuth.reshape(4, VIEWS)) % (2 * np.pi)
    np.testing.assert_allclose(turns, np.pi / 2, atol=1e-5)
    assert len(set(r.rgb[:, 0, 0, 0].tolist())) > 1  # not all of them white


def fake_renders(key, part, size, views):
    """Images that are their own number, of 16 objects in four views each."""
    del key, size
    n, rng = 16 * views, np.random.default_rng(part)
    rgb = np.broadcast_to(np.arange(n)[:, None, None, None], (n, SIZE, SIZE, 3)).astype(np.uint8)
    labels = np.concatenate([rng.integers(0, (12, 8, 3), (16, 3)).repeat(views, 0), rng.integers(0, 4, (n, 1))], 1)
    azimuth = np.arange(n) * 0.1
    return Renders(rgb, labels, *(x.astype(np.float32) for x in (azimuth, np.full(n, 0.3), np.full(n, 2.0))))


@pytest.fixture
def numbered(monkeypatch):
    monkeypatch.setattr(train_multi_view, "fresh_renders", fake_renders)
    pool_batches = train_multi_view.pool_batches
    monkeypatch.setattr(train_multi_view, "pool_batches", lambda *a, **k: pool_batches(*a, **(k | {"capacity": 32})))


def test_groups_come_first_whole_and_without_view_words(numbered, monkeypatch):
    monkeypatch.setattr(train_multi_view, "in_chunks", lambda f, x: x[..., :1].astype(np.float32))
    recipe, said = fine_tuning.recipe_of(partial(train_multi_view.loss, networks(SIZE, VIEWS)), 64), 0
    named = {ids: view for view, ids in views_and_ids(caption_ids()[0])}
    for _, (z, ids, camera) in zip(range(4), train_multi_view.batches(architecture(SIZE), 0, recipe, None), strict=False):
        n, image = joined_rows(64), z[:, 0, 0, 0].astype(int)
        assert (image[:n].reshape(-1, VIEWS) == image[:n:VIEWS, None] + np.arange(VIEWS)).all()
        assert (image[:n:VIEWS] % VIEWS == 0).all()
        np.testing.assert_array_equal(ids[:n], ids[:n:VIEWS].repeat(VIEWS, 0))
        assert not {named.get(tuple(row)) for row in ids[:n]} & set(VIEW_WORDS)
        said += sum(named.get(tuple(row)) in VIEW_WORDS for row in ids[n:])
        fill = lambda x: jnp.full(64, x, jnp.float32)  # noqa: E731
        place = orbit_camera(jnp.asarray(0.1 * image, jnp.float32), fill(0.3), fill(2.0), fill(1.0))
        np.testing.assert_allclose(camera, camera_vectors(place.c2w.reshape(-1, 16)), atol=1e-5)
    assert said > 0  # single images name theirs


def views_and_ids(table):
    """(view word or None, token ids) of every caption."""
    rows = table.reshape(-1, len(VIEW_WORDS) + 1, table.shape[-1])
    return [(view, tuple(ids)) for row in rows for view, ids in zip((*VIEW_WORDS, None), row, strict=True)]


@pytest.mark.parametrize("batch", [4, 10, 0])
def test_a_batch_without_whole_groups_and_single_images_is_refused(batch):
    with pytest.raises(ValueError, match=f"batch must be a multiple of 4 from 8 on for groups of 4 views, got {batch}"):
        joined_rows(batch)


def test_seven_tenths_of_a_batch_are_groups():
    assert [joined_rows(batch) for batch in (8, 16, 64, 512)] == [4, 12, 44, 360]


# --- training ---------------------------------------------------------------------------------------------------------------
def test_steps_on_one_batch_lower_both_losses_and_wake_the_camera(folder):
    task = train_multi_view.task_of(folder, BATCH)
    fit = fine_tuning.first_fit(task, TX, folder)
    z = jnp.repeat(jax.random.normal(KEY, (BATCH // VIEWS, 8, 8, 4)), VIEWS, 0)  # each group one image: easily told
    table, _ = caption_ids()
    ids = jnp.asarray(table[0, 0, 0, -1])[None].repeat(BATCH, 0)
    batch = z, ids, jax.random.normal(jax.random.key(1), (BATCH, 16))
    step, metrics = make_step(task.recipe, TX), []
    for _ in range(12):
        fit, found = step(fit, batch, KEY, 3e-3)
        metrics.append(found)
    for name in ("joined", "single"):
        first, last = (np.mean([float(m[name]) for m in part]) for part in (metrics[:3], metrics[-3:]))
        assert last < 0.9 * first
    assert np.abs(fit.params["unet"]["camera_embedding"]["linear_2"]["kernel"]).max() > 1e-3


def test_a_second_sitting_goes_on_where_the_first_one_ended(folder, tmp_path, monkeypatch):
    """A sitting here adds 1 to every number and counts a batch; what the files keep between sittings is what the law is about."""
    began = []

    def sitting(part, recipe, fit, batches, seconds, seed, tx, save, every):
        began.append(fit)
        moved = jax.tree.map(lambda x: x + 1, (fit.params, fit.ema))
        save(fit._replace(params=moved[0], ema=moved[1], samples=fit.samples + recipe.batch))

    monkeypatch.setattr(fitting, "train_for", sitting)
    monkeypatch.setattr(train_multi_view, "PREVIEW", train_multi_view.PREVIEW[:1])
    out = tmp_path / "multiview"
    run_sitting = partial(fine_tuning.fine_tune, train_multi_view.task_of(folder, BATCH), out, 1.0, folder, name="adamw")
    run_sitting()
    with pytest.raises(ValueError, match="pass --resume to go on with it"):
        run_sitting()
    run_sitting(resume=True)
    first, second = began
    jax.tree.map(np.testing.assert_array_equal, second.params, jax.tree.map(lambda x: x + 1, first.params))
    assert (int(first.samples), int(second.samples)) == (0, BATCH)
    assert {file.name for file in (out / "samples").iterdir()} == {f"multiview-{n * BATCH:08d}.png" for n in (1, 2)}
    assert json.loads((out / "training.json").read_text())["sittings"] == 2
    assert stable_diffusion(out).views == VIEWS
