"""What holds for every test. It imports no lods_jax: the shape checker must see the package before anyone loads it."""

import gc
import os
from pathlib import Path

# In the environment, before jax is loaded, so that the subprocesses of a test inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "lods_jax" / "tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # most of a test's time is XLA's; what is fast is no matter here
# Without optimisation a step compiles in half the time by XLA's older fusions; with it, as users compile, in the same.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false" * (os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"))
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")  # the command line makes a device of every core

import hypothesis
import pytest

# Tracing makes millions of objects that live on, and looking through them for garbage took a twelfth of the time.
gc.set_threshold(20_000)

# The first example of a test compiles, so a deadline per example would measure XLA.
hypothesis.settings.register_profile("lods_jax", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("lods_jax")


@pytest.fixture(scope="session", autouse=True)
def optimised_tracing():
    """Rays are traced in loops: without XLA's optimisations they take five times as long, and compile no faster."""
    import jax

    from lods_jax.tabletop import dataset, metrics, objects

    options = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    names = ("kind", "size", "supersample", "chunk")
    render_objects = jax.jit(objects.render_objects.__wrapped__, static_argnames=names, compiler_options=options)
    first_hits = jax.jit(metrics._first_hits.__wrapped__, static_argnames="kind", compiler_options=options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "render_objects", render_objects)
        patch.setattr(metrics, "_first_hits", first_hits)
        yield


@pytest.fixture(scope="module")
def toy():
    """A prior of the name "toy" for the tests of a module (see tests/toy.py)."""
    from lods_jax.priors import registry
    from tests.toy import TOY

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "PRIORS", dict(registry.PRIORS))
        exec(TOY, {})
        yield
