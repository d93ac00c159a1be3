"""Laws of memory plans on invented sizes, and a run that was planned with real ones."""

import math
import random
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from lods_jax.cli import main
from lods_jax.cli.command_line import parse
from lods_jax.core.errors import UserError
from lods_jax.core.types import Cond
from lods_jax.distillation.view_chunks import chunk_size
from lods_jax.runs.run_directory import read_json
from lods_jax.training import ahead_of_time, planning
from lods_jax.training.build import build
from lods_jax.training.compilation import compilations
from lods_jax.training.memory_plan import GIB, MemoryPlan, candidates, first_that_fits, read_memory, told
from tests.toy import TINY, final, same

SD = Path(__file__).parents[1] / "data" / "lods_parity" / "sd"
PLANS = candidates(MemoryPlan(), 8, 1, learns=True)


def sizes(seed: int) -> dict[MemoryPlan, int | None]:
    """A size for each candidate: falling or not, and none where it does not compile."""
    draw = random.Random(seed)
    return {plan: draw.choice([None, draw.randrange(1, 100), draw.randrange(1, 100)]) for plan in PLANS}


@pytest.mark.parametrize("seed", range(20))
def test_more_memory_never_picks_a_leaner_plan(seed):
    peaks = sizes(seed)
    chosen = []
    for memory in range(101):
        try:
            chosen.append(PLANS.index(first_that_fits(PLANS, peaks.get, memory, "").plan))
        except UserError:
            chosen.append(len(PLANS))
    assert all(later <= before for before, later in pairwise(chosen))
    assert chosen[0] == len(PLANS)


@pytest.mark.parametrize("seed", range(20))
def test_the_first_that_fits_is_taken_and_no_later_one_is_compiled(seed):
    peaks, asked = sizes(seed) | {PLANS[4]: 30}, []
    choice = first_that_fits(PLANS, lambda plan: asked.append(plan) or peaks[plan], 50, "")
    assert asked == PLANS[: len(asked)]
    assert asked[-1] == choice.plan
    assert peaks[choice.plan] == choice.peak <= 50
    assert [plan for plan, _ in choice.tried] == asked[:-1]
    assert all(peak is None or peak > 50 for _, peak in choice.tried)


def test_where_none_fits_the_least_is_named():
    peaks = dict.fromkeys(PLANS, 9 * GIB) | {PLANS[1]: 6 * GIB, PLANS[2]: None}
    with pytest.raises(UserError) as refused:
        first_that_fits(PLANS, peaks.get, 4 * GIB, "smaller with --resolution")
    said = "no memory plan makes a step fit into the 4.00 GiB of a device: the least is 6.00 GiB, with 4 views at a time"
    assert str(refused.value) == f"{said}; smaller with --resolution"
    with pytest.raises(UserError, match="fit into a device: none of them compiles; smaller"):
        first_that_fits(PLANS, lambda plan: None, math.inf, "smaller with --resolution")


@pytest.mark.parametrize(("views", "group"), [(1, 1), (8, 1), (6, 1), (8, 4), (12, 4), (7, 1)])
@pytest.mark.parametrize("given", [MemoryPlan(), MemoryPlan(3), MemoryPlan(vae_slicing=True), MemoryPlan(1, True, True, True)])
@pytest.mark.parametrize("learns", [True, False])
def test_each_candidate_gives_up_more_than_the_one_before(views, group, given, learns):
    plans = candidates(given, views, group, learns)
    assert plans[0] == given
    chunk = lambda plan: chunk_size(plan.view_chunk or views, views, group)  # noqa: E731
    for before, plan in pairwise(plans):
        assert plan != before
        assert chunk(plan) <= chunk(before)
        assert all(later >= earlier for earlier, later in zip(before[1:], plan[1:], strict=True))
        assert learns or (plan.remat, plan.remat_resnets) == (given.remat, given.remat_resnets)
    assert plans[-1].vae_slicing
    assert chunk(plans[-1]) == group


