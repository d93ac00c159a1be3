import jax
import numpy as np

from lods_jax.core.cameras import turntable
from lods_jax.scenes.images import pixels


def test_every_camera_sees_the_same_image():
    scene = pixels(3, 5, start=0.25)
    theta, aux = scene.init(jax.random.key(0))
    render = scene.render(theta, aux, turntable(4), jax.random.split(jax.random.key(1), 4), {})
    assert render.rgb.shape == (4, 3, 5, 3)
    np.testing.assert_array_equal(render.rgb, 0.25)
