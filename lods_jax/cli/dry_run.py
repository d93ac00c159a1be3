"""What a step would take, for `--dry-run`: on the devices here, on a GPU that is described, on a TPU slice that is not there.

It loads jax once its arguments are checked.
"""

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lods_jax.cli.checks import prior_folder
from lods_jax.config import Config
from lods_jax.core.errors import UserError
from lods_jax.priors.registry import registered

if TYPE_CHECKING:
    from lods_jax.training.build import Components

UNITS = {"MiB": 2**20, "GiB": 2**30, "MB": 10**6, "GB": 10**9}
FRACTIONS = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"  # of a GPU's memory that JAX takes
FRACTION = 0.75  # without them
IN_PLACE_OF_GPU = {
    "tpu": "compiled for a TPU chip in place of the GPU; its temporaries are taken {margin:g} times",
    "cpu": "compiled for a CPU, which takes several times as much; pip install 'lods_jax[tpu]' gives a better answer",
}


def check_dry_run(asked: bool, topology: str | None, memory: str | None) -> None:
    """Checks that flags of a dry run come with `--dry-run`.

    Args:
        asked: whether there is `--dry-run`.
        topology: `--topology`.
        memory: `--device-memory`.

    Raises:
        UserError: they do not, or contradict each other.
    """
    if topology and not asked:
        raise UserError("--topology needs --dry-run: nothing can run on a slice that is not there")
    if memory and not asked:
        raise UserError("--device-memory needs --dry-run: a run has the memory that its device has")
    if memory and topology:
        raise UserError("--device-memory describes a GPU, and the chips of --topology have memory of their own: pass one of them")
    device_memory(memory)


def device_memory(text: str | None) -> int | None:
    """The memory of a GPU that a program may take.

    Args:
        text: `--device-memory`, the memory that the GPU has; None without it.

    Returns:
        Bytes: the share that JAX takes; None without a text.

    Raises:
        UserError: the text does not read like 24GiB, or the share that the environment names is none.

    Examples:
        >>> device_memory("24GiB") == 18 * 2**30
        True
    """
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?(MiB|GiB|MB|GB)", text)
    if not match or not float(match[1]):
        raise UserError(f"--device-memory must read like 24GiB, got {text}")
    return int(float(match[1]) * UNITS[match[2]] * gpu_share())


def gpu_share() -> float:
    """The share of a GPU's memory that JAX takes, as the environment sets it.

    Raises:
        UserError: the environment names no share.
    """
    name, value = next(((name, os.environ[name]) for name in FRACTIONS if os.environ.get(name)), ("", str(FRACTION)))
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UserError(f"{name} must be a share of the memory, such as 0.9, got {value}")
    return share


def dry_run(config: Config, topology: str | None, memory: int | None) -> None:
    """Prints what a step would take: with a folder, the tabletop prior, or the name of a published architecture.

    Args:
        config: of the run.
        topology: a TPU slice, or None for the devices here.
        memory: bytes that a program may take of a GPU that need not be here; None without one.

    Raises:
        UserError: a step does not fit.
    """
    from lods_jax.priors.architectures import CONFIGS

    sketched = config.prior.name in CONFIGS and not Path(config.prior.name).is_dir()
    if not sketched and not registered(config.prior.name):
        prior_folder(config.prior.name)
    from lods_jax.training.distributed import start_jax

    start_jax(None if config.parallel == "jit" or topology or memory else config.batch)
    from lods_jax.training import build, cost

    devices = cost.slice_of(topology) if topology else None
    tell_cost(config, build.build_abstract(config) if sketched else build.build(config), memory, devices)


def tell_cost(config: Config, components: "Components", memory: int | None = None, devices: list | None = None) -> None:
    """Prints what a step would take, and by which memory plan.

    Args:
        config: of the run.
        components: of the run.
        memory: bytes that a program may take of a GPU that need not be here; None without one.
        devices: of a slice that is not there; None for those here.

    Raises:
        UserError: a step does not fit.
    """
    import jax

    from lods_jax.training import cost, planning

    limit = memory or (math.inf if devices else planning.limit_here())
    described = memory is not None and jax.default_backend() != "gpu"
    devices = cost.chip_for_gpu() if described else devices
    margin = cost.GPU_MARGIN if described and devices else 1.0
    if described:
        print(f"{'approximate':<14}{IN_PLACE_OF_GPU['tpu' if devices else 'cpu'].format(margin=margin)}")
    if config.prior.memory == "auto" and limit and config.reduce != "ordered":
        planned = planning.find_plan(config, components, limit, devices, margin)
        found, said = cost.cost_of(components, planned.ahead), planned.said
    else:
        found = cost.estimate(config, components, devices, margin)
        said = planning.unplanned(config, components)
    found = found._replace(memory=memory or found.memory)
    if described:  # whose kernels are not those of the device that stands in for it
        found = found._replace(kind="described GPU", attention={})
    print(cost.describe(found))
    print(f"{'memory plan':<14}{said}")
    cost.check_fits(config, found, components.prior.views, described=memory is not None)
