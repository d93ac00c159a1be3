"""What changes in the course of a run: weights by pairs and by milestones, learning rates and momenta of each optimizer."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.cli import command_line
from lods_jax.config import Config, GaussianConfig, ObjectiveConfig, OptimizerConfig, check, ever_on, load, parse_yaml
from lods_jax.core.errors import UserError
from lods_jax.distillation.objectives import cfd, sds
from lods_jax.training.checks import note_on_timesteps
from lods_jax.training.gaussian_setup import gaussian_optimizer
from lods_jax.training.schedules import Timeline, annealed, phase, window

RUN = Config(steps=1000, milestone=0.4)
TIMELINE = Timeline(1000, 0.4)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ((3.0, 5.0), {0: 3, 399: 3, 400: 5, 999: 5}),
        (((0.0, 0.0), (0.6, 100.0)), {0: 0, 599: 0, 600: 100, 999: 100}),
        (((0.0, 1.0), (250.0, 2.0), (0.5, 0.0)), {0: 1, 249: 1, 250: 2, 499: 2, 500: 0}),
        (((0.0, 7.0),), {0: 7, 999: 7}),
    ],
)
def test_a_schedule_has_its_value_from_the_milestone_on(schedule, values):
    """A pair changes at the run's milestone; a milestone up to 1 is a share of the run, above it a step."""
    assert {step: float(phase(TIMELINE, schedule, step)) for step in values} == values
    assert float(jax.jit(lambda step: phase(TIMELINE, schedule, step))(jnp.asarray(999))) == list(values.values())[-1]


@pytest.mark.parametrize("schedule", [(0.98, 0.5), ((0.0, 0.98), (0.4, 0.6), (1.0, 0.2))])
@pytest.mark.parametrize("anneal", ["linear", "sqrt"])
def test_an_annealed_schedule_meets_its_values_and_never_turns_back(schedule, anneal):
    knots = schedule if isinstance(schedule[0], tuple) else ((0.0, schedule[0]), (1.0, schedule[1]))
    values = np.array([annealed(TIMELINE, schedule, step, anneal) for step in range(0, 1001, 20)])
    np.testing.assert_allclose([values[round(at * 50)] for at, _ in knots], [value for _, value in knots], rtol=1e-6)
    assert np.all(np.diff(values) < 0)


def test_square_root_annealing_is_fast_at_first():
    """HiFA: t_max - (t_max - t_min) sqrt(share of the run)."""
    at = jnp.array([0, 10, 250, 1000])
    values = [float(annealed(TIMELINE, (0.98, 0.02), step, "sqrt")) for step in at]
    np.testing.assert_allclose(values, 0.98 - 0.96 * np.sqrt(at / 1000), rtol=1e-6)


def test_the_window_of_timesteps_is_whole_numbers_between_its_schedules():
    low, high = window(TIMELINE, (0.02, 0.02), ((0.0, 0.98), (1.0, 0.5)), "linear")(jnp.asarray(500))
    assert (low.dtype, high.dtype, int(low), int(high)) == (jnp.int32, jnp.int32, 20, 740)


def test_a_window_that_closes_between_milestones_is_refused():
    with pytest.raises(UserError, match=r"timesteps\.min must not exceed timesteps\.max"):
        check(parse_yaml("timesteps: {min: [[0, 0.02], [0.5, 0.6]], max: [0.98, 0.55]}", "config"))


def test_a_weight_that_is_never_on_is_left_out():
    assert not ever_on((0.0, 0.0))
    assert not ever_on(((0.0, 0.0), (0.5, 0.0)))
    assert ever_on((0.0, 1.0))
    assert ever_on(((0.0, 0.0), (0.5, 1.0)))


@pytest.mark.parametrize(
    ("milestones", "says"),
    [
        ("[[0.5, 0], [0.6, 1]]", "whose steps go up from 0"),
        ("[[0, 0], [0.6, 1], [0.6, 2]]", "whose steps go up from 0"),
        ("[[0, 0], [0.6, 1], [500, 2]]", "whose steps go up from 0, got [[0.0, 0.0], [0.6, 1.0], [500.0, 2.0]]"),
        ("[[0, 0], [.nan, 1]]", "whose steps go up from 0"),
        ("[[0, 0], [.inf, 1]]", "whose steps go up from 0"),
        ("[]", "whose steps go up from 0"),
        ("[[0, -1]]", "regularizers.opaque must lie in 0..1e+06, got -1"),
        ("[[0, 1, 2]]", "regularizers.opaque must be 2 numbers or a list of 2 numbers each"),
        ("[0, 1, 2]", "regularizers.opaque must be 2 numbers or a list of 2 numbers each"),
        ("7", "regularizers.opaque must be 2 numbers or a list of 2 numbers each, got '7'"),
    ],
)
def test_milestones_that_make_no_sense_are_one_line(milestones, says):
    with pytest.raises(UserError) as error:
        check(replace(parse_yaml(f"regularizers: {{opaque: {milestones}}}", "x.yaml"), steps=1000))
    assert says in str(error.value)


