"""Smaller files of Gaussian splats, unpacked into the columns of a plain splat PLY: SuperSplat's compressed PLY, and .splat."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt

from lods_jax.core.files import open_regular
from lods_jax.scenes.ply_format import Table
from lods_jax.scenes.spherical_harmonics import Y00

CHUNK = 256  # Gaussians that share the ranges of a chunk
PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
ROW = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])  # of a .splat file, 32 bytes


def decompress(tables: dict[str, Table]) -> Table:
    """The columns of SuperSplat's compressed PLY (PlayCanvas), whose vertices are four words of 32 bits.

    Position and scale have 11, 10 and 11 bits, between the limits of their chunk. A rotation has the index of its largest
    component (2 bits) and the other three (10 bits each). Colour and opacity are bytes, in newer files between the limits of the
    chunk.

    Args:
        tables: the elements vertex, chunk and, for view-dependent colours, sh.

    Returns:
        x, f_dc_0, f_rest_0, opacity, scale_0, rot_0 and so on, as `scenes.ply` writes them.

    Raises:
        ValueError: elements or properties are missing; worded to follow the name of the file.
    """
    vertex, chunk, sh = tables["vertex"], tables.get("chunk", {}), tables.get("sh", {})
    ends = [f"{end}_{axis}" for axis in (*"xyz", "scale_x", "scale_y", "scale_z") for end in ("min", "max")]
    if missing := [name for name in ends if name not in chunk] or [name for name in PACKED if name not in vertex]:
        raise ValueError(f"is compressed, and lacks the property {missing[0]}")
    n = len(vertex["packed_position"])
    if len(chunk["min_x"]) * CHUNK < n or any(len(column) != n for column in sh.values()):
        raise ValueError(f"is damaged: {n:,} compressed Gaussians need a chunk for each {CHUNK} and a row of sh for each")
    words, of = {name: vertex[name].astype(np.uint32) for name in PACKED}, np.arange(n) // CHUNK
    between = lambda name, share: chunk[f"min_{name}"][of] * (1 - share) + chunk[f"max_{name}"][of] * share  # noqa: E731
    columns = {}
    for word, prefix, names in (("packed_position", "", "xyz"), ("packed_scale", "scale_", "012")):
        for axis, name, share in zip("xyz", names, unpack(words[word], (11, 10, 11)), strict=True):
            columns[prefix + name] = between(prefix + axis, share)
    columns |= {f"rot_{i}": q for i, q in enumerate(unpack_quats(words["packed_rotation"]).T)}
    *rgb, opacity = unpack(words["packed_color"], (8, 8, 8, 8))
    if "min_r" in chunk:
        rgb = [between(channel, share) for channel, share in zip("rgb", rgb, strict=True)]
    columns |= {f"f_dc_{i}": (color - 0.5) / Y00 for i, color in enumerate(rgb)} | {"opacity": logit(opacity)}
    return columns | {name: column * (8 / 255) - 4 for name, column in sh.items() if name.startswith("f_rest_")}


def unpack(words: UInt[np.ndarray, "n"], bits: tuple[int, ...]) -> list[Float[np.ndarray, "n"]]:
    """The bit fields of 32-bit words, the highest first.

    Args:
        words: [n].
        bits: width of each field.

    Returns:
        One array [n] in [0, 1] per field.

    Examples:
        >>> [field.tolist() for field in unpack(np.array([0xFF000000], np.uint32), (8, 24))]
        [[1.0], [0.0]]
    """
    shifts = np.cumsum(bits[::-1])[::-1] - bits
    return [((words >> np.uint32(shift)) & np.uint32(2**b - 1)) / (2**b - 1) for shift, b in zip(shifts, bits, strict=True)]


def unpack_quats(words: UInt[np.ndarray, "n"]) -> Float[np.ndarray, "n 4"]:
    """Unit quaternions wxyz, from the index of the largest component and the other three, which lie within sqrt(1/2).

    Args:
        words: [n].

    Returns:
        [n 4].
    """
    rest = np.sqrt(2) * (np.stack(unpack(words & np.uint32(2**30 - 1), (10, 10, 10)), 1) - 0.5)
    largest = (words >> np.uint32(30)).astype(int)
    quats = np.zeros((len(words), 4))
    quats[np.arange(4) != largest[:, None]] = rest.ravel()
    quats[np.arange(len(words)), largest] = np.sqrt(np.maximum(1 - np.sum(rest**2, 1), 0))
    return quats


def read_splat_columns(path: str | Path) -> Table:
    """The columns of a .splat file (antimatter15): rows of 32 bytes without a header.

    Args:
        path: of the file.

    Returns:
        {property: [n]}, named as in `scenes.ply`.

    Raises:
        ValueError: the size of the file is no multiple of 32 bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size % ROW.itemsize:
            raise ValueError(f"{path} is no .splat file: it has {size:,} bytes, which are no rows of {ROW.itemsize}")
        rows = np.fromfile(file, ROW)
    with np.errstate(divide="ignore", invalid="ignore"):
        scales = np.log(rows["scale"].astype(np.float64))
    columns = dict(zip("xyz", rows["mean"].T, strict=True)) | {f"scale_{i}": s for i, s in enumerate(scales.T)}
    columns |= {f"f_dc_{i}": (c / 255 - 0.5) / Y00 for i, c in enumerate(rows["rgba"][:, :3].T.astype(np.float64))}
    columns |= {f"rot_{i}": (q.astype(np.float64) - 128) / 128 for i, q in enumerate(rows["quat"].T)}
    return columns | {"opacity": logit(rows["rgba"][:, 3] / 255)}


def logit(p: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """log(p / (1 - p)); infinite where p is 0 or 1.

    Examples:
        >>> logit(np.array([0.5])).tolist()
        [0.0]
    """
    with np.errstate(divide="ignore"):
        return np.log(p) - np.log1p(-p)
