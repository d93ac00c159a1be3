"""Image-to-3D, end to end on tiny random networks; and what an image tells: its object, its camera, its embedding."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from lods_jax.cli import main
from lods_jax.config import Config, ImageConfig, Zero123Config, load
from lods_jax.core.cameras import TABLETOP as ORBIT
from lods_jax.core.cameras import VIEWS, turntable
from lods_jax.core.cutouts import over, unmultiplied
from lods_jax.core.errors import UserError
from lods_jax.core.images import read_rgba, write_png, write_tiff
from lods_jax.distillation.objectives import lods_embedding
from lods_jax.distillation.scores import bind, denoising_loss
from lods_jax.priors.adapter_files import load_embedding
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.priors.zero123 import zero123
from lods_jax.tabletop.dataset import render_caption
from lods_jax.training import image_to_3d, textual_inversion
from lods_jax.training.schedules import Timeline
from tests.toy import TINY, final, metrics, same

TIMELINE = Timeline(400, 0.5)
DATA = Path(__file__).resolve().parents[1] / "data"
SD, POSED = DATA / "lods_parity" / "sd", DATA / "zero123"
FLAGS = [
    "--config",
    "image-gaussians-lods-embedding",
    "--prior",
    str(SD),
    "--pose-prior",
    str(POSED),
    "--image.invert",
    "3",
    "--azimuth",
    "30",
    "--elevation",
    "20",
]
FLAGS += ["--checkpoint.every", "4", *TINY[TINY.index("--steps") :]]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A red disc on white, without alpha."""
    y, x = np.mgrid[:64, :64] - 31.5
    file = tmp_path_factory.mktemp("images") / "disc.png"
    return write_png(file, np.where((np.hypot(x, y) < 20)[..., None], [0.8, 0.1, 0.1], [1.0, 1.0, 1.0]))


@pytest.fixture(scope="module")
def run(picture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("image-to-3d") / "run"
    assert main(["image-to-3d", str(picture), *FLAGS, "--out", str(folder)]) == 0
    return folder


def test_a_run_leaves_the_picture_what_was_fitted_to_it_and_a_page_with_both(run):
    assert {"index.html", "video.mp4", "scene.ply", "picture.png", "prompt_embeds.safetensors"} <= {x.name for x in run.iterdir()}
    assert json.loads((run / "run.json").read_text())["pose_sha256"]
    assert load_embedding(run / "negative_prompt_embeds.safetensors").shape == (77, 32)
    assert "the image" in (run / "index.html").read_text()
    last = metrics(run)[-1]
    assert {"score_rms", "score_rms_zero123", "image_rgb", "image_mask", "fit_gain"} <= last.keys()
    # Nobody said what it shows, and this prior has no judge.
    assert "prompt: an object" in (run / "config.yaml").read_text()
    kept = read_rgba(run / "picture.png")
    assert kept.shape == (64, 64, 4)
    assert kept[0, 0, 3] == 0
    np.testing.assert_allclose(kept[32, 32], [0.8, 0.1, 0.1, 1], atol=0.01)


@pytest.mark.slow
def test_a_run_goes_on_from_its_own_copies(run, picture, tmp_path):
    """Bit for bit, and though the image that it began with is gone."""
    folder = tmp_path / "killed"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "checkpoints" / "8")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace(str(picture), str(tmp_path / "gone.png")))
    assert main(["resume", str(folder)]) == 0
    same(final(folder), final(run))