def test_milestones_come_from_flags_too():
    from lods_jax.cli.command_line import parse

    settings = parse(["text-to-3d", "a mug", "--regularizers.opaque", "0", "0", "0.6", "100"]).settings
    assert settings.regularizers.opaque == ((0.0, 0.0), (0.6, 100.0))
    assert parse(["text-to-3d", "a mug", "--regularizers.opaque", "0", "100"]).settings.regularizers.opaque == (0.0, 100.0)


def rates_of(config: Config) -> dict[str, list[float]]:
    """The updates of each parameter under a gradient of 1, which Adam turns into 1: minus the learning rate, step by step."""
    tx, theta = (
        gaussian_optimizer(config.gaussians, config.optimizer, config.steps),
        {name: jnp.ones(3) for name in vars(config.gaussians.lr)},
    )
    state, found = tx.init(theta), {name: [] for name in theta}
    for _ in range(config.steps + 1):
        updates, state = tx.update(theta, state, theta)
        for name, update in updates.items():
            found[name].append(-float(update[0]))
    return found


def test_the_rate_of_means_falls_beside_those_of_all():
    """By 0.5^(2500 / 30000) in the release: from 1.75e-4 to 1.65e-4, while the other rates stay."""
    config = load("sd21-gaussians-lods-embedding-official")
    assert config.gaussians.lr.means * config.gaussians.means_decay == pytest.approx(1.65e-4, rel=2e-3)
    short = replace(config, steps=4, optimizer=replace(config.optimizer, decay=0.5))
    rates = rates_of(short)
    share = config.gaussians.means_decay
    for i in range(5):
        assert rates["means"][i] == pytest.approx(1.75e-4 * 0.5 ** (i / 4) * share ** (i / 4), rel=1e-4)  # float32 in Adam
        assert rates["sh"][i] == pytest.approx(0.0125 * 0.5 ** (i / 4), rel=1e-4)


def test_an_optimizer_without_a_rate_of_its_own_for_means_keeps_the_leaves_that_checkpoints_hold():
    theta = {name: jnp.ones(3) for name in vars(GaussianConfig().lr)}
    assert len(jax.tree.leaves(gaussian_optimizer(RUN.gaussians, RUN.optimizer, RUN.steps).init(theta))) == 2 * len(theta) + 2
    falling = replace(RUN, gaussians=GaussianConfig(means_decay=0.5))
    assert (
        len(jax.tree.leaves(gaussian_optimizer(falling.gaussians, falling.optimizer, falling.steps).init(theta)))
        == 2 * len(theta) + 3
    )


@pytest.mark.parametrize(("psi_b2", "used"), [(None, 0.999), (0.9, 0.9)])
def test_the_learned_branch_has_a_second_momentum_of_its_own(psi_b2, used):
    from lods_jax.training.build import psi_optimizer

    tx = psi_optimizer(OptimizerConfig(b2=0.999, psi_b2=psi_b2))
    _, state = tx.update({"x": jnp.ones(3)}, tx.init({"x": jnp.ones(3)}))
    np.testing.assert_allclose(state[0].nu["x"], 1 - used, rtol=1e-4)


def test_an_objective_of_one_noise_is_told_of_timesteps_that_do_not_fall():
    """With the timesteps that the line names there is no line."""
    usual = Config(objective=ObjectiveConfig("cfd"))
    said = note_on_timesteps(usual, cfd())
    assert said.startswith("cfd keeps one noise and needs timesteps that fall; these begin at 0.02 to 0.98: ")
    named = command_line.parse(["text-to-3d", "a red mug", *said.split(": ")[1].split()]).settings.timesteps
    assert note_on_timesteps(replace(usual, timesteps=named), cfd()) == ""
    assert note_on_timesteps(replace(usual, timesteps=load("mvdream-nerf-sds").timesteps), cfd()) == ""
    assert note_on_timesteps(usual, sds()) == ""
