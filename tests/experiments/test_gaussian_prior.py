"""One pixel under every objective: the fixed points that theory gives, and that training goes there."""

import importlib.util
from pathlib import Path

import pytest

from lods_jax.distillation.objectives import OBJECTIVES, csd, dds, lods_embedding, lods_lora, sds, sds_bridge, vsd

PATH = Path(__file__).resolve().parents[2] / "experiments" / "gaussian_prior.py"
spec = importlib.util.spec_from_file_location("gaussian_prior", PATH)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
fixed_point, run = module.fixed_point, module.run

S = [1.0, 2.0, 7.5, 100.0]


@pytest.mark.parametrize("s", S)
def test_fixed_points_are_those_of_the_papers(s):
    """Means: null 0.2, prompt 1, source 0.5; the reference of DDS is 0.5."""
    assert fixed_point(sds(s)) == pytest.approx(0.2 + 0.8 * s, rel=1e-3)
    assert fixed_point(vsd(s)) == pytest.approx(0.2 + 0.8 * s, rel=1e-3)
    assert fixed_point(dds(s)) == pytest.approx(0.5 + 0.5 * s, rel=1e-3)
    assert fixed_point(lods_embedding(s)) == pytest.approx(1, abs=1e-3)
    assert fixed_point(lods_lora(s)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("objective", [csd(), sds_bridge()])
def test_guidance_alone_never_stops(objective):
    assert fixed_point(objective) == float("inf")


@pytest.mark.parametrize(
    "name", [name for name in OBJECTIVES if name not in ("csd", "sds-bridge") and not OBJECTIVES[name]().noise]
)
def test_training_lands_on_the_fixed_point(name):
    objective = OBJECTIVES[name](s=2.0)
    point = fixed_point(objective)
    lr = 0.05 * max(1.0, point / 5)
    value, _ = run(objective, steps=800, lr=lr, psi_lr=lr)
    assert value == pytest.approx(point, rel=0.03, abs=0.05)
