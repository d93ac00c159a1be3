"""Edits of the object of a run: the configuration of the edit, from that of the run.

The object begins as it is. DDS compares every render with one of the object as it was, by the same camera and on the same
background; LODS first fits its unconditional branch to the object (`edit.fit_first`), as `lods edit-image` does to an image.
"""

from dataclasses import fields, replace
from pathlib import Path

from lods_jax.config import (
    Config,
    EditConfig,
    ImageConfig,
    ObjectiveConfig,
    RegularizersConfig,
    TimestepConfig,
    Zero123Config,
)
from lods_jax.config.milestones import Schedule, has_milestones

PSI_LR = {"lods-embedding": 1e-2}  # of an embedding, beside that of adapters
ADAPTER_LR = 3e-3
RATE = 0.1  # of a new object's learning rates, for all but colours: Adam's steps are as large where there is little to change


def edit_config(
    of: Config,
    run: Path,
    target: str,
    source: str,
    objective: ObjectiveConfig,
    steps: int,
    fit_first: int,
    seed: int,
    psi_lr: float | None = None,
) -> Config:
    """The configuration of an edit.

    Scene, prior, cameras, score path and output are those of the run. Nothing is grown or pruned, and there are no regularizers:
    they shape a new object, and nothing of DDS would hold them back.

    Args:
        of: configuration of the run.
        run: its folder.
        target: what the object is to be.
        source: what it is.
        objective: of the edit.
        steps: that move the object.
        fit_first: steps of the learned branch alone before them.
        seed: of the edit.
        psi_lr: learning rate of the learned branch; None for that of its kind.

    Returns:
        The configuration, not checked.
    """
    g, share = of.gaussians, of.score_path.decoder_share
    rates = {item.name: RATE * getattr(g.lr, item.name) for item in fields(g.lr) if item.name != "sh"}
    return replace(
        of,
        prompt=target,
        source_prompt=source,
        objective=objective,
        steps=steps + fit_first,
        seed=seed,
        resolution=of.resolution_after or of.resolution,
        resolution_after=None,
        edit=EditConfig(str(run.absolute()), fit_first),
        optimizer=replace(of.optimizer, psi_lr=PSI_LR.get(objective.name, ADAPTER_LR) if psi_lr is None else psi_lr),
        image=ImageConfig(),
        zero123=Zero123Config(),
        regularizers=RegularizersConfig(),
        timesteps=TimestepConfig(),
        score_path=replace(of.score_path, decoder_share=(end_of(share), end_of(share))),
        gaussians=replace(g, lr=replace(g.lr, **rates), refine=replace(g.refine, every=0)),
    )


def end_of(schedule: Schedule) -> float:
    """The value that a schedule ends with.

    Examples:
        >>> end_of((0.5, 0.2)), end_of(((0.0, 0.5), (0.3, 0.1)))
        (0.2, 0.1)
    """
    return schedule[-1][1] if has_milestones(schedule) else schedule[-1]
