"""The twelve objects of the tabletop world as signed distance functions, and a sphere tracer that renders them exactly.

Objects fit a ball of radius BOUND around the origin, +z up, +x front. A point `p` is a tuple of arrays (x, y, z) and a
distance an array of the same shape: component arrays trace three times faster on a CPU than a trailing axis of 3.
`v` holds four numbers in [0, 1] that vary the proportions. Distance formulas: Quilez, "Distance functions" (iquilezles.org).
Colour is surface albedo under a sun that is fixed in the world, so that all views of an object agree with each other.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lods_jax.core.cameras import rays
from lods_jax.core.types import Camera

BOUND = 0.8
COLORS = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.95, 0.50, 0.08),
    "yellow": (0.95, 0.85, 0.15),
    "green": (0.12, 0.62, 0.20),
    "blue": (0.12, 0.28, 0.85),
    "purple": (0.50, 0.15, 0.65),
    "pink": (0.96, 0.50, 0.70),
    "white": (0.93, 0.93, 0.93),
}
PATTERNS = ("plain", "striped", "checkered")
# Materials: PAINT takes the caption's colour and pattern, the others keep their own.
PAINT, WHITE, DARK, CARROT, LAMP, GREY, WOOD, GLASS, RED = range(9)
_ALBEDO = np.array(
    [
        (0, 0, 0),
        (0.93, 0.93, 0.93),
        (0.10, 0.10, 0.12),
        (0.95, 0.45, 0.05),
        (1.00, 0.90, 0.40),
        (0.55, 0.55, 0.58),
        (0.42, 0.25, 0.12),
        (0.60, 0.82, 0.95),
        (0.85, 0.10, 0.10),
    ],
    np.float32,
)
_SUN = np.array([0.45, 0.35, 0.82], np.float32) / np.linalg.norm([0.45, 0.35, 0.82]).astype(np.float32)
_AMBIENT = 0.55  # light that reaches a surface turned away from the sun


# --- primitives -------------------------------------------------------------------------------------------------------
def _length(*v):
    return jnp.sqrt(sum(x * x for x in v) + 1e-12)


def _swap(p, axis):
    """Turns the frame so that `axis` takes the place of z."""
    return p if axis == 2 else (p[1], p[2], p[0]) if axis == 0 else (p[2], p[0], p[1])


def _sphere(p, c, r):
    return _length(p[0] - c[0], p[1] - c[1], p[2] - c[2]) - r


def _box(p, c, half, r=0.02):
    """Box with edges rounded by r; `half` counts the rounding in."""
    q = [jnp.abs(p[i] - c[i]) - (half[i] - r) for i in range(3)]
    inside = jnp.minimum(jnp.maximum(q[0], jnp.maximum(q[1], q[2])), 0)
    return _length(*(jnp.maximum(x, 0) for x in q)) + inside - r


def _cylinder(p, c, r, h, axis=2, edge=0.015):
    """Cylinder of radius r and half-height h along `axis`."""
    x, y, z = _swap(p, axis)
    cx, cy, cz = _swap(c, axis)
    a, b = _length(x - cx, y - cy) - (r - edge), jnp.abs(z - cz) - (h - edge)
    return jnp.minimum(jnp.maximum(a, b), 0) + _length(jnp.maximum(a, 0), jnp.maximum(b, 0)) - edge


def _torus(p, c, ring, tube, axis=2):
    x, y, z = _swap(p, axis)
    cx, cy, cz = _swap(c, axis)
    return _length(_length(x - cx, y - cy) - ring, z - cz) - tube


def _cone(p, c, r0, r1, h, axis=2):
    """Capped cone of half-height h along `axis`, radius r0 at the low end and r1 at the high end."""
    x, y, z = _swap(p, axis)
    cx, cy, cz = _swap(c, axis)
    q0, q1 = _length(x - cx, y - cy), z - cz
    a0, a1 = q0 - jnp.minimum(q0, jnp.where(q1 < 0, r0, r1)), jnp.abs(q1) - h
    k0, k1 = r1 - r0, 2 * h
    t = jnp.clip(((r1 - q0) * k0 + (h - q1) * k1) / (k0**2 + k1**2), 0, 1)
    b0, b1 = q0 - r1 + k0 * t, q1 - h + k1 * t
    sign = jnp.where((b0 < 0) & (a1 < 0), -1.0, 1.0)
    return sign * jnp.sqrt(jnp.minimum(a0**2 + a1**2, b0**2 + b1**2) + 1e-12)


def _mix(v, low, high):
    return low + (high - low) * v


# --- objects: (point, variation) -> [(distance, material), ...] ---------------------------------------------------------
def _ball(p, v):
    return [(_sphere(p, (0, 0, 0), _mix(v[0], 0.5, 0.58)), PAINT)]


def _cube(p, v):
    a = _mix(v[0], 0.38, 0.44)
    return [(_box(p, (0, 0, 0), (a, a, a), 0.04), PAINT)]


def _donut(p, v):
    return [(_torus(p, (0, 0, 0), _mix(v[0], 0.38, 0.43), _mix(v[1], 0.17, 0.21)), PAINT)]


def _cone_object(p, v):
    return [(_cone(p, (0, 0, 0), _mix(v[0], 0.4, 0.48), 0.01, _mix(v[1], 0.46, 0.54)), PAINT)]


def _mug(p, v):
    r, h = _mix(v[0], 0.34, 0.39), _mix(v[1], 0.4, 0.46)
    # The handle is thick on purpose: at 64 pixels a thinner one falls between the latents' cells.
    wall = jnp.maximum(_cylinder(p, (0, -0.12, 0), r, h), -_cylinder(p, (0, -0.12, 0.1), r - 0.06, h))
    handle = jnp.maximum(_torus(p, (0, r - 0.09, 0), 0.23, 0.07, axis=0), -_cylinder(p, (0, -0.12, 0), r - 0.03, h + 1))
    return [(wall, PAINT), (handle, PAINT)]


def _house(p, v):
    x, y, z = p
    w = _mix(v[0], 0.36, 0.42)
    body = _box(p, (0, 0, -0.2), (w, w, 0.3), 0.01)
    gable = jnp.maximum(jnp.abs(y) * 0.62 + (z - 0.44) * 0.78, 0.08 - z)  # ridge along x
    roof = jnp.maximum(gable, jnp.abs(x) - (w + 0.06))
    door = _box(p, (w, 0, -0.29), (0.025, 0.11, 0.21), 0.005)
    window = _box((x, jnp.abs(y), z), (w, 0.25, -0.12), (0.025, 0.08, 0.08), 0.005)
    chimney = _box(p, (-0.14, 0.2, 0.34), (0.07, 0.07, 0.16), 0.005)
    return [(body, WHITE), (roof, PAINT), (door, WOOD), (window, GLASS), (chimney, GREY)]


def _snowman(p, v):
    r = _mix(v[0], 0.31, 0.35)
    y = jnp.abs(p[1])
    body = jnp.minimum(_sphere(p, (0, 0, -0.37), r), _sphere(p, (0, 0, 0.03), 0.25))
    head = _sphere(p, (0, 0, 0.33), 0.19)
    nose = _cone(p, (0.26, 0, 0.33), 0.06, 0.01, 0.11, axis=0)
    eyes = _sphere((p[0], y, p[2]), (0.155, 0.08, 0.4), 0.04)
    buttons = jnp.minimum(_sphere(p, (0.245, 0, 0.09), 0.04), _sphere(p, (0.25, 0, -0.04), 0.04))
    scarf = _torus(p, (0, 0, 0.2), 0.16, 0.07)
    hat = jnp.minimum(_cylinder(p, (0, 0, 0.48), 0.23, 0.025), _cylinder(p, (0, 0, 0.59), 0.15, 0.12))
    return [(body, WHITE), (head, WHITE), (nose, CARROT), (eyes, DARK), (buttons, DARK), (scarf, PAINT), (hat, PAINT)]


def _car(p, v):
    x, y, z = jnp.abs(p[0]), jnp.abs(p[1]), p[2]
    half, cabin = _mix(v[0], 0.56, 0.62), _mix(v[1], 0.26, 0.3)
    body = _box(p, (0, 0, -0.08), (half, 0.29, 0.15), 0.05)
    top = _box(p, (-0.08, 0, 0.15), (cabin, 0.25, 0.16), 0.06)
    sides = _box(p, (-0.08, 0, 0.16), (cabin - 0.05, 0.256, 0.08), 0.02)
    screens = _box(p, (-0.08, 0, 0.16), (cabin + 0.006, 0.19, 0.08), 0.02)
    wheel = _cylinder((x, y, z), (0.35, 0.27, -0.23), 0.15, 0.06, axis=1)
    hub = _cylinder((x, y, z), (0.35, 0.29, -0.23), 0.07, 0.05, axis=1)
    lamps = _sphere((p[0], y, z), (half - 0.01, 0.18, -0.04), 0.065)
    tail = _sphere((p[0], y, z), (-half + 0.01, 0.18, -0.04), 0.06)
    glass = jnp.minimum(sides, screens)
    return [(body, PAINT), (top, PAINT), (glass, GLASS), (wheel, DARK), (hub, GREY), (lamps, LAMP), (tail, RED)]


def _chair(p, v):
    w, back_half = _mix(v[0], 0.3, 0.35), _mix(v[1], 0.3, 0.36)
    seat = _box(p, (0, 0, -0.06), (w, w, 0.055), 0.02)
    legs = _box((jnp.abs(p[0]), jnp.abs(p[1]), p[2]), (w - 0.055, w - 0.055, -0.34), (0.045, 0.045, 0.27), 0.01)
    back = _box(p, (-w + 0.05, 0, -0.06 + back_half), (0.05, w, back_half), 0.02)
    return [(seat, PAINT), (back, PAINT), (legs, WOOD)]


def _mushroom(p, v):
    x, y, z = p
    r = _mix(v[0], 0.48, 0.55)
    cap = jnp.maximum(_length(x, y, (z - 0.02) * 1.15) - r, 0.02 - z) * 0.9  # not a distance: the scaling bounds its slope
    stem = _cone(p, (0, 0, -0.24), 0.24, 0.17, 0.3)
    # A door and a window, so that the mushroom too has a front.
    door = _cylinder(p, (0.19, 0, -0.36), 0.11, 0.06, axis=0)
    window = _cylinder(p, (r * 0.72, 0, 0.22), 0.11, 0.1, axis=0)
    return [(cap, PAINT), (stem, WHITE), (door, WOOD), (window, GLASS)]


def _rocket(p, v):
    x, y, z = p
    r = _mix(v[0], 0.2, 0.23)
    body, nose = _cylinder(p, (0, 0, -0.07), r, 0.38), _cone(p, (0, 0, 0.48), r, 0.01, 0.19)
    nozzle = _cone(p, (0, 0, -0.51), 0.16, 0.1, 0.07)
    fin = lambda a, b: jnp.maximum(  # noqa: E731
        jnp.maximum(jnp.abs(a) - 0.035, _length(b, z + 0.12) - 0.52), jnp.maximum(z + 0.12, -(z + 0.56))
    )
    fins = jnp.minimum(fin(y, x), fin(x, y)) * 0.9
    window, rim = _cylinder(p, (r - 0.01, 0, 0.12), 0.11, 0.05, axis=0), _cylinder(p, (r - 0.02, 0, 0.12), 0.15, 0.05, axis=0)
    return [(body, WHITE), (nose, PAINT), (nozzle, DARK), (fins, PAINT), (rim, GREY), (window, GLASS)]


def _robot(p, v):
    x, y, z = p[0], jnp.abs(p[1]), p[2]
    w = _mix(v[0], 0.24, 0.29)
    torso, head = _box(p, (0, 0, -0.07), (0.19, w, 0.26), 0.03), _box(p, (0, 0, 0.38), (0.18, 0.22, 0.18), 0.03)
    arm = _box((x, y, z), (0, w + 0.085, -0.07), (0.075, 0.07, 0.24), 0.03)
    leg = _box((x, y, z), (0, 0.14, -0.48), (0.1, 0.09, 0.17), 0.02)
    eye, mouth = _sphere((x, y, z), (0.18, 0.1, 0.42), 0.06), _box(p, (0.18, 0, 0.28), (0.02, 0.12, 0.03), 0.003)
    antenna, tip = _cylinder(p, (0, 0, 0.6), 0.025, 0.07), _sphere(p, (0, 0, 0.69), 0.055)
    panel = _box(p, (0.19, 0, -0.02), (0.02, 0.15, 0.11), 0.005)
    return [
        *[(torso, PAINT), (head, PAINT), (arm, GREY), (leg, GREY), (eye, LAMP)],
        *[(mouth, DARK), (antenna, GREY), (tip, RED), (panel, GREY)],
    ]


_OBJECTS = {
    **{"ball": _ball, "cube": _cube, "donut": _donut, "cone": _cone_object, "mug": _mug, "house": _house},
    **{"snowman": _snowman, "car": _car, "chair": _chair, "mushroom": _mushroom, "rocket": _rocket, "robot": _robot},
}
KINDS = tuple(_OBJECTS)
COMPOSITE = KINDS[4:]  # the kinds with a clear front: only their captions carry view words


# --- objects with something wrong, for the classifier ---------------------------------------------------------------------------
def _without(kind, *materials, last=None):
    """The object less its parts of some materials; `last`: how many parts stay instead."""
    if last is not None:
        return lambda p, v: _OBJECTS[kind](p, v)[:last]
    return lambda p, v: [part for part in _OBJECTS[kind](p, v) if part[1] not in materials]


def _mirrored(kind, side):
    """The object with one half of it twice: side 1 shows its front on both sides, -1 its back."""
    return lambda p, v: _OBJECTS[kind]((side * jnp.abs(p[0]), p[1], p[2]), v)


def _filled_donut(p, v):
    ring, tube = _mix(v[0], 0.38, 0.43), _mix(v[1], 0.17, 0.21)
    return [*_donut(p, v), (_cylinder(p, (0, 0, 0), ring, 0.9 * tube), PAINT)]


_DEFECTIVE = {
    "donut without its hole": ("donut", _filled_donut),
    "mug without its handle": ("mug", _without("mug", last=1)),
    "house without door and windows": ("house", _without("house", WOOD, GLASS)),
    "snowman with two faces": ("snowman", _mirrored("snowman", 1)),
    "car without wheels": ("car", _without("car", DARK, GREY)),
    "chair with two backs": ("chair", _mirrored("chair", -1)),
    "mushroom with two doors": ("mushroom", _mirrored("mushroom", 1)),
    "rocket without fins": ("rocket", lambda p, v: [part for i, part in enumerate(_rocket(p, v)) if i != 3]),
    "robot without a face": ("robot", _without("robot", LAMP, DARK)),
}
# A defect and the kind that it was to be; `render_objects` takes both names.
DEFECTS = {name: kind for name, (kind, _) in _DEFECTIVE.items()}
_OBJECTS |= {name: parts for name, (_, parts) in _DEFECTIVE.items()}


# --- geometry and rendering ---------------------------------------------------------------------------------------------
def _distances(kind, p, v, without=None):
    """Distances to the parts [k *b]; the part of the number `without` is far away from everything."""
    d = jnp.stack([d for d, _ in _OBJECTS[kind](p, v)])
    return d if without is None else jnp.where((jnp.arange(len(d)) == without).reshape(-1, *[1] * (d.ndim - 1)), 10.0, d)


def _distance(kind, p, v, without=None):
    return _distances(kind, p, v, without).min(0)


def signed_distance(kind: str, points: Float[Array, "*b 3"], variation: Float[Array, "4"]) -> Float[Array, "*b"]:
    """Signed distance to the surface of an object, negative inside; a lower bound of it near unions and cuts.

    Args:
        kind: of the object.
        points: [... 3] world units.
        variation: of the proportions [4], in [0, 1].

    Returns:
        [...] world units.

    Raises:
        ValueError: by a check of the kind, for an unknown one.
    """
    return _distance(_known(kind), tuple(jnp.moveaxis(points, -1, 0)), variation)


def part_count(kind: str) -> int:
    """The number of parts of an object of a kind; all legs of a chair count as one."""
    return len(_OBJECTS[_known(kind)]((0.0, 0.0, 0.0), np.full(4, 0.5)))


def _known(kind: str) -> str:
    if kind not in _OBJECTS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return kind


def _albedo(kind, p, v, color, pattern, without=None):
    """Surface colour [*b 3] at p: material of the nearest part, with the pattern on what is painted."""
    nearest = jnp.argmin(_distances(kind, p, v, without), 0)
    material = jnp.array([m for _, m in _OBJECTS[kind](p, v)])[nearest]
    stripes = jnp.floor(p[2] * 6.0 + 0.25) % 2
    # The offset keeps faces that lie on a cell boundary, like a cube's at 0.4, from flickering between cells.
    checks = sum(jnp.floor(x * 4.5 + 0.013) for x in p) % 2
    second = jnp.where(color == list(COLORS).index("white"), jnp.array([0.2, 0.2, 0.22]), jnp.array([0.96, 0.96, 0.96]))
    share = jnp.where(pattern == 1, stripes, jnp.where(pattern == 2, checks, 0.0))[..., None]
    first = jnp.array(list(COLORS.values()))[color]
    first, second = (jnp.broadcast_to(x, (*share.shape[:-1], 3)) for x in (first, second))
    paint = first * (1 - share) + second * share
    return jnp.where((material == PAINT)[..., None], paint, jnp.asarray(_ALBEDO)[material])


def trace(
    kind: str,
    origins: Float[Array, "h w 3"],
    directions: Float[Array, "h w 3"],
    variation: Float[Array, "4"],
    steps: int = 36,
    without: Int[Array, ""] | None = None,
) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
    """Sphere tracing (Hart 1996); 36 steps are exact to 0.01 at the silhouette.

    Args:
        kind: of the object.
        origins: of the rays [h w 3].
        directions: unit vectors [h w 3].
        variation: of the proportions [4], in [0, 1].
        steps: of each ray.
        without: number of a part that is left out; None for no part.

    Returns:
        Lengths of the rays [h w], and 1.0 where they hit [h w].
    """
    o, d = tuple(jnp.moveaxis(origins, -1, 0)), tuple(jnp.moveaxis(directions, -1, 0))
    at = lambda t: tuple(o[i] + t * d[i] for i in range(3))  # noqa: E731
    closest = -sum(o[i] * d[i] for i in range(3))
    start = jnp.maximum(closest - BOUND, 0.05)  # nothing lies outside the bounding ball
    t = jax.lax.fori_loop(0, steps, lambda _, t: t + 0.95 * _distance(kind, at(t), variation, without), start)
    hit = (_distance(kind, at(t), variation, without) < 0.012) & (t < closest + BOUND)
    return t, hit.astype(jnp.float32)


def _shade(kind, origins, directions, variation, color, pattern, without=None):
    """Colour and coverage [h w 4] of one view, one ray a pixel, without background."""
    t, hit = trace(kind, origins, directions, variation, without=without)
    p = tuple(jnp.moveaxis(origins + t[..., None] * directions, -1, 0))
    # Normal by the tetrahedron rule: four evaluations, in a loop so that the field is compiled once.
    corners = jnp.array([(1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)], jnp.float32)

    def add(i, normal):
        k = corners[i]
        d = _distance(kind, tuple(p[j] + 0.004 * k[j] for j in range(3)), variation, without)
        return normal + k.reshape(3, 1, 1) * d[None]

    normal = jax.lax.fori_loop(0, 4, add, jnp.zeros((3, *t.shape)))
    normal = normal / (jnp.sqrt(jnp.sum(normal**2, 0, keepdims=True)) + 1e-6)
    # Half-Lambert (Mitchell et al. 2006): soft, and nowhere black, so colours stay readable from the shaded side.
    lambert = (0.5 + 0.5 * jnp.einsum("chw,c->hw", normal, jnp.asarray(_SUN))) ** 2
    light = _AMBIENT + (1.1 - _AMBIENT) * lambert
    rgb = jnp.clip(_albedo(kind, p, variation, color, pattern, without) * light[..., None], 0, 1)
    return jnp.concatenate([rgb, jnp.ones_like(rgb[..., :1])], -1) * hit[..., None]


@partial(jax.jit, static_argnames=("kind", "size", "supersample", "chunk"))
def render_objects(
    kind: str,
    camera: Camera,
    variation: Float[Array, "b 4"],
    color: Int[Array, "b"],
    pattern: Int[Array, "b"],
    *,
    size: int,
    supersample: int = 2,
    chunk: int = 1,
    without: Int[Array, "b"] | None = None,
) -> Float[Array, "b size size 4"]:
    """Renders of one kind of object, one camera each.

    Args:
        kind: of the object.
        camera: b cameras.
        variation: of the proportions [b 4], in [0, 1].
        color: indices into COLORS [b].
        pattern: indices into PATTERNS [b].
        size: edge of the renders, pixels.
        supersample: rays per pixel side.
        chunk: views traced at once; 1 suits a CPU's cache, dozens a GPU.
        without: number of the part that each view leaves out [b], -1 for none; None where no view leaves one out.

    Returns:
        Premultiplied RGBA [b size size 4] in [0, 1].
    """
    _known(kind)

    def one(args):
        camera, variation, color, pattern, without = args
        origins, directions = rays(jax.tree.map(lambda x: x[None], camera), size * supersample, size * supersample)
        rgba = _shade(kind, origins[0], directions[0], variation, color, pattern, without)
        return rgba.reshape(size, supersample, size, supersample, 4).mean((1, 3))

    return jax.lax.map(one, (camera, variation, color, pattern, without), batch_size=chunk if chunk > 1 else None)
