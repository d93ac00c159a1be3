"""Triangle meshes: from a grid of densities, simplified, unwrapped, baked, and written for other programs (extra `mesh`).

A mesh is in our world, z up. GLB and OBJ are written y up with the object's front towards +z, as glTF has it; PLY as it is, and
OBJ too where `up` asks for it.
"""

import json
import struct
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage, sparse

from lods_jax.core.errors import UserError
from lods_jax.core.files import replacing
from lods_jax.core.images import png_bytes, to_uint8

Y_UP = [1, 2, 0]  # (x, y, z) -> (y, z, x): up and front of our world become those of glTF


class Mesh(NamedTuple):
    """Triangles, counter-clockwise seen from outside, with either `colors` or `uv` and `texture`.

    Attributes:
        vertices: [v 3] world units.
        faces: indices of vertices [f 3].
        colors: RGB of the vertices [v 3] in [0, 1].
        uv: texture coordinates of the vertices [v 2]; (0, 0) is the upper left corner.
        texture: RGB bytes [s s 3].
    """

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    colors: Float[np.ndarray, "v 3"] | None = None
    uv: Float[np.ndarray, "v 2"] | None = None
    texture: UInt8[np.ndarray, "s s 3"] | None = None


def extra(name: str) -> ModuleType:
    """Imports a module that comes with the extra `mesh`.

    Args:
        name: of the module.

    Returns:
        The module.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"meshes need {name}: pip install 'lods_jax[mesh]'") from error


# --- geometry ---------------------------------------------------------------------------------------------------------------
def marching_cubes(values: Float[np.ndarray, "g g g"], bound: float, level: float) -> Mesh:
    """The closed surface at a level of a grid of densities; denser is inside.

    Args:
        values: [g g g] on [-bound, bound]^3, by x, y and z.
        bound: half the edge of the cube, world units.
        level: density of the surface.

    Returns:
        A mesh without colours.

    Raises:
        ValueError: no density exceeds the level.
        UserError: scikit-image is not installed.
    """
    low, high = values.min(), values.max()
    if not high > level:
        raise ValueError(f"there is no surface at the level {level:.3g}: densities reach from {low:.3g} to {high:.3g}")
    cell = 2 * bound / (len(values) - 1)
    padded = np.pad(values, 1, constant_values=min(0.0, level - 1))
    vertices, faces, _, _ = extra("skimage.measure").marching_cubes(padded, level, gradient_direction="ascent")
    return Mesh(((vertices - 1) * cell - bound).astype(np.float32), faces.astype(np.int32))


def volume(mesh: Mesh) -> float:
    """Enclosed volume of a mesh in cubic world units; positive where faces look outwards."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces].astype(np.float64), 1, 0)
    return float(np.sum(a * np.cross(b, c)) / 6)


def without_crumbs(mesh: Mesh, share: float = 0.02) -> Mesh:
    """Removes the connected parts that have fewer than a share of the largest one's faces.

    Args:
        mesh: without colours.
        share: of the largest part.

    Returns:
        The other parts.
    """
    n = len(mesh.vertices)
    ends = mesh.faces[:, [0, 1]].T, mesh.faces[:, [1, 2]].T
    edges = np.concatenate(ends, 1)
    _, part = sparse.csgraph.connected_components(sparse.coo_array((np.ones(edges.shape[1]), edges), (n, n)), directed=False)
    sizes = np.bincount(part[mesh.faces[:, 0]], minlength=part.max() + 1)
    faces = mesh.faces[(sizes >= share * sizes.max())[part[mesh.faces[:, 0]]]]
    used, faces = np.unique(faces, return_inverse=True)
    return Mesh(mesh.vertices[used], faces.reshape(-1, 3).astype(np.int32))


def simplify(mesh: Mesh, faces: int) -> Mesh:
    """Reduces the number of faces by quadric error (Garland and Heckbert 1997).

    Args:
        mesh: without colours.
        faces: the most that may remain.

    Returns:
        The simpler mesh.
    """
    if len(mesh.faces) <= faces:
        return mesh
    vertices, fewer = extra("fast_simplification").simplify(mesh.vertices, mesh.faces, target_count=faces)
    return Mesh(vertices.astype(np.float32), fewer.astype(np.int32))


def vertex_normals(mesh: Mesh) -> Float[np.ndarray, "v 3"]:
    """Unit normals of the vertices, the means over adjacent faces weighted by area.

    Vertices at one place, as along a seam of the texture, have the same normal.

    Args:
        mesh: the triangles.

    Returns:
        [v 3].
    """
    places, at = np.unique(mesh.vertices, axis=0, return_inverse=True)
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    total = np.zeros_like(places)
    np.add.at(total, at.reshape(-1)[mesh.faces], np.cross(b - a, c - a)[:, None])
    return (total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12))[at.reshape(-1)].astype(np.float32)


