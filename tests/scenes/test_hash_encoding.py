"""The hash encoding against a loop over points and corners, in values and in the custom VJP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.scenes.hash_encoding import PRIMES, encode, resolutions

CELLS, ROWS, N = (3, 9), 64, 20  # 4^3 = 64 corners fit the table, 10^3 are hashed
KEYS = jax.random.split(jax.random.key(0), 4)
TABLES = [jax.random.normal(k, (ROWS, 2)) for k in KEYS[:2]]
X = jax.random.uniform(KEYS[2], (3, N), minval=0.01, maxval=0.99)
G = jax.random.normal(KEYS[3], (N, 4))


def naive(tables, x):
    """The definition, in float64 and Python integers."""
    out, g_tables, g_x = np.zeros((N, 4)), [np.zeros((ROWS, 2)) for _ in tables], np.zeros((3, N))
    for level, cells in enumerate(CELLS):
        for n in range(N):
            at = np.asarray(x[:, n], np.float64) * cells
            low = np.floor(at).astype(int)
            for bits in np.ndindex(2, 2, 2):
                corner = [int(i) for i in low + bits]
                if (cells + 1) ** 3 <= ROWS:
                    row = corner[0] + corner[1] * (cells + 1) + corner[2] * (cells + 1) ** 2
                else:
                    row = ((corner[0] * PRIMES[0]) ^ (corner[1] * PRIMES[1]) ^ (corner[2] * PRIMES[2])) % ROWS
                shares = [at[k] - low[k] if bits[k] else 1 - at[k] + low[k] for k in range(3)]
                part, value = np.asarray(G[n, 2 * level : 2 * level + 2], np.float64), np.asarray(tables[level][row], np.float64)
                out[n, 2 * level : 2 * level + 2] += np.prod(shares) * value
                g_tables[level][row] += np.prod(shares) * part
                for k in range(3):
                    others = np.prod([shares[j] for j in range(3) if j != k])
                    g_x[k, n] += (1 if bits[k] else -1) * cells * others * (value @ part)
    return out, g_tables, g_x


def test_values_and_gradients_are_those_of_the_definition():
    out, pullback = jax.vjp(lambda tables, x: encode(tables, x, CELLS), TABLES, X)
    want, want_tables, want_x = naive(TABLES, np.asarray(X))
    np.testing.assert_allclose(out, want, atol=1e-5)
    g_tables, g_x = pullback(G)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), g_tables, want_tables)
    np.testing.assert_allclose(g_x, want_x, atol=1e-4)


def test_the_encoding_is_continuous_across_cells_and_up_to_the_border():
    for x in (1 / 3, 2 / 9, 1.0):
        at = lambda dx: encode(TABLES, jnp.array([[x + dx], [0.4], [0.7]]), CELLS)  # noqa: B023, E731
        np.testing.assert_allclose(at(-1e-6), at(0.0), atol=1e-3)


@pytest.mark.parametrize(("levels", "base", "finest"), [(8, 16, 256), (16, 16, 4096), (1, 16, 16)])
def test_resolutions_grow_geometrically_from_base_to_finest(levels, base, finest):
    cells = resolutions(levels, base, finest)
    assert (len(cells), cells[0], cells[-1]) == (levels, base, finest)
    ratios = np.log(cells[1:]) - np.log(cells[:-1]) if levels > 1 else np.zeros(0)
    np.testing.assert_allclose(ratios, np.log(finest / base) / max(levels - 1, 1), atol=0.06)
