"""The networks of a folder in diffusers layout: built by their configs, filled from its files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike

from lods_jax.priors import flax_networks, multi_view, torch_weights
from lods_jax.priors.adapter_files import LowRank, read_lora
from lods_jax.priors.diffusers_folder import ALL_PARTS, MVDREAM, TEXT_PARTS, read_config
from lods_jax.priors.user_adapters import ScaledFile, merge

Networks = Mapping[str, tuple[nn.Module, DTypeLike]]  # {part: the network, the dtype of its parameters}


def network(folder: Path, part: str, make: Callable[..., nn.Module], *args) -> nn.Module:
    """Builds the network of one part by its config.

    Args:
        folder: in diffusers layout.
        part: a key of `ALL_PARTS`.
        make: (config, *args) -> network.
        *args: passed on.

    Returns:
        The network.

    Raises:
        FileNotFoundError: the config is missing.
        ValueError: a setting is malformed; the message names the file.
    """
    file = folder / ALL_PARTS[part][0] / "config.json"
    config = read_config(file)
    try:
        return make(config, *args)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def shapes_of(folder: Path, part: str, module: nn.Module) -> Any:
    """The shapes of the parameters of one part.

    Args:
        folder: in diffusers layout.
        part: named in the error.
        module: its network.

    Returns:
        A tree of ShapeDtypeStructs.

    Raises:
        ValueError: settings contradict each other; the message names the file.
    """
    try:
        return flax_networks.shapes(module)
    except Exception as error:  # Flax has no check of its own: IndexError, ZeroDivisionError, ScopeParamShapeError, ...
        file = folder / ALL_PARTS[part][0] / "config.json"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{file} describes no network that can be built: {reason}") from error


def load(
    folder: Path,
    part: str,
    shapes: Any,
    dtype: DTypeLike,
    variant: str | None = None,
    adapters: Sequence[tuple[Mapping[str, LowRank], float]] = (),
) -> Any:
    """Reads the parameters of one part.

    Args:
        folder: in diffusers layout.
        part: a key of `ALL_PARTS`.
        shapes: from `shapes_of`.
        dtype: of the parameters.
        variant: of the weight files.
        adapters: ({layer: its factors}, scale) pairs that are added to the weights, before these are rounded to dtype.

    Returns:
        A tree of arrays.

    Raises:
        ValueError: an array is missing, left over, of another shape, or too large for dtype.
    """
    state, where = torch_weights.read_state(folder, part, variant), folder / ALL_PARTS[part][0]
    if part == "unet" and (config := read_config(where / "config.json")).get("_class_name") == MVDREAM:
        state = multi_view.diffusers_state(state, config["num_res_blocks"])
    try:
        params = torch_weights.to_flax(state, shapes)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    for adapter, scale in adapters:
        params = merge(params, adapter, scale)
    most = float(jnp.finfo(dtype).max)
    for path, array in flatten_dict(params).items():
        if (found := float(np.abs(array).max(initial=0))) > most:
            name, to = torch_weights.torch_name(path), jnp.dtype(dtype).name
            raise ValueError(f"{where}: {name} has values up to {found:.3g}, too large for {to}")
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def load_all(folder: Path, networks: Networks, variant: str | None = None, loras: Sequence[ScaledFile] = ()) -> dict[str, Any]:
    """Reads the parameters of several parts.

    Args:
        folder: in diffusers layout.
        networks: the parts.
        variant: of the weight files.
        loras: (file, scale) of adapters that are merged into U-Net and text encoders.

    Returns:
        {part: a tree of arrays}.

    Raises:
        ValueError: as `shapes_of`, `load` and `adapter_files.read_lora` do.
    """
    # Every network is built before any file is read, which takes longer.
    shapes = {part: shapes_of(folder, part, module) for part, (module, _) in networks.items()}
    adapted = {part: own for part, own in shapes.items() if part in ("unet", *TEXT_PARTS)}
    found = [(read_lora(file, adapted), scale) for file, scale in loras]
    merged = lambda part: [(adapter.get(part, {}), scale) for adapter, scale in found]  # noqa: E731
    return {part: load(folder, part, shapes[part], dtype, variant, merged(part)) for part, (_, dtype) in networks.items()}


def init_all(networks: Networks, key: Any) -> dict[str, Any]:
    """Random parameters of several parts, for sizes and costs.

    Args:
        networks: the parts.
        key: a random key.

    Returns:
        {part: a tree of arrays}.
    """
    cast = lambda tree, dtype: jax.tree.map(lambda x: x.astype(dtype), tree)  # noqa: E731
    return {part: cast(flax_networks.init(module, key), dtype) for part, (module, dtype) in networks.items()}
