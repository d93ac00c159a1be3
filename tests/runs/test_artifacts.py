"""The views that people see: as far away as training was, or as a configuration asks for them."""

import jax.numpy as jnp
import numpy as np

from lods_jax.config import Config, OutputConfig
from lods_jax.core.cameras import Orbit
from lods_jax.runs.artifacts import output_views

ORBIT = Orbit(radius=(2.5, 4.0), fov_y=(40.0, 70.0))


def test_views_are_the_farthest_of_training_at_the_middle_of_its_fields_of_view():
    camera = output_views(Config(), ORBIT, 3)
    np.testing.assert_allclose(camera.radius, 4.0)
    np.testing.assert_allclose(jnp.rad2deg(camera.fov_y), 55.0, rtol=1e-6)
    np.testing.assert_allclose(jnp.rad2deg(camera.elevation), 20.0, rtol=1e-6)


def test_views_are_those_that_a_configuration_asks_for_however_training_is_framed():
    config = Config(output=OutputConfig(elevation=15.0, radius=1.5, fov_y=70.0))
    for orbit in (ORBIT, Orbit(extent=(0.76, 0.88))):
        camera = output_views(config, orbit, 3)
        np.testing.assert_allclose(camera.radius, 1.5)
        np.testing.assert_allclose(jnp.linalg.norm(camera.c2w[:, :3, 3], axis=-1), 1.5, rtol=1e-6)
        np.testing.assert_allclose(jnp.rad2deg(camera.fov_y), 70.0, rtol=1e-6)
        np.testing.assert_allclose(jnp.rad2deg(camera.elevation), 15.0, rtol=1e-5)
