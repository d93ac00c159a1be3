"""Laws of the configuration: every key survives a round trip, and a wrong one is named in one line with the nearest right one."""

import dataclasses
import functools
import json
import math

import pytest
from ruamel.yaml import YAML as Reader

from lods_jax import config as C
from lods_jax.cli.flags import TextToImage
from lods_jax.config import Config, ObjectiveConfig
from lods_jax.core import paths
from lods_jax.core.cameras import TABLETOP, Orbit
from lods_jax.core.errors import UserError

YAML = Reader(typ="safe", pure=True)
PRESETS = [file for file in sorted(paths.PRESETS.rglob("*.yaml")) if file.parent != paths.SUITES]


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

    plain = changed(YAML.load(C.dump(Config()))) | {"debias": {"smiling": "back"}}
    plain["objective"]["options"] = {"scale": 1.0}
    assert YAML.load(C.dump(C.load(written(tmp_path, json.dumps(plain))))) == plain  # JSON is YAML


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_loads_by_name_makes_sense_and_opens_with_its_command(preset):
    task, load = preset.parent.name, C.load
    if task == "text-to-image":
        load = functools.partial(C.load, kind=TextToImage)
    loaded = load(preset)
    assert load(preset.stem) == loaded
    assert preset.read_text().startswith(f"# lods {task} ")
    if task == "text-to-image":
        return
    C.check(
        dataclasses.replace(loaded, image=dataclasses.replace(loaded.image, file="x.png")) if task == "image-to-3d" else loaded
    )


def test_the_default_cameras_are_those_of_the_tabletop_prior():
    assert Orbit(**vars(C.CameraConfig())) == TABLETOP


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stesp: 3", "no key stesp; the nearest is steps"),
        ("gaussians: {lr: {mean: 1}}", "no key gaussians.lr.mean; the nearest is gaussians.lr.means"),
        ("steps: many", "steps must be a whole number, got 'many'"),
        ("steps: 3.5", "steps must be a whole number, got '3.5'"),
        ("steps: true", "steps must be a whole number, got 'true'"),
        ("camera: {fov_y: 40}", "camera.fov_y must be 2 numbers, got '40'"),
        ("camera: 3", "camera must hold keys and values, got '3'"),
        ("parallel: tpu", "parallel must be auto or jit or pmap or shard_map, got 'tpu'"),
        ("prompt: [a mug]", "prompt must be a text, got ['a mug']"),
        ("debias: [1]", "debias must be names with a text each, got ['1']"),
        ("objective: {options: 5}", "objective.options must be names with a number each, got '5'"),
        ("optimizer.psi_lr: 1e-3", "the key optimizer.psi_lr must be written as optimizer: {psi_lr: ...}"),
        ("gaussians.lr.sh: 1", "the key gaussians.lr.sh must be written as gaussians: {lr: {sh: ...}}"),
        ("gaussians.lr: 1", "no key gaussians.lr; the nearest is gaussians.lr."),
        ('steps: !!int ""', "steps must be a whole number, got ''"),
        ('steps: !!timestamp "x"', "steps must be a whole number, got 'x'"),
        ("steps: 12:30", "steps must be a whole number, got '12:30'"),
        ("steps: 1e999", "steps must be a whole number, got '1e999'"),
        ("steps:", "steps must be a whole number, got nothing"),
        ("- 1", "must hold keys and values, got ['1']"),
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
        (f"steps: {400 * '9'}", "steps must lie in 1..10000000, got a number of 400 digits"),
        ('prompt: "a\\x1b[31mmug"', r"prompt holds the control character '\x1b'"),
        ('debias: {"a\\x9b": front}', r"debias holds the control character '\x9b'"),
        ("steps: -1", "steps must lie in 1.."),
        ("optimizer: {psi_lr: .nan}", "optimizer.psi_lr must lie in 0..10, got nan"),
        ("timesteps: {max: [0.98, 2]}", "timesteps.max must lie in 0..0.999, got 2"),
        ("timesteps: {min: [0.5, 0.6]}", "timesteps.min must not exceed timesteps.max"),
        ("gaussians: {init_count: 10, capacity: 5}", "gaussians.init_count must be at most gaussians.capacity = 5, got 10"),
        ("camera: {radius: [1, 2]}", "either camera.radius or camera.extent"),
        ("camera: {elevation: [40, 10]}", "camera.elevation must be a lower and an upper limit"),
    ],
)
def test_what_makes_no_sense_is_one_line_that_names_it(tmp_path, text, says):
    config = C.load(written(tmp_path, text))
    with pytest.raises(UserError) as error:
        C.check(config)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("optimizer: {psi_lr: 1e-3}", "optimizer.psi_lr", 1e-3),
        ("optimizer: {psi_lr: .5}", "optimizer.psi_lr", 0.5),
        ("objective: {guidance_scale: .inf}", "objective.guidance_scale", math.inf),
        ("objective: {s: inf}", "objective.guidance_scale", math.inf),
        ("objective: {s: null}", "objective.guidance_scale", None),
        ("steps: 1e3", "steps", 1000),
        ("steps: 3.0", "steps", 3),
        ("steps: 1_000", "steps", 1000),
        ("steps: 0400", "steps", 400),
        ("steps: 0o17", "steps", 15),
        ("steps: '600'", "steps", 600),
        ("view_words: off", "view_words", "off"),
        ("perp_neg: yes", "perp_neg", True),
        ("perp_neg: off", "perp_neg", False),
        ("prompt: yes", "prompt", "yes"),
        ("prompt: 1984", "prompt", "1984"),
        ("prompt: 0400", "prompt", "0400"),
        ("prompt: 2024-01-01", "prompt", "2024-01-01"),
        ("prompt: 'null'", "prompt", "null"),
        ("negative_prompt:", "negative_prompt", ""),
    ],
)
def test_a_value_is_what_its_key_means(tmp_path, text, key, value):
    """YAML 1.1 has no word for these: `off` was False, 0400 was 256, and 1e3 and a date of the calendar were not numbers."""
    found = {name: value for name, _, value in C.leaves(C.load(written(tmp_path, text)))}[key]
    assert found == value
    assert type(found) is type(value)


