"""Fine-tunes the tabletop prior to flow matching (Lipman et al. 2023; Liu et al. 2023): a prior of another family, in miniature.

U-Net and text tower begin as those of the tabletop prior, which predict the velocity on diffusion's arc, and learn that of the
straight line, noise - z; the U-Net is told 1000 sigma. Data, autoencoder, timesteps and gates are those of the prior.
"""

from functools import partial
from pathlib import Path

from lods_jax.priors.scheduler_config import FLOW
from lods_jax.tabletop.architectures import architecture, networks, size_of
from lods_jax.tabletop.denoising import FLOW_MATCHING, unet_loss
from lods_jax.tabletop.fine_tuning import Task, recipe_of
from lods_jax.tabletop.prior_batches import unet_batches
from lods_jax.tabletop.train_prior import preview


def task_of(prior: Path, batch: int | None = None) -> Task:
    """What is trained.

    Args:
        prior: folder of the tabletop prior, for its size.
        batch: images per step; None for 64.

    Returns:
        The task.
    """
    arch = architecture(size_of(prior))
    nets = networks(arch.size)
    picture = lambda out, arch, fit, vae: preview(out, "flow", arch, fit, vae)  # noqa: E731
    loss = partial(unet_loss, nets, noise_schedule=FLOW_MATCHING)
    return Task("flow", arch, arch, nets, recipe_of(loss, batch), unet_batches, picture, prediction_type=FLOW)
