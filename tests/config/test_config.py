"""Laws of the configuration: every key survives a round trip, and a wrong one is named in one line with the nearest right one."""

import dataclasses
import math

import pytest
import yaml

from lods_jax import config as C
from lods_jax.config import Config, ObjectiveConfig
from lods_jax.core import paths
from lods_jax.core.cameras import TABLETOP, Orbit
from lods_jax.core.errors import UserError

PRESETS = sorted(paths.PRESETS.rglob("*.yaml"))


def written(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return file


def test_a_dumped_configuration_loads_back_equal(tmp_path):
    config = Config(
        prompt="a red mug: 'é' #1\n", steps=7, objective=ObjectiveConfig("sds", math.inf, {"scale": 1.0}),
        camera=C.CameraConfig(radius=(2.5, 4.0), extent=None),
    )  # fmt: skip
    assert C.load(written(tmp_path, C.dump(config))) == config


def test_every_key_survives_a_change(tmp_path):
    """One file that changes every key: nothing of it may be lost on the way."""

    def changed(value):
        if isinstance(value, dict):
            return {key: changed(x) for key, x in value.items()}
        if isinstance(value, list):
            return [changed(x) for x in value]
        if isinstance(value, bool):
            return not value
        return value / 2 + 1 if isinstance(value, float) else value + 1 if isinstance(value, int) else value

    plain = changed(yaml.safe_load(C.dump(Config()))) | {"debias": {"smiling": "back"}}
    plain["objective"]["options"] = {"scale": 1.0}
    assert yaml.safe_load(C.dump(C.load(written(tmp_path, yaml.safe_dump(plain))))) == plain


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_loads_by_name_makes_sense_and_opens_with_its_command(preset):
    task, loaded = preset.parent.name, C.load(preset)
    assert C.load(preset.stem) == loaded
    C.check(
        dataclasses.replace(loaded, picture=dataclasses.replace(loaded.picture, file="x.png"))
        if task == "image-to-3d"
        else loaded
    )
    assert preset.read_text().startswith(f"# lods {task} ")


def test_the_default_cameras_are_those_of_the_tabletop_prior():
    assert Orbit(**vars(C.CameraConfig())) == TABLETOP


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stesp: 3", "no key stesp; the nearest is steps"),
        ("gaussians: {lr: {mean: 1}}", "no key gaussians.lr.mean; the nearest is gaussians.lr.means"),
        ("steps: many", "steps must be a whole number, got 'many'"),
        ("steps: 3.5", "steps must be a whole number, got 3.5"),
        ("steps: true", "steps must be a whole number, got True"),
        ("camera: {fov_y: 40}", "camera.fov_y must be 2 numbers, got 40"),
        ("camera: 3", "camera must hold keys and values, got 3"),
        ("parallel: tpu", "parallel must be auto or jit or pmap or shard_map, got 'tpu'"),
        ("prompt: 3", "prompt must be a text, got 3"),
        ("- 1", "must hold keys and values, got a list"),
        ("a: [", "is not YAML"),
        ("\0", "is not YAML"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_it(tmp_path, text, says):
    with pytest.raises(UserError) as error:
        C.load(written(tmp_path, text))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resolution: 0", "resolution must lie in 8..2048, got 0"),
        ("resolution: 1000000", "resolution must lie in 8..2048"),
        ("steps: -1", "steps must lie in 1.."),
        ("optimizer: {psi_lr: .nan}", "optimizer.psi_lr must lie in 0..10, got nan"),
        ("timesteps: {max: [0.98, 2]}", "timesteps.max must lie in 0..0.999, got 2"),
        ("timesteps: {min: [0.5, 0.6]}", "timesteps.min must not exceed timesteps.max"),
        ("gaussians: {count: 10, capacity: 5}", "gaussians.count must be at most gaussians.capacity = 5, got 10"),
        ("camera: {radius: [1, 2]}", "either camera.radius or camera.extent"),
        ("camera: {elevation: [40, 10]}", "camera.elevation must be a lower and an upper limit"),
    ],
)
def test_what_makes_no_sense_is_one_line_that_names_it(tmp_path, text, says):
    config = C.load(written(tmp_path, text))
    with pytest.raises(UserError) as error:
        C.check(config)
    assert says in str(error.value)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    """PyYAML follows YAML 1.1, where 1e-3 has no sign or point and so is a string."""
    assert C.load(written(tmp_path, "optimizer: {psi_lr: 1e-3}")).optimizer.psi_lr == 1e-3
    assert C.load(written(tmp_path, "objective: {s: .inf}")).objective.s == math.inf


def test_a_name_stands_for_a_section(tmp_path):
    assert C.load(written(tmp_path, "prior: exact")).prior == C.PriorConfig(name="exact")


def test_an_unknown_preset_is_refused_with_the_names_that_there_are():
    with pytest.raises(UserError, match="gaussians-sds"):
        C.load("gaussian-sds.yml")


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().steps = 3
