"""Gaussian splats as files: the PLY layout that viewers read (Kerbl et al. 2023), and the smaller .splat of web viewers.

PLY: binary little endian, all float32: x y z nx ny nz f_dc_* f_rest_* opacity scale_* rot_*. Opacity is a logit, scales are
logarithms, rot is wxyz, f_rest is channel-major. Viewers take y as down: our z-up world is written as (x, -z, y), so that it
loads upright.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from lods_jax.core.files import replacing
from lods_jax.core.images import white_level
from lods_jax.core.quaternions import multiply
from lods_jax.scenes.ply_format import Table, read_ply_tables
from lods_jax.scenes.ply_header import is_ply
from lods_jax.scenes.spherical_harmonics import Y00, rotate_harmonics
from lods_jax.scenes.splat_formats import PACKED, ROW, decompress, read_splat_columns

# (x, -z, y): a rotation by 90 degrees about x.
FLIP = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32)
HALF = np.sqrt(0.5).astype(np.float32)
MAX_LOGIT = 20.0  # of an opacity that is 1 to the last bit: finite, so that it can be trained
MAX_VALUE = 1e9  # of a coordinate, a size or a coefficient that can still be rendered
REST = (0, 9, 24, 45)  # numbers of f_rest_*: degrees 0 to 3
Splats = dict[str, Float[np.ndarray, "..."]]


class Points(NamedTuple):
    """Rows of a file that a scene can start from.

    Attributes:
        columns: means [n 3] float64; and of splats quats, log_scales, opacity_logits and sh, otherwise rgb [n 3] in [0, 1].
        notes: for the user, on how the file was read, a line each.
        total: number of rows of the file.
    """

    columns: Splats
    notes: list[str]
    total: int


# --- writing ----------------------------------------------------------------------------------------------------------------
def write_ply(path: str | Path, splats: Splats) -> int:
    """Writes n Gaussians with y down, view-dependent colours rotated along.

    Args:
        path: of the file.
        splats: means [n 3], quats [n 4] wxyz, log_scales [n 3], opacity_logits [n] and sh [n k 3].

    Returns:
        The number of rows that were dropped because they are not finite.
    """
    n = len(splats["means"])
    means, quats = splats["means"] @ FLIP.T, multiply(np.array([HALF, HALF, 0, 0]), splats["quats"])
    sh = rotate_harmonics(splats["sh"], FLIP)
    rest = sh[:, 1:].transpose(0, 2, 1).reshape(n, 3 * (sh.shape[1] - 1))
    opacity = splats["opacity_logits"][:, None]
    table = np.concatenate([means, np.zeros((n, 3)), sh[:, 0], rest, opacity, splats["log_scales"], quats], 1)
    rows = np.ascontiguousarray(table[np.isfinite(table).all(1)], "<f4")
    names = [*"xyz", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), *(f"f_rest_{i}" for i in range(rest.shape[1]))]
    names += ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}", *(f"property float {x}" for x in names)]
    with replacing(path) as partial:
        partial.write_bytes("\n".join([*header, "end_header\n"]).encode() + rows.tobytes())
    return n - len(rows)


def write_splat(path: str | Path, splats: Splats) -> int:
    """Writes n Gaussians with y down as a .splat file: rows of 32 bytes without a header.

    Standard deviations are linear. Colour (of degree 0), opacity and the quaternion wxyz, as 128 + 128 q, are bytes. The largest
    and most opaque come first, so that a viewer that has loaded half of the file shows the better half.

    Args:
        path: of the file.
        splats: as for `write_ply`.

    Returns:
        The number of rows that were dropped because they are not finite.
    """
    means, quats = splats["means"] @ FLIP.T, multiply(np.array([HALF, HALF, 0, 0]), splats["quats"])
    scales, opacity = np.exp(splats["log_scales"]), 1 / (1 + np.exp(-splats["opacity_logits"]))
    rgba = np.concatenate([0.5 + Y00 * splats["sh"][:, 0], opacity[:, None]], 1)
    finite = np.isfinite(np.concatenate([means, quats, scales, rgba], 1)).all(1)
    quats = quats / np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-12)
    order = np.argsort(np.where(finite, -opacity * scales.prod(1), np.inf), kind="stable")[: finite.sum()]
    rows = np.zeros(len(order), ROW)
    rows["mean"], rows["scale"] = means[order], scales[order]
    rows["rgba"] = np.clip(255 * rgba[order] + 0.5, 0, 255)
    rows["quat"] = np.clip(128 * quats[order] + 128.5, 0, 255)
    with replacing(path) as partial:
        partial.write_bytes(rows.tobytes())
    return len(finite) - len(order)


# --- reading ----------------------------------------------------------------------------------------------------------------
def read_ply(path: str | Path) -> Splats:
    """Reads Gaussian splats, the inverse of `write_ply`.

    Args:
        path: a splat PLY of any program, plain or compressed by SuperSplat, or a .splat file.

    Returns:
        means, quats, log_scales, opacity_logits and sh in the frame of this library, float32. Rows that cannot be rendered are
            left out.

    Raises:
        ValueError: the file holds no splats; one line.
    """
    columns = read_points(path).columns
    if "quats" not in columns:
        raise ValueError(f"{path} has no property opacity, scale_0 or rot_0: it is no file of Gaussian splats")
    return columns | {"means": columns["means"].astype(np.float32)}


def read_points(path: str | Path, most: int | None = None, seed: int = 0) -> Points:
    """Reads Gaussian splats or a point cloud, for a scene to start from.

    A point cloud is taken as z-up, as Shap-E and scanners write it, and as grey without colours.

    Args:
        path: a PLY or a .splat file.
        most: rows to look at, drawn at random from a larger file, so that memory is taken for these alone; None for all.
        seed: of the draw.

    Returns:
        The rows that can be rendered. Means are float64: map coordinates keep their decimals until they are centred.

    Raises:
        ValueError: the file cannot be read; one line.
    """
    column = read_columns(path)
    total = len(next(iter(column.values()), ()))
    if most is not None and total > most:
        drawn = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
        column = {name: values[drawn] for name, values in column.items()}
    is_splat = "f_dc_0" in column or {"opacity", "scale_0", "rot_0"} <= column.keys()
    try:
        with np.errstate(all="ignore"):  # what overflows is not finite, and is left out
            rows, notes = splat_rows(column) if is_splat else cloud_rows(column)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    good = renderable(rows)
    if dropped := int((~good).sum()):
        notes.append(f"{dropped:,} of {len(good):,} {'Gaussians' if is_splat else 'points'} cannot be rendered and are left out")
    return Points({name: value[good] for name, value in rows.items()}, notes, total)


def read_columns(path: str | Path) -> Table:
    """The properties of the vertices of a PLY file, those of packed formats unpacked.

    Args:
        path: a PLY or a .splat file.

    Returns:
        {property: [n]}.

    Raises:
        ValueError: the file cannot be read, or has no vertices.
    """
    if Path(path).suffix.lower() == ".splat" and not is_ply(path):
        return read_splat_columns(path)
    tables = read_ply_tables(path, ("vertex", "chunk", "sh"))
    if "vertex" not in tables:
        raise ValueError(f"{path} holds no vertices: its header has no element vertex")
    if not any(name in tables["vertex"] for name in PACKED):
        return tables["vertex"]
    try:
        return decompress(tables)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def renderable(rows: Splats) -> Bool[np.ndarray, "n"]:
    """Tells which rows can be rendered: all numbers are finite, and none is larger than float32 can square.

    Args:
        rows: {leaf: [n ...]}.

    Returns:
        A mask [n].
    """
    flat = [value.reshape(len(value), math.prod(value.shape[1:])) for value in rows.values()]
    bounds = [np.log(MAX_VALUE) if name == "log_scales" else MAX_VALUE for name in rows]
    with np.errstate(invalid="ignore"):
        return np.all([(np.abs(value) <= bound).all(1) for value, bound in zip(flat, bounds, strict=True)], 0)


def take(column: Table, *names: str) -> Float[np.ndarray, "n k"]:
    """Columns side by side, float64.

    Args:
        column: {property: [n]}.
        *names: of k properties.

    Returns:
        [n k].

    Raises:
        ValueError: one is missing; worded to follow the name of the file.
    """
    if missing := [name for name in names if name not in column]:
        raise ValueError(f"has no property {missing[0]}: it holds {'no points' if missing[0] in 'xyz' else 'no Gaussian splats'}")
    return np.stack([column[name].astype(np.float64) for name in names], 1)


def splat_rows(column: Table) -> tuple[Splats, list[str]]:
    """Gaussians in the frame of this library, means in float64.

    Args:
        column: {property: [n]}.

    Returns:
        {leaf: [n ...]}, and notes for the user.
    """
    means, logits, notes = take(column, *"xyz"), take(column, "opacity")[:, 0], []
    flat = "scale_2" not in column  # 2DGS
    log_scales = take(column, *(f"scale_{i}" for i in range(2 if flat else 3)))
    if flat:
        log_scales = np.concatenate([log_scales, log_scales.min(1, keepdims=True) - np.log(100)], 1)
        notes.append("its Gaussians are flat (no scale_2): they are made a hundredth as thick as wide")
    quats = take(column, *(f"rot_{i}" for i in range(4)))
    largest = np.abs(quats).max(1, keepdims=True, initial=0)
    quats = np.where(largest == 0, [1, 0, 0, 0], quats / np.where(largest == 0, 1, largest))  # so that squares stay finite
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    if unturned := int((largest == 0).sum()):
        notes.append(f"{unturned:,} Gaussians have the quaternion 0: they are not turned")
    sh, said = splat_colors(column)
    rows = {
        "means": means @ FLIP.astype(np.float64),
        "quats": multiply(np.array([HALF, -HALF, 0, 0]), quats),
        "log_scales": np.maximum(log_scales, -np.log(MAX_VALUE)).astype(np.float32),
        # A logit of +-infinity is an opacity of 1 or 0.
        "opacity_logits": np.clip(logits, -MAX_LOGIT, MAX_LOGIT).astype(np.float32),
        "sh": rotate_harmonics(sh, FLIP.T),
    }
    return rows, notes + said


def splat_colors(column: Table) -> tuple[Float[np.ndarray, "n k 3"], list[str]]:
    """Coefficients of the colours in the file's frame: f_dc_* and f_rest_*, or red, green and blue.

    Args:
        column: {property: [n]}.

    Returns:
        [n k 3], and notes for the user.

    Raises:
        ValueError: the number of f_rest_* fits no degree; worded to follow the name of the file.
    """
    rest = [name for name in column if name.startswith("f_rest_")]
    if len(rest) not in REST or set(rest) != {f"f_rest_{i}" for i in range(len(rest))}:
        raise ValueError(f"has {len(rest)} properties f_rest_*: splats have {', '.join(map(str, REST))}, counted from 0")
    if "f_dc_0" in column:
        dc, notes = take(column, *(f"f_dc_{i}" for i in range(3))), []
    else:
        rgb, notes = cloud_colors(column)
        dc = (rgb - 0.5) / Y00
    higher = np.zeros((len(dc), 0, 3))
    if rest:
        higher = take(column, *(f"f_rest_{i}" for i in range(len(rest)))).reshape(len(dc), 3, len(rest) // 3).transpose(0, 2, 1)
    return np.concatenate([dc[:, None], higher], 1), notes


def cloud_rows(column: Table) -> tuple[Splats, list[str]]:
    """Means, in float64, and colours of a point cloud.

    Args:
        column: {property: [n]}.

    Returns:
        {"means", "rgb"}, and notes for the user.
    """
    means = take(column, *"xyz")
    rgb, notes = cloud_colors(column)
    return {"means": means, "rgb": rgb}, notes


def cloud_colors(column: Table) -> tuple[Float[np.ndarray, "n 3"], list[str]]:
    """Colours in [0, 1], grey if there are none.

    Args:
        column: {property: [n]}.

    Returns:
        [n 3], and notes for the user.
    """
    names = color_names(column)
    if not names:
        return np.full((len(column["x"]), 3), 0.5, np.float32), ["it has no colours that this program knows: all is grey"]
    # A byte that was declared with a sign is a byte.
    kinds = [column[name].view(np.uint8) if column[name].dtype == np.int8 else column[name] for name in names]
    rgb = np.stack([kind.astype(np.float64) for kind in kinds], 1)
    if all(kind.dtype == np.uint8 for kind in kinds):
        return (rgb / 255).astype(np.float32), []
    white = white_level(rgb, whole=all(kind.dtype.kind in "iu" for kind in kinds))
    notes = [] if white == 1 else [f"{white:,} is taken for white, as its colours reach {np.nanmax(rgb, initial=0):g}"]
    return np.clip(rgb / white, 0, 1).astype(np.float32), notes


def color_names(column: Table) -> list[str]:
    """The names of the properties red, green and blue, as programs write them: red, r, diffuse_red.

    Args:
        column: {property: [n]}.

    Returns:
        Three names, or none.

    Examples:
        >>> color_names(dict.fromkeys(["x", "diffuse_red", "diffuse_green", "diffuse_blue"], np.zeros(1)))
        ['diffuse_red', 'diffuse_green', 'diffuse_blue']
    """
    prefixes = [match[1] for name in column if (match := re.fullmatch(r"(.*?)red", name))]
    sets = [[f"{prefix}{color}" for color in ("red", "green", "blue")] for prefix in sorted(prefixes, key=prefix_rank)]
    return next((names for names in [*sets, ["r", "g", "b"]] if set(names) <= set(column)), [])


def prefix_rank(prefix: str) -> int:
    """Sorts a prefix of colour names: none before that of a material's diffuse light, and others last."""
    return ("", "diffuse_").index(prefix) if prefix in ("", "diffuse_") else 2
