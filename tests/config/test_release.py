"""The presets that behave as the release of LODS: they differ from ours in what docs/dev/release.md says, and in nothing else."""

import re
from pathlib import Path

import pytest

from lods_jax import config as C

TABLE = (Path(__file__).parents[2] / "docs" / "dev" / "release.md").read_text(encoding="utf-8")
SETTINGS = ("sd21-gaussians-lods-embedding", "sd21-nerf-lods-embedding", "sd21-nerf-lods-lora")


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_key_in_which_an_official_preset_differs_is_in_the_table(setting):
    ours, official = ({name: value for name, _, value in C.leaves(C.load(name))} for name in (setting, f"{setting}-official"))
    differ = {name for name in ours if ours[name] != official[name]}
    assert differ >= {"perp_neg", "camera.elevation_draw", "output.frames"}
    missing = [name for name in sorted(differ) if not re.search(rf"`{re.escape(name)}\b", TABLE)]
    assert not missing


@pytest.mark.parametrize("setting", SETTINGS)
def test_official_presets_hold_what_the_release_does(setting):
    """The facts of docs/dev/release.md that are numbers."""
    config = C.check(C.load(f"{setting}-official"))
    assert not config.perp_neg
    assert (config.output.fov_y, config.output.elevation, config.output.frames) == (70, 15, 120)
    if config.scene == "nerf":
        assert config.output.radius == 1.5
        assert config.regularizers.opaque == ((0, 0), (15_000 / config.steps, 100))
        assert config.milestone * config.steps == 10_000
        assert config.nerf.background == "learned-or-random"
        assert (config.optimizer.b2, config.optimizer.psi_b2) == (0.99, None)
        assert config.objective.adapter_text == ("<new1>" if "lora" in setting else None)
    else:
        refine = config.gaussians.refine
        assert config.output.radius == 4.0
        assert (config.optimizer.b2, config.optimizer.psi_b2) == (0.999, 0.99)
        assert (refine.statistic, refine.prune_scale3d, refine.prune_opacity) == ("norm-of-sum", 0.35, 0.005)
        assert [refine.start * config.steps, refine.stop * config.steps, refine.every] == [400, 900, 100]
        assert config.gaussians.means_decay == pytest.approx(0.5 ** (config.steps / 30_000), rel=1e-4)