# --- pixels -----------------------------------------------------------------------------------------------------------------
def cover(
    corners: Float[np.ndarray, "f 3 2"], height: int, width: int
) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"], Float[np.ndarray, "k 3"]]:
    """Pairs of a triangle and a pixel whose centre lies in it.

    Args:
        corners: of the triangles, (x, y) in pixels [f 3 2]; the centre of pixel (i, j) is at (j + 0.5, i + 0.5).
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        For k pairs: the pixel i width + j, the triangle, and barycentric coordinates [k 3].
    """
    size = np.array([width, height])
    first = np.clip(np.ceil(corners.min(1) - 0.5), 0, size).astype(np.int64)
    count = np.clip(np.floor(corners.max(1) - 0.5) + 1, 0, size).astype(np.int64) - first
    boxes = np.maximum(count, 0).prod(1)
    face = np.repeat(np.arange(len(corners)), boxes)
    rank = np.arange(boxes.sum()) - np.repeat(np.cumsum(boxes) - boxes, boxes)
    x = first[face, 0] + rank % np.maximum(count[face, 0], 1)
    y = first[face, 1] + rank // np.maximum(count[face, 0], 1)
    a, b, c = np.moveaxis(corners.astype(np.float64), 1, 0)
    cross = lambda u, v: u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]  # noqa: E731
    area = cross(b - a, c - a)
    p = np.stack([x, y], 1) + 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.stack([cross((c - b)[face], p - b[face]), cross((a - c)[face], p - c[face])], 1) / area[face, None]
        weights = np.concatenate([weights, 1 - weights.sum(1, keepdims=True)], 1)  # not finite in a face without area
    inside = (weights >= -1e-9).all(1)
    return (y * width + x)[inside], face[inside], weights[inside]


def silhouette(pixels: Float[np.ndarray, "v 2"], faces: Int[np.ndarray, "f 3"], size: int) -> Bool[np.ndarray, "size size"]:
    """The pixels that a projected mesh covers.

    Args:
        pixels: projected vertices (x, y) [v 2].
        faces: [f 3].
        size: edge of the image, pixels.

    Returns:
        A mask [size size].
    """
    mask = np.zeros(size * size, bool)
    mask[cover(pixels[faces], size, size)[0]] = True
    return mask.reshape(size, size)


def iou(a: Bool[np.ndarray, "*n"], b: Bool[np.ndarray, "*n"]) -> float:
    """Intersection over union of two masks a and b; 1 if both are empty.

    Examples:
        >>> iou(np.array([True, True]), np.array([True, False]))
        0.5
    """
    return float((a & b).sum() / max((a | b).sum(), 1)) if (a | b).any() else 1.0


def bake(mesh: Mesh, color: Callable[[Float[np.ndarray, "n 3"]], Float[np.ndarray, "n 3"]], size: int) -> Mesh:
    """Gives a mesh a texture: unwrapped by xatlas, each texel the colour at its place in the world.

    Texels outside all triangles repeat the nearest one inside, so that no seam shows at any zoom.

    Args:
        mesh: the triangles.
        color: world points [n 3] -> RGB [n 3] in [0, 1].
        size: edge of the texture, pixels.

    Returns:
        The mesh with texture.

    Raises:
        UserError: xatlas is not installed.
    """
    atlas = extra("xatlas").Atlas()
    atlas.add_mesh(mesh.vertices, mesh.faces)
    options = extra("xatlas").PackOptions()
    options.resolution, options.padding, options.bilinear = size, 2, True
    atlas.generate(pack_options=options)
    origin, faces, uv = atlas[0]
    vertices = mesh.vertices[origin]
    texels, face, weights = cover(uv[faces] * size, size, size)
    texels, once = np.unique(texels, return_index=True)
    places = np.einsum("kc,kcd->kd", weights[once], vertices[faces[face[once]]]).astype(np.float32)
    texture, filled = np.zeros((size * size, 3), np.float32), np.zeros(size * size, bool)
    texture[texels], filled[texels] = color(places), True
    nearest = ndimage.distance_transform_edt(~filled.reshape(size, size), return_distances=False, return_indices=True)
    image = texture.reshape(size, size, 3)[tuple(nearest)]
    return Mesh(vertices, faces.astype(np.int32), uv=uv.astype(np.float32), texture=to_uint8(image))