def test_a_changed_prompt_is_fitted_anew_and_damage_is_seen(run, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(run, folder)
    config = load(folder / "config.yaml")
    assert textual_inversion.load_textual_inversion(folder, config) is not None
    assert textual_inversion.load_textual_inversion(folder, replace(config, prompt="a thing")) is None
    assert textual_inversion.load_textual_inversion(folder, replace(config, steps=99)) is not None  # it does not hang on this
    file = folder / textual_inversion.EMBEDDING
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    assert textual_inversion.load_textual_inversion(folder, config) is None
    file.write_bytes(data[:100])
    assert textual_inversion.load_textual_inversion(folder, config) is None


def test_priors_share_latents_only_where_both_encode_alike(picture):
    """The pose prior beside itself, and beside one of another size of image: Stable Diffusion beside Zero-1-to-3."""
    config = Config(prompt="a thing", image=ImageConfig(file=str(picture)), zero123=Zero123Config(name=str(POSED)))
    rgba = image_to_3d.object_image(config.image)
    known = image_to_3d.ReferenceImage(
        jnp.asarray(over(rgba, 1.0)), jnp.asarray(rgba[..., 3:]), image_to_3d.camera_of(config.image, ORBIT)
    )
    for size, shares in ((None, True), (32, False)):
        prior = zero123(POSED, image_size=size).prior
        auxiliary_prior, (own, tables) = image_to_3d.zero123_auxiliary(
            config.zero123, config.prior, TIMELINE, prior, prior.init(jax.random.key(0)), known
        )
        assert auxiliary_prior.shares_latents == shares
        assert set(own) == ({"unet"} if shares else {"unet", "vae"})
        assert tables["image"].shape == (8, 8, 4)


@pytest.mark.parametrize("behind", [0.0, 1e10, np.nan])
def test_depths_beside_the_picture_keep_every_digit_and_a_run_its_own_copy(tmp_path, behind):
    """Metres from 2 to 2.001, in front of what is far away or was not measured; a run goes on when the file is gone."""
    file, depth = shot(tmp_path / "robot.png", "a green robot", 0.0), tmp_path / "depth.tif"
    solid = read_rgba(file)[..., 3] > 0.5
    ramp = np.linspace(2, 2.001, 96, dtype=np.float32)[None].repeat(96, 0)
    write_tiff(depth, np.where(ndimage.binary_dilation(solid, iterations=3), ramp, np.float32(behind)))
    p = ImageConfig(file=str(file), frame="as-is", depth=(1.0, 1.0), depth_file=str(depth))
    config, folder, prior = Config(prompt="a green robot", image=p), tmp_path / "run", stable_diffusion(SD)
    found = image_to_3d.image_inputs(config, ORBIT, TIMELINE, None, prior, {})
    seen, inner = np.asarray(found.reference.image.depth)[..., 0], ndimage.binary_erosion(solid)
    near, far = ramp[inner].min().astype(np.float64), ramp[inner].max().astype(np.float64)
    np.testing.assert_allclose(seen[inner], (ramp[inner].astype(np.float64) - near) / (far - near), atol=1e-6)
    assert (seen.min(), seen.max()) == (0, 1)
    (said,) = image_to_3d.notes_on_image(config)
    assert f"{near:.6g} to {far:.6g} in {depth}" in said
    image_to_3d.keep(folder, config.image, found)
    depth.unlink()
    again = image_to_3d.image_inputs(config, ORBIT, TIMELINE, folder, prior, {})
    np.testing.assert_array_equal(again.reference.image.depth, found.reference.image.depth)
    with pytest.raises(UserError, match="goes with the image as it is"):
        image_to_3d.image_inputs(replace(config, image=replace(p, frame="fit")), ORBIT, TIMELINE, None, prior, {})


@pytest.mark.slow
def test_its_configuration_repeats_it(run, picture, tmp_path):
    assert main(["image-to-3d", str(picture), "--config", str(run / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    same(final(tmp_path / "again"), final(run))


# --- what an image tells -----------------------------------------------------------------------------------------------------
def shot(file, text, azimuth, size=96):
    """A tabletop object from one side, with alpha."""
    camera = image_to_3d.camera_of(ImageConfig(azimuth=azimuth), ORBIT)
    flat = np.asarray(render_caption(text, camera, size, background=0.0))[0]
    return write_png(file, unmultiplied(flat))


@pytest.mark.parametrize(("azimuth", "read"), [(0.0, 0.0), (180.0, 180.0), (80.0, 90.0)])
def test_the_judge_names_the_object_and_the_side(tmp_path, azimuth, read):
    file = shot(tmp_path / "robot.png", "a green robot", azimuth)
    config, said = image_to_3d.resolve_image_config(Config(image=ImageConfig(file=str(file), frame="as-is")))
    assert config.prompt == "a green robot"
    assert config.image.azimuth == read
    assert config.image.elevation == image_to_3d.ELEVATION
    assert config.image.invert == image_to_3d.INVERT
    assert said.startswith("reads as 'a green robot', ")


def test_what_is_given_is_not_read(tmp_path):
    file = shot(tmp_path / "robot.png", "a green robot", 0.0)
    image_inputs = ImageConfig(file=str(file), azimuth=12.0, elevation=-3.0, invert=0)
    config, _ = image_to_3d.resolve_image_config(Config(prompt="a red mug", image=image_inputs))
    assert config == Config(prompt="a red mug", image=image_inputs)


def test_an_object_beside_the_centre_and_a_camera_unlike_those_of_training_are_told(tmp_path):
    rgba = np.zeros((64, 160, 4), np.float32)
    rgba[20:40, 4:30] = (0.9, 0.1, 0.1, 1)
    file = write_png(tmp_path / "x.png", rgba)
    with pytest.raises(UserError, match=r"x\.png shows nothing in its centre square: pass --image\.frame fit"):
        image_to_3d.object_image(ImageConfig(file=str(file), frame="as-is"))
    assert image_to_3d.notes_on_image(Config(image=ImageConfig(file=str(file)))) == []
    (said,) = image_to_3d.notes_on_image(Config(image=ImageConfig(file=str(file), radius=50.0)))
    assert "sees 20.7 to each side of the origin, the cameras of training 0.82" in said


def test_one_depth_for_all_of_the_object_is_refused_and_greys_of_16_bits_are_told(tmp_path):
    file, depth = write_png(tmp_path / "x.png", np.pad(np.ones((40, 40, 4)), ((12, 12), (12, 12), (0, 0)))), tmp_path / "d.tif"
    write_tiff(depth, np.full((64, 64), 2.5, np.float32))
    with pytest.raises(UserError, match=r"d\.tif has one depth for the whole object, 2\.5"):
        image_to_3d.notes_on_image(Config(image=ImageConfig(file=str(file), frame="as-is", depth_file=str(depth))))
    grey = np.pad(np.full((40, 40), 0.25), 12, constant_values=1)
    Image.fromarray((65535 * grey).astype(np.uint16)).save(tmp_path / "g.png")
    assert image_to_3d.notes_on_image(Config(image=ImageConfig(file=str(tmp_path / "g.png")))) == [
        "65,535 is taken for white, as its greys are no bytes"
    ]


def test_a_picture_of_nothing_known_is_refused(tmp_path):
    noise = np.random.default_rng(0).random((64, 64, 4), np.float32)
    noise[..., 3] = np.pad(np.ones((62, 62)), 1)
    file = write_png(tmp_path / "x.png", noise)
    with pytest.raises(UserError, match="shows no object that this prior knows: pass --prompt"):
        image_to_3d.resolve_image_config(Config(image=ImageConfig(file=str(file), frame="as-is")))


def test_the_camera_is_one_of_the_orbit():
    camera = image_to_3d.camera_of(ImageConfig(azimuth=90.0, elevation=20.0), ORBIT)
    expected = jax.tree.map(lambda x: x[1:2], turntable(4, 20.0, ORBIT))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), camera, expected)
    assert VIEWS[int(camera.view[0])] == "side"
    near = image_to_3d.camera_of(ImageConfig(azimuth=90.0, radius=0.5), ORBIT)
    np.testing.assert_allclose(np.linalg.norm(near.c2w[0, :3, 3]), 0.5, rtol=1e-5)


@pytest.mark.slow
def test_an_inversion_moves_all_views_alike_and_denoises_the_picture_better(picture):
    prior = stable_diffusion(SD)
    weights = prior.init(jax.random.key(0))
    table = prior.embed(weights, [f"an object, {view} view" for view in VIEWS])
    config = Config(image=ImageConfig(file=str(picture), azimuth=180.0, invert=60, invert_lr=0.03))
    rgba = image_to_3d.object_image(config.image)
    known = image_to_3d.ReferenceImage(over(rgba, 1.0), rgba[..., 3:], image_to_3d.camera_of(config.image, ORBIT))
    by = textual_inversion.textual_inversion(config, prior, weights, table, known)
    texts = textual_inversion.shift_embeddings({"prompt": table, "plain": table[:1], "null": table[:1]}, by)
    moved = texts["prompt"]
    for name, before in (("prompt", table), ("plain", table[:1])):
        np.testing.assert_allclose(texts[name] - before, jnp.broadcast_to(by[None], before.shape), atol=1e-5)
    np.testing.assert_array_equal(texts["null"], table[:1])
    images = jnp.broadcast_to(jnp.asarray(known.rgb), (8, *known.rgb.shape))
    z, keys = prior.encode(weights, images, jax.random.key(1)), jax.random.split(jax.random.key(2), 8)
    row = VIEWS.index("back")

    def loss(embedding):
        return denoising_loss({"embedding": embedding}, lods_embedding(), bind(prior, weights), {"render": z}, {}, keys)

    assert loss(moved[row]) < loss(table[row])


# --- refusals -------------------------------------------------------------------------------------------------------------------
def broken(folder, name):
    """A file that is no image of an object."""
    file = folder / f"{name}.png"
    made = {
        "text": lambda: file.write_text("no image"),
        "empty": lambda: file.write_bytes(b""),
        "dot": lambda: Image.new("RGB", (1, 1)).save(file),
        "clear": lambda: Image.new("RGBA", (64, 64)).save(file),
        "noise": lambda: write_png(file, np.random.default_rng(0).random((64, 64, 3))),
        "missing": lambda: None,
    }
    made[name]()
    return file


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("text", [], "as an image"),
        ("empty", [], "as an image"),
        ("dot", [], "at least 8 x 8 pixels, got 1 x 1"),
        ("clear", [], "the image shows nothing"),
        ("noise", [], "neither an alpha nor a plain background"),
        ("missing", [], "there is no image"),
        ("noise", ["--prior", "exact"], "image-to-3d needs a prior that encodes images, got exact"),
        ("noise", ["--fov", "500"], "image.fov_y must lie in 1..170, got 500"),
        ("noise", ["--image.depth", "1", "1"], "image.depth needs image.depth_file: an image of it"),
        ("noise", ["--particles", "2"], "an image is of one object: leave particles at 1, got 2"),
        ("noise", ["--config", "gaussians-sds", "--prompt", "a red mug"], "nothing of this run looks at the image"),
    ],
)
def test_what_is_no_picture_of_an_object_is_one_line(tmp_path, capsys, name, flags, says):
    assert main(["image-to-3d", str(broken(tmp_path, name)), *flags, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_prior_of_poses_that_is_not_there_is_one_line(tmp_path, picture, capsys):
    words = ["image-to-3d", str(picture), "--prompt", "a red ball", "--pose-prior", str(tmp_path), "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert f"no Zero-1-to-3 prior at {tmp_path}: --pose-prior takes" in capsys.readouterr().err