def test_a_name_stands_for_a_section(tmp_path):
    assert C.load(written(tmp_path, "prior: exact")).prior == C.PriorConfig(name="exact")


def test_an_unknown_preset_is_refused_with_the_names_that_there_are():
    with pytest.raises(UserError, match="gaussians-sds"):
        C.load("gaussian-sds.yml")


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().steps = 3


# --- presets that stand on others -----------------------------------------------------------------------------------------------
def laid_over(
    folder, text, base="steps: 7\nobjective: {name: sds, guidance_scale: 9, options: {scale: 1}}\noutput: {fps: 5, size: 64}\n"
):
    (folder / "under.yaml").write_text(base)
    return C.load(written(folder, f"base: under.yaml\n{text}"))


def test_a_file_is_laid_over_its_base_key_by_key(tmp_path):
    found = laid_over(tmp_path, "output: {size: 128}\nobjective: {options: {scale: 2}}")
    assert (found.steps, found.output.fps, found.output.size) == (7, 5, 128)
    assert found.objective == C.ObjectiveConfig("sds", 9.0, {"scale": 2.0})


@pytest.mark.parametrize("text", ["objective: {name: csd}", "objective: csd"])
def test_an_objective_of_another_name_takes_the_place_of_the_whole(tmp_path, text):
    assert laid_over(tmp_path, text).objective == C.ObjectiveConfig("csd")


def test_a_base_may_be_a_preset_and_have_a_base_itself(tmp_path):
    (tmp_path / "under.yaml").write_text("base: gaussians-lods-embedding\nbatch: 2\n")
    found = C.load(written(tmp_path, "base: under.yaml\nseed: 3"))
    assert found == dataclasses.replace(C.load("gaussians-lods-embedding"), batch=2, seed=3)


def test_what_is_printed_and_saved_stands_for_itself(tmp_path):
    found = laid_over(tmp_path, "seed: 1")
    assert "base" not in YAML.load(C.dump(found))
    assert C.parse_yaml(C.dump(found), "printed") == found


@pytest.mark.parametrize(
    ("under", "over", "says"),
    [
        ("base: over.yaml", "base: under.yaml", "base goes in a circle: over.yaml -> under.yaml -> over.yaml"),
        ("", "base: over.yaml", "base goes in a circle: over.yaml -> over.yaml"),
        ("", "base: nothing", "over.yaml: base: no file nothing, and no preset of that name: "),
        ("", "base: [under.yaml]", "over.yaml: base must be the name of a preset or a file, got ['under.yaml']"),
        ("stesp: 3", "base: under.yaml", "under.yaml: there is no key stesp; the nearest is steps"),
        ("steps: many", "base: under.yaml\nsteps: 3", "under.yaml: steps must be a whole number, got 'many'"),
    ],
)
def test_a_base_that_makes_no_sense_is_one_line_with_the_file_that_says_so(tmp_path, under, over, says):
    for name, text in (("under", under), ("over", over)):
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        C.load(tmp_path / "over.yaml")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
