"""What a run is made with: files, by their hashes, and the learned branch or the object of another run that it starts from."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from lods_jax.core.errors import UserError
from lods_jax.core.files import replacing
from lods_jax.core.types import TrainState
from lods_jax.priors.torch_weights import read_arrays
from lods_jax.training import checkpoint

COPY = "init_psi.safetensors"  # in the folder of a run: the learned branch that it started from
SOURCE = "source"  # in the folder of an edit: the object that it started from, a folder like checkpoints/
PRIOR = "the U-Net of the prior"


def input_hashes(
    prior: str | None, zero123: str | None, judge: str | None, adapters: Iterable[Mapping[str, Any]]
) -> dict[str, str]:
    """The SHA-256 of each file that a run depends on beside its configuration.

    Args:
        prior: of the weights of its U-Net, or None.
        zero123: the same of a Zero-1-to-3 prior.
        judge: of the CLIP that judges in training, or None.
        adapters: from `user_adapters.adapter_notes`.

    Returns:
        {name of the file for the user: hexadecimal digits}.

    Examples:
        >>> input_hashes(None, None, None, [{"file": "toy.safetensors", "sha256": "ab"}])
        {'toy.safetensors': 'ab'}
    """
    networks = {PRIOR: prior, "the U-Net of the Zero-1-to-3 prior": zero123, "the CLIP of the reward": judge}
    return {name: sha for name, sha in networks.items() if sha} | {note["file"]: note["sha256"] for note in adapters}


def changed_inputs(before: Any, now: Mapping[str, str]) -> list[str]:
    """The files that are not what they were.

    Args:
        before: the hashes in a checkpoint, which checkpoints did not always hold.
        now: those of today.

    Returns:
        Their names.

    Examples:
        >>> changed_inputs({"a": "1", "b": "2"}, {"a": "1", "b": "3"})
        ['b']
    """
    return [name for name, sha in now.items() if isinstance(before, dict) and before.get(name, sha) != sha]


def initial_psi(run: str, folder: Path | None, fresh: Any, prior: str | None) -> Any:
    """The learned branch that a run starts from: that of another run, from the copy in its folder or from the other's checkpoint.

    Args:
        run: folder of the other run.
        folder: of the run that goes on; None for a new one.
        fresh: the learned branch without it, for names and shapes.
        prior: hash of the U-Net's weights, or None.

    Returns:
        A tree like `fresh`.

    Raises:
        UserError: the objective learns nothing, or there is no learned branch like its own under the same prior.
    """
    if not jax.tree.leaves(fresh):
        raise UserError("this objective learns nothing that --init-psi could give a start: leave it out, or pass --objective")
    if folder and (folder / COPY).is_file():
        return checkpoint.unflat(read_arrays(folder / COPY), fresh, folder / COPY)
    try:
        state, meta = checkpoint.restore(Path(run) / "checkpoints", {"psi": fresh})
    except ValueError as error:
        same = "it must be of the same prior, objective and --prior.rank"
        raise UserError(f"--init-psi {run} has no learned branch for this run, {same}: {error}") from None
    inputs = meta.get("inputs") if isinstance(meta, dict) else None
    if changed_inputs(inputs, {PRIOR: prior} if prior else {}):
        raise UserError(f"--init-psi {run} learned beside another prior: pass the --prior of its config.yaml")
    return state["psi"]


def keep_psi(folder: Path, psi: Any) -> None:
    """Writes a copy of the learned branch that a run starts from into its folder, to resume from.

    Args:
        folder: of the run.
        psi: the learned branch.
    """
    with replacing(folder / COPY) as partial:
        save_file({name: np.ascontiguousarray(x) for name, x in checkpoint.flat(psi).items()}, partial)


def source_object(run: str, folder: Path | None, like: tuple[Any, Any]) -> tuple[Any, Any]:
    """The object that an edit starts from: that of another run, from the copy in its folder or from the other's checkpoint.

    Args:
        run: folder of the other run.
        folder: of the edit; None for a new one.
        like: theta and aux of its scene, for names and shapes.

    Returns:
        theta and aux.

    Raises:
        UserError: there is no object of this kind and size.
    """
    kept = folder / SOURCE if folder and (folder / SOURCE).is_dir() else Path(run) / "checkpoints"
    try:
        found, _ = checkpoint.restore(kept, {"theta": like[0], "aux": like[1]})
    except ValueError as error:
        raise UserError(f"{run or kept} holds no object that this run could edit: {error}") from None
    return found["theta"], found["aux"]


def keep_object(folder: Path, source: tuple[Any, Any]) -> None:
    """Writes a copy of the object that an edit starts from into its folder, to resume from and to compare with.

    Args:
        folder: of the edit.
        source: theta and aux.
    """
    theta, aux = source
    checkpoint.save(folder / SOURCE, TrainState(0, theta, aux, {}, {}, {}, 0), {}, keep=1)
