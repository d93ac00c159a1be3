"""The circumstances of a run: versions, devices, commit, and the hashes of prior and adapters; also for `lods info`."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from lods_jax.priors.user_adapters import note_line
from lods_jax.runs.run_directory import Run

PACKAGES = ("lods_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffusers", "transformers", "numpy", "mediapy")


def describe() -> dict[str, Any]:
    """What is needed to repeat a run elsewhere: command, commit, versions, platform and devices.

    Returns:
        A dict of JSON values.
    """
    return {
        "argv": sys.argv,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processes": jax.process_count(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        # Scatter-adds on a GPU are unordered without this flag, and a repeated run differs in the last bits.
        "deterministic": jax.default_backend() != "gpu" or "xla_gpu_deterministic_ops=true" in os.environ.get("XLA_FLAGS", ""),
    }


def made_with(run: Run) -> Iterator[tuple[str, Any]]:
    """Yields what a run was made with, from its configuration and its run.json.

    Args:
        run: the run.

    Yields:
        (name, value) pairs.
    """
    yield "prompt", run.config.prompt
    yield "prior", f"{run.config.prior.name}, SHA-256 of the U-Net {str(run.note.get('prior_sha256'))[:16]}"
    adapters = run.note.get("adapters")
    for note in adapters if isinstance(adapters, list) else ():
        try:
            yield "", note_line(note)
        except (KeyError, TypeError, ValueError):
            continue
    yield "objective", run.config.objective.name
    if judge := run.note.get("reward_sha256"):
        yield "reward", f"{run.config.objective.reward}, SHA-256 of the CLIP {str(judge)[:16]}"
    if run.config.objective.init_psi:
        yield "init-psi", run.config.objective.init_psi
    for name in ("began", "commit", "platform", "versions", "devices"):
        if name in run.note:
            yield name, run.note[name]


def installed(package: str) -> str | None:
    """The version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The git commit of this code.

    Returns:
        The hash, with a + if files were changed; None outside a checkout.
    """
    root = Path(__file__).parents[2]
    git = lambda *args: subprocess.run(["git", "-C", root, *args], capture_output=True, text=True, check=False)  # noqa: E731
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    head, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None


def hidden_gpu() -> str | None:
    """A warning if this machine has an NVIDIA GPU that JAX does not use.

    Returns:
        One line; None if all is well.
    """
    if jax.default_backend() != "cpu" or not (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        return None
    if "cuda" not in os.environ.get("JAX_PLATFORMS", "cuda"):
        return f"this machine has an NVIDIA GPU, but JAX_PLATFORMS={os.environ['JAX_PLATFORMS']} keeps JAX from it"
    return "this machine has an NVIDIA GPU that JAX cannot see: pip install 'jax[cuda13]'"
