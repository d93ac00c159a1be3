"""Checkpoints of a TrainState through orbax, with a hash per leaf.

One flipped bit in a chunk makes orbax restore wrong values without an error (seen with 0.12.8). So a save carries the SHA-256 of
every leaf, and a restore gives back what was saved or nothing: a damaged save is told of and the one before it is tried.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lods_jax.core.types import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax narrates every save


def save(folder: Path, state: TrainState, meta: dict[str, Any], keep: int = 2) -> None:
    """Writes folder/STEP/, as a whole or not at all, and removes all but the newest saves.

    Args:
        folder: of the checkpoints.
        state: of the training.
        meta: JSON value to keep beside it.
        keep: number of saves that stay.
    """
    import orbax.checkpoint as ocp

    step, leaves = int(state.step), flat(jax.device_get(state))
    hashes = {name: digest(x) for name, x in leaves.items()}
    note = {"meta": meta, "meta_sha256": digest(json.dumps(meta)), "sha256": hashes}
    # What is there from this step on is damaged or the same: a run continues from the newest whole save.
    for stale in (path for path in folder.glob("*") if path.name.isdecimal() and int(path.name) >= step):
        shutil.rmtree(stale)
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=False, multiprocessing_options=alone())
    with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
        manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(leaves), note=ocp.args.JsonSave(note)))
        manager.wait_until_finished()  # only here do errors of the disk appear


def restore(
    folder: Path, like: Any, tell: Callable[[str], None] = print, newest: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """The newest save whose hashes are right, and its meta.

    Args:
        folder: of the checkpoints.
        like: a state of the same configuration or its shapes, or a dict of parts of it, {"theta": ..., "aux": ...}.
        tell: gets a line for each damaged save.
        newest: the last step to look at; None for any.

    Returns:
        The state, or the parts, and the meta.

    Raises:
        ValueError: no save is undamaged, or it belongs to another configuration.
    """
    for step in reversed([step for step in steps(folder) if newest is None or step <= newest]):
        try:
            leaves, note = read(folder / str(step))
            broken = [name for name, hashed in note["sha256"].items() if digest(leaves[name]) != hashed]
            if broken or digest(json.dumps(note["meta"])) != note["meta_sha256"]:
                raise OSError(f"the hash of {[*broken, 'meta'][0]} does not hold")
        except Exception as error:  # orbax, tensorstore and json raise a dozen unrelated types for a damaged file
            tell(f"the checkpoint of step {step} is damaged ({' '.join(str(error).split())[:120]}); trying the one before")
            continue
        return unflat(leaves, like, folder / str(step)), note["meta"]
    raise ValueError(f"{folder} holds no whole checkpoint")


def steps(folder: Path) -> list[int]:
    """The steps of the saves in a folder, oldest first. An empty folder with a number as name is no save.

    Args:
        folder: of the checkpoints.

    Returns:
        Steps.
    """
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal() and path.is_dir() and any(path.iterdir()))


def read(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads one save without checking its hashes.

    Args:
        folder: of the save.

    Returns:
        {name: leaf}, and the note with meta and hashes.

    Raises:
        OSError: it holds what is no regular file. For damaged files orbax raises a dozen types.
    """
    import orbax.checkpoint as ocp

    if odd := [path for path in folder.rglob("*") if not (path.is_file() or path.is_dir())]:
        raise OSError(f"{odd[0].relative_to(folder)} is no regular file")  # a pipe would be waited for
    note = json.loads((folder / "note" / "metadata").read_text())
    options = {"multiprocessing_options": alone()}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options), **options) as reader:
        as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in note["sha256"]}
        return reader.restore((folder / "state").absolute(), restore_args=as_numpy), note


def alone() -> Any:
    """Options that tell orbax not to wait for other processes: the first process saves, and each restores, by itself."""
    import orbax.checkpoint as ocp

    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"lods{me}")


def flat(state: Any) -> dict[str, np.ndarray]:
    """The leaves of a state by name: "theta.means", "opt_theta.0.mu.means", ...

    Args:
        state: of the training, or a part of it.

    Returns:
        {name: NumPy array}.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x) for path, x in leaves}


def unflat(leaves: dict[str, np.ndarray], like: Any, source: Path) -> Any:
    """The inverse of `flat`.

    Args:
        leaves: {name: array}.
        like: tree with the structure, shapes and dtypes of the result.
        source: named in errors.

    Returns:
        The tree.

    Raises:
        ValueError: a leaf is missing, or has another shape or dtype.
    """
    expected, structure = jax.tree_util.tree_flatten_with_path(like)
    values = []
    for path, leaf in expected:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        found = leaves.get(name)
        if found is None or found.shape != leaf.shape or found.dtype != leaf.dtype:
            what = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise ValueError(
                f"{source} is of another configuration: {name} holds {what}, expected {leaf.dtype} {list(leaf.shape)}"
            )
        values.append(jax.numpy.asarray(found))
    return jax.tree.unflatten(structure, values)


def digest(x: np.ndarray | str) -> str:
    """SHA-256 of a text x, or of the dtype, shape and values of an array x, as hexadecimal digits."""
    data = x.encode() if isinstance(x, str) else f"{x.dtype} {x.shape}".encode() + np.ascontiguousarray(x).tobytes()
    return hashlib.sha256(data).hexdigest()
