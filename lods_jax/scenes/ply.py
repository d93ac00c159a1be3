"""Gaussian splats as PLY files, in the layout that viewers read (Kerbl et al. 2023), and as the smaller .splat of web viewers.

PLY: binary little endian, all float32: x y z nx ny nz f_dc_* f_rest_* opacity scale_* rot_*. Opacity is a logit, scales are
logarithms, rot is wxyz, f_rest is channel-major. Viewers take y as down: our z-up world is written as (x, -z, y), so that it
loads upright.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from lods_jax.core.files import replacing
from lods_jax.scenes.gaussians import Y00

# (x, -z, y): a rotation by 90 degrees about x.
FLIP = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32)
HALF = np.sqrt(0.5).astype(np.float32)
TYPES = {
    **dict.fromkeys(("char", "int8"), "<i1"), **dict.fromkeys(("uchar", "uint8"), "<u1"),
    **dict.fromkeys(("short", "int16"), "<i2"), **dict.fromkeys(("ushort", "uint16"), "<u2"),
    **dict.fromkeys(("int", "int32"), "<i4"), **dict.fromkeys(("uint", "uint32"), "<u4"),
    **dict.fromkeys(("float", "float32"), "<f4"), **dict.fromkeys(("double", "float64"), "<f8"),
}  # fmt: skip
Splats = dict[str, Float[np.ndarray, "..."]]


def write_ply(path: str | Path, splats: Splats) -> int:
    """Writes means, quats, log_scales, opacity_logits and sh of n Gaussians; returns how many rows were dropped as not finite.

    Only degree 0 turns with the world exactly here: higher coefficients are written as they are, in the scene's own frame.
    """
    n = len(splats["means"])
    means, quats = splats["means"] @ FLIP.T, _turn(np.array([HALF, HALF, 0, 0]), splats["quats"])
    k = splats["sh"].shape[1]
    rest = splats["sh"][:, 1:].transpose(0, 2, 1).reshape(n, 3 * (k - 1))
    opacity = splats["opacity_logits"][:, None]
    table = np.concatenate([means, np.zeros((n, 3)), splats["sh"][:, 0], rest, opacity, splats["log_scales"], quats], 1)
    rows = np.ascontiguousarray(table[np.isfinite(table).all(1)], "<f4")
    names = [*"xyz", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), *(f"f_rest_{i}" for i in range(rest.shape[1]))]
    names += ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}", *(f"property float {x}" for x in names)]
    with replacing(path) as partial:
        partial.write_bytes("\n".join([*header, "end_header\n"]).encode() + rows.tobytes())
    return n - len(rows)


ROW = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])  # of a .splat file, 32 bytes


def write_splat(path: str | Path, splats: Splats) -> int:
    """The same Gaussians as rows of 32 bytes in the same frame, without a header; returns how many were dropped as not finite.

    Standard deviations are linear, colour (of degree 0) and opacity are bytes, and so is the quaternion wxyz, as 128 + 128 q. The
    largest and most opaque come first: a viewer that has loaded half of the file shows the better half.
    """
    means, quats = splats["means"] @ FLIP.T, _turn(np.array([HALF, HALF, 0, 0]), splats["quats"])
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


def read_ply(path: str | Path) -> Splats:
    """The inverse of `write_ply`; reads the splat files of other programs too, whatever the order of their properties."""
    column = read_vertices(path)
    count = len(column["x"])

    def take(*keys):
        if missing := [key for key in keys if key not in column]:
            raise ValueError(f"{path} has no property {missing[0]}: it is no file of Gaussian splats")
        return np.stack([column[key].astype(np.float32) for key in keys], 1)

    rest = sorted((key for key in column if key.startswith("f_rest_")), key=lambda key: int(key.rsplit("_", 1)[1]))
    dc = take(*(f"f_dc_{i}" for i in range(3)))[:, None]
    higher = take(*rest).reshape(count, 3, len(rest) // 3).transpose(0, 2, 1) if rest else np.zeros((count, 0, 3), np.float32)
    return {
        "means": take(*"xyz") @ FLIP,
        "quats": _turn(np.array([HALF, -HALF, 0, 0]), take(*(f"rot_{i}" for i in range(4)))),
        "log_scales": take(*(f"scale_{i}" for i in range(3))),
        "opacity_logits": take("opacity")[:, 0],
        "sh": np.concatenate([dc, higher], 1),
    }


def read_points(path: str | Path) -> Splats:
    """What a scene can start from: splats as `read_ply` has them, or a point cloud as means [n 3] and rgb [n 3] in [0, 1].

    A point cloud is taken as z-up, as Shap-E and scanners write it, and grey where it has no colour.
    """
    column = read_vertices(path)
    if "f_dc_0" in column:
        return read_ply(path)
    rgb = np.full((len(column["x"]), 3), 0.5, np.float32)
    for names in (("red", "green", "blue"), ("r", "g", "b")):
        if set(names) <= set(column):
            most = 255 if column[names[0]].dtype == np.uint8 else 1  # bytes, or floats in [0, 1]
            rgb = np.stack([column[name].astype(np.float32) / most for name in names], 1)
    means = np.stack([column[name].astype(np.float32) for name in "xyz"], 1)
    finite = np.isfinite(means).all(1) & np.isfinite(rgb).all(1)
    if not finite.any():
        raise ValueError(f"{path} holds no finite point")
    return {"means": means[finite], "rgb": np.clip(rgb[finite], 0, 1)}


def read_vertices(path: str | Path) -> dict[str, np.ndarray]:
    """The vertex properties of a PLY file by name, each [n]; binary little endian or text. Vertices come first in it."""
    data = Path(path).read_bytes()
    head, end, body = data.partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    layout = next((line[1] for line in lines if line[:1] == ["format"] and len(line) > 1), "")
    if not end or lines[0] != ["ply"] or layout not in ("binary_little_endian", "ascii"):
        raise ValueError(f"{path} is not a PLY file in binary little endian or ASCII")
    elements = [i for i, line in enumerate(lines) if line[:1] == ["element"]]
    vertex = lines[elements[0]] if elements else []
    if len(vertex) != 3 or vertex[1] != "vertex" or not vertex[2].isdecimal():
        raise ValueError(f"{path} does not begin with an element vertex")
    last = elements[1] if len(elements) > 1 else len(lines)
    properties = [line[1:] for line in lines[elements[0] : last] if line[:1] == ["property"]]
    if any(len(prop) != 2 or prop[0] not in TYPES for prop in properties) or not {"x", "y", "z"} <= {p[-1] for p in properties}:
        raise ValueError(f"{path}: a vertex needs properties x, y and z, and each a number")
    names, count = [name for _, name in properties], int(vertex[2])
    row = np.dtype([(name, TYPES[kind]) for kind, name in properties])
    if layout == "ascii":
        words = body.split()[: count * len(names)]
        if len(words) == count * len(names):
            try:
                table = np.asarray(words, float).reshape(count, len(names))
            except ValueError:
                raise ValueError(f"{path}: a vertex holds something that is no number") from None
            return {name: table[:, i].astype(row[i]) for i, name in enumerate(names)}
    elif len(body) >= count * row.itemsize:
        table = np.frombuffer(body, row, count)
        return {name: table[name] for name in names}
    raise ValueError(f"{path} is cut short: {count} rows of {len(names)} numbers were announced, {len(body)} bytes are there")


def _turn(by: Float[np.ndarray, "4"], quats: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """Hamilton products by * quats, wxyz: the same orientations in a turned frame."""
    aw, ax, ay, az = by
    w, x, y, z = quats.T
    product = [aw * w - ax * x - ay * y - az * z, aw * x + ax * w + ay * z - az * y]
    product += [aw * y - ax * z + ay * w + az * x, aw * z + ax * y - ay * x + az * w]
    return np.stack(product, 1).astype(np.float32)
