"""The circumstances of a run: versions, devices, commit and the hash of the prior; also for `lods info`."""

import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

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
