"""Several processes that make one run (`--distributed`): each takes its share of the views, and the first alone writes.

They are started with one command line, see the same files and have devices of one kind. All hold the same state and decide alike;
what one of them alone can know (a signal, a folder that is taken) it tells the others.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from lods_jax.core.errors import UserError
from lods_jax.core.paths import cache_folder

PLACE = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
PATIENCE = 20  # seconds that a process which ends waits for the others


def join() -> None:
    """Finds the other processes of a run. Call it before a device is used.

    JAX knows its place under SLURM, Open MPI and on a TPU pod by itself; elsewhere the environment variables `PLACE` tell it.

    Raises:
        UserError: there is no cluster, or the processes do not find each other.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    given = {name: os.environ[name] for name in PLACE if os.environ.get(name)}
    try:
        if not given:
            jax.distributed.initialize(shutdown_timeout_seconds=PATIENCE)
        elif len(given) == len(PLACE) and 0 <= int(given[PLACE[2]]) < int(given[PLACE[1]]):
            address, count, index = given.values()
            jax.distributed.initialize(address, int(count), int(index), shutdown_timeout_seconds=PATIENCE)
        else:
            raise ValueError
    except RuntimeError as error:
        raise UserError(f"--distributed: the processes do not find each other: {' '.join(str(error).split())[:200]}") from None
    except ValueError:
        raise UserError(
            "--distributed finds no cluster: start it under SLURM, Open MPI or on a TPU pod, or set JAX_COORDINATOR_ADDRESS to "
            "HOST:PORT of the first process, JAX_NUM_PROCESSES, and JAX_PROCESS_ID to 0, 1, ... of each; got "
            f"{', '.join(f'{name}={value}' for name, value in given.items()) or 'none of them'}"
        ) from None


def is_first() -> bool:
    """Whether this process writes the folder and the console."""
    return jax.process_index() == 0


def agreed(number: int) -> int:
    """The largest of the numbers that the processes give. All must call it at the same point of the run.

    Args:
        number: of this process.

    Returns:
        The largest.
    """
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def from_first(x: np.ndarray) -> np.ndarray:
    """The array of the first process. All must call it at the same point of the run, with arrays of one shape and dtype.

    Args:
        x: of this process.

    Returns:
        That of the first.
    """
    return x if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(x))


@contextmanager
def all_or_none() -> Iterator[None]:
    """A block that every process runs, and that raises in all of them if it raises in one.

    Raises:
        UserError: the block raised in another process.
    """
    try:
        yield
    except Exception:
        agreed(1)
        raise
    if agreed(0):
        raise UserError("another process of this run could not begin, and says why")


def start_jax(batch: int | None = None, distributed: bool = False) -> None:
    """Sets up JAX: the persistent compilation cache, a device per CPU core, and the other processes.

    Args:
        batch: views per step. Where the number of CPU cores divides it, each core becomes a device: on two cores a step takes
            0.65 of the time that one device with two threads takes, since threads wait for each other in every operation and
            devices once a step.
        distributed: whether to join other processes; then each has the devices that JAX gives it, since several may share the
            cores of a CPU.
    """
    cache = {
        "jax_compilation_cache_dir": str(cache_folder() / "jax"),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
    }
    for name, value in cache.items():
        if not os.environ.get(name.upper()):  # whose word counts
            jax.config.update(name, value)
    if distributed:
        join()
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if batch and cores > 1 and batch % cores == 0 and not {"XLA_FLAGS", "JAX_NUM_CPU_DEVICES"} & os.environ.keys():
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        jax.config.update("jax_num_cpu_devices", cores)