# --- files ------------------------------------------------------------------------------------------------------------------
def write_glb(path: Path, mesh: Mesh) -> None:
    """Writes binary glTF 2.0: one mesh with normals and a rough, non-metallic material.

    Args:
        path: of the file.
        mesh: with texture, colours or neither.
    """
    chunks, views, accessors = [], [], []

    def view(data: bytes, **options) -> int:
        views.append({"buffer": 0, "byteOffset": sum(map(len, chunks)), "byteLength": len(data), **options})
        chunks.append(data + b"\0" * (-len(data) % 4))
        return len(views) - 1

    def accessor(x: np.ndarray, kind: str, component: int, target: int, **options) -> int:
        at = view(np.ascontiguousarray(x).tobytes(), target=target)
        accessors.append({"bufferView": at, "componentType": component, "count": len(x), "type": kind, **options})
        return len(accessors) - 1

    places = mesh.vertices[:, Y_UP].astype("<f4")
    limits = {"min": places.min(0).tolist(), "max": places.max(0).tolist()}
    attributes = {
        "POSITION": accessor(places, "VEC3", 5126, 34962, **limits),
        "NORMAL": accessor(vertex_normals(mesh)[:, Y_UP].astype("<f4"), "VEC3", 5126, 34962),
    }
    surface = {"metallicFactor": 0.0, "roughnessFactor": 0.9}
    images = {}
    if mesh.texture is not None:
        attributes["TEXCOORD_0"] = accessor(mesh.uv.astype("<f4"), "VEC2", 5126, 34962)
        surface["baseColorTexture"] = {"index": 0}
        images = {
            "images": [{"bufferView": view(png_bytes(mesh.texture)), "mimeType": "image/png"}],
            "textures": [{"source": 0, "sampler": 0}],
            "samplers": [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}],
        }
    elif mesh.colors is not None:
        attributes["COLOR_0"] = accessor(linear(mesh.colors).astype("<f4"), "VEC3", 5126, 34962)
    indices = accessor(mesh.faces.reshape(-1).astype("<u4"), "SCALAR", 5125, 34963)
    document = {
        "asset": {"version": "2.0", "generator": "lods_jax"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": surface, "doubleSided": True}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": sum(map(len, chunks))}],
        **images,
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text, body = text + b" " * (-len(text) % 4), b"".join(chunks)
    head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(body))
    with replacing(path) as file:
        file.write_bytes(head + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body)


def linear(srgb: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Linear light of sRGB colours [n 3] in [0, 1]: glTF stores the colours of vertices so, and textures as sRGB.

    Args:
        srgb: [n 3] in [0, 1].

    Returns:
        [n 3] in [0, 1].
    """
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def write_obj(path: Path, mesh: Mesh, up: Literal["y", "z"] = "y") -> None:
    """Writes a Wavefront OBJ, and beside it the material (.mtl) and the texture (.png).

    Args:
        path: of the OBJ file.
        mesh: with texture.
        up: "y" as in glTF, or "z" as in our world.
    """
    axes = Y_UP if up == "y" else [0, 1, 2]
    rows = [f"mtllib {path.stem}.mtl", "usemtl baked"]
    rows += [f"v {x:.6g} {y:.6g} {z:.6g}" for x, y, z in mesh.vertices[:, axes]]
    rows += [f"vt {u:.6g} {1 - v:.6g}" for u, v in mesh.uv]
    rows += [f"vn {x:.4g} {y:.4g} {z:.4g}" for x, y, z in vertex_normals(mesh)[:, axes]]
    rows += [f"f {a}/{a}/{a} {b}/{b}/{b} {c}/{c}/{c}" for a, b, c in mesh.faces + 1]
    with replacing(path.with_suffix(".png")) as file:
        file.write_bytes(png_bytes(mesh.texture))
    with replacing(path.with_suffix(".mtl")) as file:
        file.write_text(f"newmtl baked\nKd 1 1 1\nKs 0 0 0\nmap_Kd {path.stem}.png\n")
    with replacing(path) as file:
        file.write_text("\n".join(rows) + "\n")


def write_mesh_ply(path: Path, mesh: Mesh) -> None:
    """Writes a binary little-endian PLY, z up, with the colours of vertices as bytes.

    Args:
        path: of the file.
        mesh: with colours.
    """
    vertices = np.zeros(len(mesh.vertices), [("place", "<f4", 3), ("normal", "<f4", 3), ("rgb", "u1", 3)])
    vertices["place"], vertices["normal"], vertices["rgb"] = mesh.vertices, vertex_normals(mesh), to_uint8(mesh.colors)
    faces = np.zeros(len(mesh.faces), [("n", "u1"), ("corners", "<i4", 3)])
    faces["n"], faces["corners"] = 3, mesh.faces
    names = [*(f"float {x}" for x in ("x", "y", "z", "nx", "ny", "nz")), *(f"uchar {x}" for x in ("red", "green", "blue"))]
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}", *(f"property {x}" for x in names)]
    head += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    with replacing(path) as file:
        file.write_bytes("\n".join(head).encode() + b"\n" + vertices.tobytes() + faces.tobytes())
