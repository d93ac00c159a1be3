"""2-D distillation and editing: on a prior in closed form where it lands, on a tiny Stable Diffusion that the commands work."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lods_jax.cli import main
from lods_jax.cli.command_line import parse
from lods_jax.core.cameras import turntable
from lods_jax.core.images import write_png
from lods_jax.distillation.objectives import dds, lods_embedding, sds, vsd
from lods_jax.priors.gaussian import gaussian
from lods_jax.runs import generate
from lods_jax.runs.generate import image_prompts
from lods_jax.scenes.images import image_batch
from lods_jax.training.distill_2d import DistillConfig, distill, film, fit_on, in_latents, optimizers

TINY_SD = str(Path(__file__).parents[1] / "data" / "lods_parity" / "sd")
PRIOR = gaussian({"": 0.2, "y": 1.0, "now": 0.5})
TEXTS = {key: PRIOR.embed({}, [text] * 4) for key, text in {"prompt": "y", "plain": "y", "null": "", "source": "now"}.items()}
START = jnp.stack([jnp.full((2, 2, 3), x) for x in (0.0, 2.0)])


def test_a_grid_with_an_edge_that_its_format_cannot_have_is_a_png(tmp_path, monkeypatch):
    monkeypatch.setitem(generate.LONGEST_EDGE, ".webp", 255)
    generate.write_images(tmp_path / "one.webp", np.zeros((1, 128, 128, 3)))
    generate.write_images(tmp_path / "two.webp", np.zeros((2, 128, 128, 3)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.webp", "two.png"]


def last(steps):
    *_, (state, _) = steps
    return state


def test_every_particle_lands_on_the_fixed_point_from_wherever_it_starts():
    state = last(distill(PRIOR, {}, sds(1.0), TEXTS, START, DistillConfig(steps=400, lr=0.05)))
    np.testing.assert_allclose(state.theta["x"].mean((1, 2, 3)), [1, 1], atol=0.1)


def test_particles_do_not_mix():
    """The first of three particles moves alike whatever the others start from, as long as nothing is learned from all."""
    some = lambda other: jnp.concatenate([START[:1], jnp.full((2, 2, 2, 3), other)])  # noqa: E731
    a, b = (last(distill(PRIOR, {}, sds(2.0), TEXTS, some(x), DistillConfig(steps=5))) for x in (0.0, 7.0))
    np.testing.assert_allclose(a.theta["x"][0], b.theta["x"][0], rtol=1e-6)


def test_editing_ends_where_dds_says():
    """Reference 0.3, source mean 0.5, target mean 1: 0.3 + s 0.5."""
    start = jnp.full((2, 2, 2, 3), 0.3)
    state = last(distill(PRIOR, {}, dds(2.0), TEXTS, start, DistillConfig(steps=400, lr=0.05), reference=start))
    np.testing.assert_allclose(state.theta["x"], 1.3, atol=0.05)


def test_the_branch_that_is_fitted_first_knows_the_start():
    """The mean of its images, whatever the null text says."""
    import optax

    objective, psi = lods_embedding(), {"embedding": jnp.full((1, 1), 0.2)}
    images = jnp.full((8, 4, 4, 3), 0.9)
    psi = fit_on(PRIOR, {}, objective, TEXTS, images, psi, optax.adam(0.02), jax.random.key(0), 300)
    assert float(psi["embedding"][0, 0]) == pytest.approx(0.9, abs=0.1)


def test_an_image_has_no_camera_to_be_asked_with():
    assert vsd().queries["q"].pose
    state = last(distill(PRIOR, {}, vsd(), TEXTS, START, DistillConfig(steps=2)))
    assert set(state.psi) == {"lora"}


def test_particles_need_as_many_views():
    scene = image_batch(START)
    theta, aux = scene.init(jax.random.key(0))
    with pytest.raises(ValueError, match="2 particles need as many views"):
        scene.render(theta, aux, turntable(3), jax.random.split(jax.random.key(0), 3), {})


def test_a_film_ends_with_the_last_step():
    frames, state = film(distill(PRIOR, {}, sds(1.0), TEXTS, START, DistillConfig(steps=7)), lambda x: x, total=7, frames=3)
    assert frames.shape == (4, 2, 2, 2, 3)
    np.testing.assert_array_equal(frames[-1], state.theta["x"])


def test_latents_are_left_as_they_are():
    z = jnp.ones((1, 2, 2, 4))
    assert in_latents(PRIOR).encode({}, z, None) is z


# --- commands ---------------------------------------------------------------------------------------------------------------
FAST = ["--prior", TINY_SD, "--n", "2", "--steps", "2", "--anyway"]


@pytest.mark.parametrize(
    "extra", [["--objective", "lods-lora"], ["--objective", "sds", "--space", "pixels", "--guidance-scale", "3"]]
)
def test_text_to_image_under_an_objective_leaves_a_picture_and_a_film(tmp_path, extra, capsys):
    assert main(["text-to-image", "a mug", *FAST, *extra, "--out", str(tmp_path / "a.png")]) == 0
    image = np.asarray(Image.open(tmp_path / "a.png"))
    assert image.shape[1] == 2 * image.shape[0]
    assert (tmp_path / "a.mp4").stat().st_size > 500
    assert "under" in capsys.readouterr().out


@pytest.mark.parametrize(("objective", "size"), [("dds", []), ("lods-embedding", ["--prior.image-size", "32"])])
def test_edit_image_shows_the_image_and_its_edits(tmp_path, objective, size, capsys):
    write_png(tmp_path / "in.png", np.random.default_rng(0).uniform(size=(20, 30, 3)))
    command = ["edit-image", str(tmp_path / "in.png"), "--source", "a mug", "--target", "a cup", "--objective", objective, *FAST]
    assert main([*command, *size, "--fit-first", "2", "--out", str(tmp_path / "e.png")]) == 0
    image = np.asarray(Image.open(tmp_path / "e.png"))
    assert image.shape[1] == 3 * image.shape[0]  # the image and two edits
    assert (tmp_path / "e.mp4").exists()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["text-to-image", "a mug", *FAST, "--objective", "sdss"], "unknown objective sdss"),
        (["text-to-image", "a mug", *FAST, "--objective", "sds", "--guidance-scale", "0.1"], "guidance needs s >= 1"),
        (["edit-image", "/nowhere.png", "--source", "a mug", "--target", "a cup", *FAST], "there is no image /nowhere.png"),
        (["edit-image", "/etc/hostname", "--source", "a mug", "--target", "a cup", *FAST], "as an image"),
        (["text-to-image", "a mug", *FAST, "--objective", "dds"], "compares with a reference"),
        (["text-to-image", "a mug", *FAST, "--objective", "sds-bridge"], "asks with the text 'source'"),
        (["text-to-image", "a mug", *FAST, "--objective", "dsd"], "an objective that keeps one noise needs 3D"),
        (["text-to-image", "a mug", *FAST, "--objective", "cfd"], "an objective that keeps one noise needs 3D"),
    ],
)
def test_mistakes_are_one_line(command, says, capsys):
    assert main(command) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        (
            "embedding",
            {"objective": "lods-embedding", "guidance_scale": 100.0, "steps": 1000, "psi_lr": 1e-4},
        ),
        ("lora", {"objective": "lods-lora", "guidance_scale": 1e6, "steps": 700, "psi_lr": 1e-5, "adapter_text": "<new1>"}),
    ],
)
def test_the_scripts_of_the_release_are_presets_below_the_flags(variant, settings):
    args = parse(["text-to-image", "an astronaut", "--config", f"sd21-image-lods-{variant}-official", "--n", "3"])
    assert {name: getattr(args, name) for name in settings} == settings
    assert (args.prompt, args.n, args.view, args.start, args.lr) == ("an astronaut", 3, "front", "uniform", 0.03)


def test_a_preset_of_another_command_is_refused_in_one_line(capsys):
    assert main(["text-to-image", "a mug", "--config", "gaussians-sds"]) == 2
    assert "gaussians-sds.yaml: objective must be a text or null" in capsys.readouterr().err
    assert main(["text-to-3d", "a red mug", "--config", "sd21-image-lods-lora-official"]) == 2
    assert "there is no key" in capsys.readouterr().err


def test_rates_that_do_not_fall_stay_and_others_fall_to_their_share():
    """Adam makes 1 of a gradient that is always 1."""
    for decay in (1.0, 0.1):
        tx, _ = optimizers(DistillConfig(steps=4, lr=0.03, decay=decay), {"embedding": START})
        state, rates = tx.init(START), []
        for _ in range(5):
            update, state = tx.update(jnp.ones_like(START), state)
            rates.append(-float(update[0, 0, 0, 0]))
        np.testing.assert_allclose([rates[0], rates[-1]], [0.03, 0.03 * decay], rtol=1e-4)


def test_momenta_are_those_of_the_recipe_for_images_and_learned_branch():
    for tx in optimizers(DistillConfig(b2=0.999), {"embedding": START}):
        _, state = tx.update(jnp.ones_like(START), tx.init(START))
        np.testing.assert_allclose(state[0].nu, 1e-3, rtol=1e-4)


def test_images_are_asked_for_by_the_name_of_a_view():
    table = image_prompts("a mug", "blurry", view="front", adapter_text="<new1>")
    assert set(table["prompt"]) == {"a mug, front view"}
    assert (set(table["null"]), set(table["adapter"])) == ({"blurry"}, {"<new1>"})
    assert set(image_prompts("a mug")["prompt"]) == {"a mug"}
