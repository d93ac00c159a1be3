"""Gaussian splats as PLY files, in the layout that viewers read (Kerbl et al. 2023).

Binary little endian, all float32: x y z nx ny nz f_dc_* f_rest_* opacity scale_* rot_*. Opacity is a logit, scales are
logarithms, rot is wxyz, f_rest is channel-major. Viewers take y as down: our z-up world is written as (x, -z, y), so that it
loads upright.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from lods_jax.io.files import replacing

# (x, -z, y): a rotation by 90 degrees about x.
FLIP = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32)
HALF = np.sqrt(0.5).astype(np.float32)
Splats = dict[str, Float[np.ndarray, "..."]]


def write_ply(path: str | Path, splats: Splats) -> int:
    """Writes means, quats, log_scales, opacity_logits and sh of n Gaussians; returns how many rows were dropped as not finite.

    Only degree 0 turns with the world exactly here: higher coefficients are written as they are, in the scene's own frame.
    """
    n = len(splats["means"])
    means, quats = splats["means"] @ FLIP.T, _turn(np.array([HALF, HALF, 0, 0]), splats["quats"])
    rest = splats["sh"][:, 1:].transpose(0, 2, 1).reshape(n, -1)
    opacity = splats["opacity_logits"][:, None]
    table = np.concatenate([means, np.zeros((n, 3)), splats["sh"][:, 0], rest, opacity, splats["log_scales"], quats], 1)
    rows = np.ascontiguousarray(table[np.isfinite(table).all(1)], "<f4")
    names = [*"xyz", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), *(f"f_rest_{i}" for i in range(rest.shape[1]))]
    names += ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}", *(f"property float {x}" for x in names)]
    with replacing(path) as partial:
        partial.write_bytes("\n".join([*header, "end_header\n"]).encode() + rows.tobytes())
    return n - len(rows)


def read_ply(path: str | Path) -> Splats:
    """The inverse of `write_ply`; reads the splat files of other programs too, whatever the order of their properties."""
    data = Path(path).read_bytes()
    head, end, body = data.partition(b"end_header\n")
    lines = head.decode("ascii", "replace").split("\n")
    if not end or lines[0] != "ply" or "format binary_little_endian 1.0" not in lines:
        raise ValueError(f"{path} is not a binary little-endian PLY file")
    names = [line.split()[-1] for line in lines if line.startswith("property")]
    if any(not line.startswith("property float ") for line in lines if line.startswith("property")):
        raise ValueError(f"{path}: a splat file has float properties only")
    count = next((int(line.split()[-1]) for line in lines if line.startswith("element vertex ")), -1)
    if count < 0 or len(body) < 4 * count * len(names):
        raise ValueError(f"{path} is cut short: {count} rows of {len(names)} floats were announced, {len(body)} bytes are there")
    column = dict(zip(names, np.frombuffer(body, "<f4", count * len(names)).reshape(count, -1).T, strict=True))

    def take(*keys):
        if missing := [key for key in keys if key not in column]:
            raise ValueError(f"{path} has no property {missing[0]}: it is no file of Gaussian splats")
        return np.stack([column[key] for key in keys], 1)

    rest = sorted((key for key in names if key.startswith("f_rest_")), key=lambda key: int(key.rsplit("_", 1)[1]))
    dc = take(*(f"f_dc_{i}" for i in range(3)))[:, None]
    higher = take(*rest).reshape(count, 3, -1).transpose(0, 2, 1) if rest else np.zeros((count, 0, 3), np.float32)
    return {
        "means": take(*"xyz") @ FLIP,
        "quats": _turn(np.array([HALF, -HALF, 0, 0]), take(*(f"rot_{i}" for i in range(4)))),
        "log_scales": take(*(f"scale_{i}" for i in range(3))),
        "opacity_logits": take("opacity")[:, 0],
        "sh": np.concatenate([dc, higher], 1),
    }


def _turn(by: Float[np.ndarray, "4"], quats: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """Hamilton products by * quats, wxyz: the same orientations in a turned frame."""
    aw, ax, ay, az = by
    w, x, y, z = quats.T
    product = [aw * w - ax * x - ay * y - az * z, aw * x + ax * w + ay * z - az * y]
    product += [aw * y - ax * z + ay * w + az * x, aw * z + ax * y - ay * x + az * w]
    return np.stack(product, 1).astype(np.float32)
