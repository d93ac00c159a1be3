"""The step of a run compiles once for a static shape, and no compilation is counted as optimisation."""

import time

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import monitoring

from lods_jax.cli.command_line import parse
from lods_jax.distillation.parallel import fused_step
from lods_jax.distillation.train_step import init_state
from lods_jax.runs import training_loop
from lods_jax.scenes.images import pixels
from lods_jax.training import checkpoint, loop
from lods_jax.training.build import build
from lods_jax.training.compilation import PREFIX, Span, compilations, compile_seconds
from lods_jax.training.distributed import start_jax
from lods_jax.training.scene_setups import StaticShapes
from tests.toy import TINY, metrics

pytestmark = pytest.mark.usefixtures("toy")
STATES = {
    "gaussians": [],
    "gaussians with colours by view": ["--gaussians.sh-degree", "2", "--gaussians.init-type", "shell"],
    "two particles": ["--particles", "2"],
    "nerf with a learned background": ["--scene", "nerf", "--nerf.samples", "8", "--nerf.background", "learned-or-random"],
    "colours by the decoder": ["--score-path", "split"],
    "the decoder after the encoder": ["--particles", "2", "--score-path", "blend", "--score-path.decoder-share", "0", "1"],
    "an adapter": ["--objective", "lods-lora"],
    "nothing learned": ["--objective", "sds"],
}


@pytest.mark.parametrize("flags", STATES.values(), ids=STATES)
def test_a_state_enters_the_step_and_refinement_with_the_types_that_it_leaves_them_with(flags):
    """Shapes, dtypes and weak types: whatever differs is compiled for a second time."""
    config = parse([*TINY, *flags]).settings
    parts = build(config)
    state, key = loop.first_state(parts), jax.random.key(0)
    step = fused_step(loop.train_step(parts, parts.setup.choose_shapes(config.resolution, None)))
    refine = lambda key, state: parts.setup.refine(parts.tx_theta, key, state)  # noqa: E731
    after, _ = jax.eval_shape(step, state, parts.weights, parts.texts, None, key, jnp.arange(config.batch))
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)  # noqa: E731
    assert types(after) == types(state)
    assert types(jax.eval_shape(refine, key, state)) == types(state)


def test_a_first_state_is_strongly_typed_whatever_scene_and_optimizer_give():
    weak = pixels(1, 1)._replace(init=lambda key: ({"x": jnp.full(3, jnp.log(2.0))}, {"seen": jnp.asarray(1.0)}))
    assert weak.init(None)[0]["x"].weak_type
    state = init_state(weak, {"y": jnp.asarray(2.0)}, optax.adam(0.1), optax.trace(0.9), jax.random.key(0))
    assert not any(x.weak_type for x in jax.tree.leaves(state))


def test_nested_spans_count_once():
    spans = [
        Span("jaxpr_trace", "inner", 1.0, 2.0),
        Span("jaxpr_trace", "outer", 0.5, 3.0),
        Span("backend_compile", "", 4.0, 4.5),
    ]
    assert compile_seconds(spans) == 3.0
    assert compile_seconds([]) == 0.0


def test_compilations_are_seen_inside_the_block_alone():
    f = jax.jit(lambda x: jnp.sin(x) * 3)
    with compilations() as spans:
        f(jnp.ones(3)).block_until_ready()
        f(jnp.zeros(3)).block_until_ready()
    f(jnp.ones(4))
    assert [span.name for span in spans if span.stage == "backend_compile"].count("jit(<lambda>)") == 1
    assert 0 < compile_seconds(spans) < 60


def test_compilation_at_any_step_is_no_optimisation(tmp_path, monkeypatch):
    """Two steps, of which each waits a second for what JAX then says was compilation."""
    config = parse([*TINY, "--steps", "2", "--output.preview-every", "0"]).settings
    parts = build(config)
    state = loop.first_state(parts)

    def steps():
        for done in (1, 2):
            begin = time.time()
            time.sleep(1.0)
            monitoring.record_event_time_span(f"{PREFIX}backend_compile_duration", begin, time.time(), fun_name="jit(slow)")
            yield loop.Progress(
                done, state.replace(step=done), StaticShapes(16, 512), {"fit": jnp.zeros(()), "nonfinite_leaf": jnp.asarray(-1)}
            )

    monkeypatch.setattr(checkpoint, "save", lambda *args: None)
    _, seconds = training_loop.training_loop(
        config, parts, tmp_path, training_loop.Start(state), steps(), lambda state: {}, lambda *_: None, []
    )
    assert seconds["compile"] >= 2.0
    assert seconds["optimise"] < 1.0
    assert metrics(tmp_path)[-1]["seconds"] < 1.0


@pytest.mark.parametrize(("asked", "found"), [(None, 0.5), ("3", 3.0)])
def test_what_is_cached_is_for_the_environment_to_say(asked, found, monkeypatch):
    name, before = "jax_persistent_cache_min_compile_time_secs", jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.delenv(name.upper())
    if asked:
        monkeypatch.setenv(name.upper(), asked)
    try:
        jax.config.update(name, 3.0)  # as JAX reads it from the environment
        start_jax()
        assert getattr(jax.config, name) == found
    finally:
        jax.config.update(name, before)
