"""The tabletop world in the registry of priors (`priors.registry`). Loads no jax before a prior is made."""

from functools import partial
from pathlib import Path
from typing import Any

from lods_jax.core.paths import TABLETOP, TABLETOP_64, TABLETOP_VIEWS
from lods_jax.priors.diffusers_folder import views_of_folder
from lods_jax.priors.registry import RegisteredPrior, World

PARTS = 12  # of 672 renders: 8,064 images, about 16 of each seen caption


def tabletop_128() -> RegisteredPrior:
    """The shipped diffusion prior: 128 px, f = 8."""
    return diffusion(TABLETOP, "the shipped prior of the tabletop world, 128 px")


def tabletop_views() -> RegisteredPrior:
    """The shipped prior of four views together."""
    return diffusion(TABLETOP_VIEWS, "the same for four views of an object together")


def tabletop_64() -> RegisteredPrior:
    """The former shipped diffusion prior: 64 px, f = 4."""
    return diffusion(TABLETOP_64, "the one before it, 64 px")


def diffusion(folder: Path, about: str) -> RegisteredPrior:
    """A diffusion prior of the tabletop world.

    Args:
        folder: in diffusers layout.
        about: one line on it.

    Returns:
        The entry of the registry.
    """

    def make(**options) -> Any:
        from lods_jax.priors.stable_diffusion import stable_diffusion

        return stable_diffusion(folder, strict=False, **options)

    return RegisteredPrior(make, about, folder, folder, world, views_of_folder(folder))


def exact() -> RegisteredPrior:
    """The posterior mean over renders, a closed form."""
    return closed_form("posterior_mean", 64, "posterior mean over renders of the tabletop world")


def exact_flow() -> RegisteredPrior:
    """The same posterior mean, under the process of flow matching."""
    return closed_form("posterior_mean", 64, "the same under flow matching", flow=True)


def exact_gaussians() -> RegisteredPrior:
    """One Gaussian per caption over renders, a closed form."""
    return closed_form("caption_gaussians", 32, "one Gaussian per caption, over renders of the tabletop world")


def closed_form(factory: str, size: int, about: str, flow: bool = False) -> RegisteredPrior:
    """A prior of `priors.captioned_images` over renders.

    Args:
        factory: its name there.
        size: edge of the renders, pixels.
        about: one line on it.
        flow: whether noise is mixed by flow matching.

    Returns:
        The entry of the registry.
    """
    return RegisteredPrior(partial(over_renders, factory, size, flow), about, vocabulary=TABLETOP, world=world)


def over_renders(factory: str, size: int, flow: bool = False, **options) -> Any:
    """Makes a prior of `priors.captioned_images` over renders.

    Args:
        factory: its name there.
        size: edge of the renders, pixels.
        flow: whether noise is mixed by flow matching, in place of Stable Diffusion's schedule.
        **options: ignored, since it has no network.

    Returns:
        The prior.
    """
    del options
    from lods_jax.core.noise_schedule import STABLE_DIFFUSION, flow_matching
    from lods_jax.priors import captioned_images
    from lods_jax.tabletop.captioned import captioned_renders

    schedule = flow_matching() if flow else STABLE_DIFFUSION
    return getattr(captioned_images, factory)(*captioned_renders(PARTS, size), noise_schedule=schedule)


def world() -> World:
    """The tabletop world, imported when it is first used."""
    from lods_jax.tabletop.world import WORLD

    return WORLD
