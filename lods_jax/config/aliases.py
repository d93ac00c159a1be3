"""Names that have changed: files of older runs are read under their current names, and one line says which were renamed."""

from collections.abc import Mapping
from typing import Any

from lods_jax.core.errors import UserError, remark

# Old key -> new key, below parents that have their new name already.
KEYS = {
    "switch": "milestone",
    "penalty": "regularizers",
    "picture": "image",
    "pose": "zero123",
    "objective.s": "objective.guidance_scale",
    "zero123.s": "zero123.guidance_scale",
    "gaussians.count": "gaussians.init_count",
    "gaussians.init": "gaussians.init_type",
    "gaussians.radius": "gaussians.init_extent",
    "gaussians.size": "gaussians.init_scale",
    "gaussians.opacity": "gaussians.init_opacity",
    "gaussians.degree": "gaussians.sh_degree",
    "gaussians.refine.threshold": "gaussians.refine.grow_grad2d",
    "gaussians.refine.split_size": "gaussians.refine.grow_scale3d",
    "gaussians.refine.prune_size": "gaussians.refine.prune_scale3d",
    "nerf.refresh_every": "nerf.update_grid_every",
}
# A run names its shipped prior in full, so that it keeps it when `tabletop` comes to mean another.
PRIORS = {"tabletop": "tabletop-128"}
PRIORS_BEFORE = {"tabletop": "tabletop-64"}  # what the name meant in files that have keys from before
METRICS = {
    "force": "score_rms",
    "force_pose": "score_rms_zero123",
    "picture_rgb": "image_rgb",
    "picture_mask": "image_mask",
    "picture_depth": "image_depth",
    "picture_normal": "image_normal",
}


def current_key(name: str) -> str:
    """The current name of a dotted key.

    Args:
        name: old or new.

    Returns:
        The new name.

    Examples:
        >>> current_key("pose.s")
        'zero123.guidance_scale'
    """
    found = ""
    for part in name.split("."):
        found = f"{found}.{part}" if found else part
        found = KEYS.get(found, found)
    return found


def current_keys(data: Mapping[Any, Any], source: str) -> dict[Any, Any]:
    """Nested keys and values under their current names. A line on stderr says which were renamed.

    Args:
        data: nested keys and values.
        source: names the file in messages.

    Returns:
        The same values under the current keys.

    Raises:
        UserError: a key is there under its old and its new name.
    """
    changed: dict[str, str] = {}

    def below(data: Mapping[Any, Any], old_prefix: str, prefix: str) -> dict[Any, Any]:
        out = {}
        for key, value in data.items():
            old, new = f"{old_prefix}{key}", KEYS.get(f"{prefix}{key}", f"{prefix}{key}")
            name = new.removeprefix(prefix) if isinstance(key, str) else key
            if name != key:
                changed[old] = new
            if name in out:
                raise UserError(f"{source}: {new} is given twice, also under its old name: leave one of them out")
            out[name] = below(value, f"{old}.", f"{new}.") if isinstance(value, dict) else value
        return out

    current = below(data, "", "")
    if changed:
        remark(f"{source}: read under new names: {', '.join(f'{old} is {new}' for old, new in changed.items())}")
        current = with_prior_of_then(current)
    return current


def with_prior_of_then(data: Mapping[Any, Any]) -> dict[Any, Any]:
    """Settings from before, with the prior that they meant.

    Args:
        data: nested keys and values under current keys; `prior` may be a name alone.

    Returns:
        The same, `tabletop` replaced by `tabletop-64`.
    """
    prior = data.get("prior")
    if isinstance(prior, str):
        return {**data, "prior": PRIORS_BEFORE.get(prior, prior)}
    if isinstance(prior, dict) and isinstance(prior.get("name"), str):
        return {**data, "prior": {**prior, "name": PRIORS_BEFORE.get(prior["name"], prior["name"])}}
    return dict(data)


def current_metrics(rows: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    """Rows of metrics under their current names. A line on stderr says which were renamed.

    Args:
        rows: of a log.
        source: names the file in messages.

    Returns:
        The rows under the current names.
    """
    if changed := sorted({name for row in rows for name in row} & METRICS.keys()):
        remark(f"{source}: read under new names: {', '.join(f'{old} is {METRICS[old]}' for old in changed)}")
    return [{METRICS.get(name, name): value for name, value in row.items()} for row in rows]