def test_a_choice_says_what_was_too_large():
    choice = first_that_fits(PLANS, {PLANS[0]: 9 * GIB, PLANS[1]: None, PLANS[2]: 2 * GIB}.get, 4 * GIB, "")
    assert told(choice, 4 * GIB) == (
        "2 views at a time: 2.00 of 4.00 GiB (all views at once: 9.00; 4 views at a time: not compiled)"
    )


@pytest.mark.parametrize("saved", ["auto", [1], {"remat": "yes"}, {"remat": -1}, {"slicing": True}])
def test_a_plan_that_a_checkpoint_cannot_hold_is_refused(saved):
    with pytest.raises(TypeError):
        read_memory(saved)


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
def test_a_run_is_planned_once_and_goes_on_with_its_plan(tmp_path, monkeypatch):
    """With a byte too little for two views together. No step is compiled twice, and the resumed run ends on the same bits."""
    flags = [*TINY, "--prior.memory", "auto", "--parallel", "jit", "--steps", "8"]
    together = ahead_of_time.compile_ahead(build(parse(flags).settings)).peak
    monkeypatch.setattr(planning, "limit_here", lambda: together - 1)
    with compilations() as spans:
        assert main([*flags, "--out", str(tmp_path / "whole")]) == 0
    assert [span.name for span in spans if span.stage == "backend_compile"].count("jit(step)") == 2
    assert read_json(tmp_path / "whole" / "run.json")["memory"] == MemoryPlan(view_chunk=1)._asdict()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "8")
    monkeypatch.setattr(planning, "limit_here", lambda: pytest.fail("the plan is that of the checkpoint"))
    assert main(["resume", str(tmp_path / "cut")]) == 0
    assert read_json(tmp_path / "cut" / "run.json")["memory"] == MemoryPlan(view_chunk=1)._asdict()
    same(final(tmp_path / "whole"), final(tmp_path / "cut"))


def test_a_plan_builds_the_prior_anew_and_keeps_its_weights(monkeypatch):
    """A compiler refuses what does not compute all blocks of the U-Net again."""

    def compile_ahead(components, devices, margin):
        if not components.plan.memory.remat_resnets:
            raise ahead_of_time.TooLarge("a step does not fit")
        return SimpleNamespace(peak=GIB)

    monkeypatch.setattr(planning, "compile_ahead", compile_ahead)
    flags = ["text-to-3d", "a red mug", "--config", "gaussians-lods-embedding", "--objective", "lods-lora", "--prior", str(SD)]
    config = parse([*flags, "--batch", "2", "--parallel", "jit", "--prior.memory", "auto"]).settings
    components = build(config)
    planned = planning.find_plan(config, components, math.inf)
    assert planned.memory == MemoryPlan(view_chunk=1, remat=True, remat_resnets=True)
    assert planned.said.startswith(
        "1 view at a time, transformer blocks and ResNet blocks computed again: 1.00 GiB (all views at"
    )
    assert planned.said.count(": not compiled") == 3
    found = planning.adopt(components, planned)
    assert found.weights is components.weights
    z, t, text = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1, jnp.int32), components.texts["prompt"][:1]
    ask = lambda prior: str(jax.make_jaxpr(lambda: prior.predict(components.weights, {}, z, t, Cond(text)))())  # noqa: E731
    assert "policy=None" in ask(found.prior)
    assert "policy=None" not in ask(components.prior)


@pytest.mark.usefixtures("toy")
def test_without_a_limit_nothing_is_compiled_for_a_plan(monkeypatch):
    monkeypatch.setattr(planning, "compile_ahead", lambda *args: pytest.fail("compiled"))
    config = parse([*TINY, "--prior.memory", "auto"]).settings
    components = build(config)
    assert planning.plan_run(config, components, lambda key, make: make()) == (components, "")
