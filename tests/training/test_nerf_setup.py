"""The radiance field of a run has the sizes that its config names, wherever it is read."""

import jax
import jax.numpy as jnp
import numpy as np

from lods_jax.config import NerfConfig, OptimizerConfig
from lods_jax.scenes.radiance_field import TINY, query_field
from lods_jax.training.nerf_setup import nerf_setup
from lods_jax.training.scene_setups import StaticShapes


def test_the_surface_is_read_with_the_cells_of_its_size():
    """The same tables read with 128 cells are another field."""
    setup = nerf_setup(NerfConfig(size="tiny-64"), OptimizerConfig(), steps=1, normals=False)
    theta, aux = setup.scene(StaticShapes(resolution=8, capacity=8 * 8 * 64)).init(jax.random.key(0))
    theta = theta | {"tables": [jax.random.normal(jax.random.key(1), table.shape) for table in theta["tables"]]}
    x = np.float32([[0.1, 0.2, 0.3], [-0.3, 0.05, 0.2], [0.0, -0.4, 0.1]])
    found = setup.surface(theta, aux).query_field(x)
    of = lambda finest: query_field(TINY._replace(finest=finest), theta, jnp.asarray(x).T)  # noqa: E731
    np.testing.assert_allclose(found, of(64), rtol=1e-5)
    assert np.abs(found - np.asarray(of(128))).max() > 1e-2
