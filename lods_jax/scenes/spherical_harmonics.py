"""Rotation of real spherical harmonics, in the order and with the signs of splat files (Kerbl et al. 2023)."""

import numpy as np
from jaxtyping import Float
from scipy.special import sph_harm_y

Y00 = 0.28209479177387814  # the constant one: rgb = 1/2 + Y00 sh_0


def real_harmonics(directions: Float[np.ndarray, "n 3"], degree: int) -> Float[np.ndarray, "n k"]:
    """Orthonormal real spherical harmonics, by degree l and then m from -l to l.

    With the Condon-Shortley phase: m < 0 is sqrt(2) Im Y_l^|m|, m > 0 is sqrt(2) Re Y_l^m.

    Args:
        directions: unit vectors [n 3].
        degree: the highest.

    Returns:
        [n k] float64, k = (degree + 1)^2.
    """
    x, y, z = directions.T
    polar, azimuth, columns = np.arccos(np.clip(z, -1, 1)), np.arctan2(y, x), []
    for l in range(degree + 1):  # noqa: E741
        for m in range(-l, l + 1):
            value = sph_harm_y(l, abs(m), polar, azimuth)
            columns.append(value.real if m == 0 else np.sqrt(2) * (value.imag if m < 0 else value.real))
    return np.stack(columns, 1)


def rotation_of_harmonics(rotation: Float[np.ndarray, "3 3"], degree: int) -> Float[np.ndarray, "k k"]:
    """The matrix D with Y(rotation^T d) = D Y(d) for every direction d: one block per degree.

    D is the integral of Y(rotation^T d) Y(d)^T over the sphere. A product of two harmonics is a polynomial of twice the degree,
    which Gauss-Legendre in z and equal steps in azimuth integrate exactly.

    Args:
        rotation: [3 3].
        degree: the highest.

    Returns:
        [k k], k = (degree + 1)^2.
    """
    n = 2 * degree + 1
    (z, weights), azimuth = np.polynomial.legendre.leggauss(degree + 1), 2 * np.pi * np.arange(n) / n
    z, weights, azimuth = np.repeat(z, n), np.repeat(weights, n) * 2 * np.pi / n, np.tile(azimuth, degree + 1)
    flat = np.sqrt(1 - z**2)
    d = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), z], 1)
    return np.einsum("n,na,nb->ab", weights, real_harmonics(d @ rotation, degree), real_harmonics(d, degree))


def rotate_harmonics(sh: Float[np.ndarray, "n k 3"], rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "n k 3"]:
    """Coefficients of the same colours in a rotated frame: what was seen along d is seen along rotation d.

    Args:
        sh: coefficients of each channel [n k 3], k = 1, 4, 9, ...
        rotation: takes a point of the old frame to the new one [3 3].

    Returns:
        Coefficients [n k 3] in the new frame, float32.
    """
    degree = int(np.sqrt(sh.shape[1])) - 1
    turned = np.einsum("ab,nac->nbc", rotation_of_harmonics(rotation.astype(np.float64), degree), sh)
    turned[:, 0] = sh[:, 0]  # what has no direction stays, to the bit
    return turned.astype(np.float32)
