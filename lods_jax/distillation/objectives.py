"""Every distillation objective: a few noise predictions and one formula.

Notation: e[q] is the noise predicted for query q at z_t = sqrt(ab) z + sqrt(1 - ab) noise, s the guidance scale. What an
objective calls `residual` is multiplied by w(t) = 1 - alpha_bar_t and pulled back through encoder and renderer: a score is a
cotangent, not a loss. Equal, up to rounding, to the gradient of the surrogate 0.5 |z - sg(z - w residual)|^2 / b.

Coefficients of the predictions and of the noise sum to zero, so a perfect denoiser exerts no force. Where the published
residual grows with s it is multiplied by `scale`, 1/s by default, which puts it on the scale of LODS: one learning rate, one set
of regularizer weights and one densification threshold serve all. scale = 1 is the published form.
"""

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp

from lods_jax.core.errors import UserError, one_line
from lods_jax.core.noise_schedule import add_noise, eps_to_x0, per_example, signal_and_noise
from lods_jax.core.types import Objective, Query


# --- objectives -----------------------------------------------------------------------------------------------------------
def sds(s: float = 100.0, scale: float | None = None) -> Objective:
    """Score distillation sampling (DreamFusion; Poole et al. 2023, eq. 3) with classifier-free guidance s."""
    scale = 1 / at_least(s, 1.0) if scale is None else scale
    return Objective(
        {"y": Query("prompt"), "null": Query("null")},
        residual=lambda e, noise, t: scale * (s * e["y"] + (1 - s) * e["null"] - noise),
    )


def csd() -> Objective:
    """Classifier score distillation (Yu et al. 2024, eq. 7): guidance alone, what LODS is for s = inf before it has learned."""
    return Objective({"y": Query("prompt"), "null": Query("null")}, residual=lambda e, noise, t: e["y"] - e["null"])


def nfsd(s: float = 7.5, scale: float | None = None) -> Objective:
    """Noise-free score distillation (Katzir et al. 2024, section 4): no random noise in the direction that denoises.

    That is e[empty] itself below t = 200, where the noise is too little to matter, and what sets the empty text apart from the
    negative prompt above. Below t = 200 a perfect denoiser does exert a force here. Without a negative prompt it is CSD above.
    """
    scale = 1 / at_least(s, 1.0) if scale is None else scale

    def residual(e, noise, t):
        domain = e["empty"] - per_example(jnp.where(t < 200, 0.0, 1.0), noise) * e["null"]
        return scale * (domain + s * (e["y"] - e["empty"]))

    return Objective({"y": Query("prompt"), "empty": Query("empty"), "null": Query("null")}, residual)


def dds(s: float = 7.5, scale: float | None = None) -> Objective:
    """Delta denoising score (Hertz et al. 2023, eq. 3): the score of the target, minus that of the reference under its own text.

    What both have in common, noise and bias, cancels: an identical pair exerts no force. It is LODS with an unconditional branch
    that answers on the reference.
    """
    scale = 1 / at_least(s, 1.0) if scale is None else scale
    guided = lambda y, null: s * y + (1 - s) * null  # noqa: E731
    return Objective(
        {
            "y": Query("prompt"),
            "null": Query("null"),
            "y0": Query("source", latents="reference"),
            "null0": Query("null", latents="reference"),
        },
        residual=lambda e, noise, t: scale * (guided(e["y"], e["null"]) - guided(e["y0"], e["null0"])),
    )


def vsd(s: float = 7.5, scale: float | None = None, pose: float | int = 1.0) -> Objective:
    """Variational score distillation (ProlificDreamer; Wang et al. 2023, eq. 9): against a LoRA that denoises the renders.

    The LoRA (scale 1) is asked with the prompt without view words and, unless `pose` is 0, with the camera. At s = 1 it is LODS
    at s = inf whose learned branch is conditioned on prompt and camera.
    """
    scale = 1 / at_least(s, 1.0) if scale is None else scale
    return Objective(
        {"y": Query("prompt"), "null": Query("null"), "q": Query("plain", lora=1.0, pose=bool(pose))},
        residual=lambda e, noise, t: scale * (s * e["y"] + (1 - s) * e["null"] - e["q"]),
        trained_query="q",
    )


def lods_embedding(s: float = 1000.0) -> Objective:
    """LODS with a learned unconditional embedding (Yang et al. 2024, eq. 10): SDS / s at initialisation; s may be inf.

    The embedding is fitted to denoise the current renders. Once it predicts their noise, the residual is e[y] - noise, which a
    good image does not feel: the mismatch between training and guided sampling is gone.
    """
    return lods(s, Query("learned"))


def lods_lora(s: float = 1000.0, lora: float = 0.5, adapter_text: str = "null") -> Objective:
    """LODS with a LoRA on the unconditional branch (Yang et al. 2024, eq. 11): the negative prompt through an adapter.

    Its scale `lora` is the same in the score and in the fit; the conditional branch is the frozen network.

    Args:
      adapter_text: the text table that the adapter is asked with: "null", or "adapter" where it has a text of its own.
    """
    if not lora > 0:
        raise ValueError(f"lora must be positive, got {lora}")
    return lods(s, Query(adapter_text, lora=lora))


def lods(s: float, unconditional: Query) -> Objective:
    """LODS with any learnable unconditional branch: e[y] - (1 - 1/s) e[a] - noise / s."""
    keep = 1 / at_least(s, 1.0)  # 0 at s = inf
    return Objective(
        {"y": Query("prompt"), "a": unconditional},
        residual=lambda e, noise, t: e["y"] - (1 - keep) * e["a"] - keep * noise,
        trained_query="a",
    )


def sds_bridge(s: float = 40.0, scale: float | None = None) -> Objective:
    """The bridge form of score distillation (McAllister et al. 2024, section 4): from the current images to those of the prompt.

    `source` is a text that describes what the renders look like now: the prompt with words such as "oversaturated, smooth,
    pixelated" (`source_prompt` of a configuration). No noise enters the residual. The default s is ours, not the paper's.
    """
    scale = 1 / at_least(s, 1.0) if scale is None else scale
    return Objective(
        {"y": Query("prompt"), "source": Query("source")}, residual=lambda e, noise, t: scale * s * (e["y"] - e["source"])
    )


def ism(s: float = 7.5, scale: float | None = None, steps: float | int = 4) -> Objective:
    """Interval score matching (LucidDreamer; Liang et al. 2024, section 3): SDS on a DDIM inversion under the null text.

    z_t comes from z in `steps` deterministic steps, and what takes the place of the noise is the prediction of the last step, at
    the timestep before t: the interval.
    """
    return sds(s, scale)._replace(inversion=ddim_inversion(int(steps), lambda eps_of, z, t: eps_of("null", z, t)))


def sdi(s: float = 7.5, scale: float | None = None, steps: float | int = 4) -> Objective:
    """Score distillation via inversion (Lukoianov et al. 2024, section 4): SDS, with the noise of a DDIM inversion.

    The inversion is guided by the prompt with the scale -s: what guidance adds on the way back it takes away on the way there.
    The noise that leads to z_t in one step is what the residual subtracts.
    """

    def backwards(eps_of, z, t):
        y, null = eps_of("prompt", z, t), eps_of("null", z, t)
        return null - s * (y - null)

    def inversion(eps_of, z, t, noise):
        z_t, _ = ddim_inversion(int(steps), backwards)(eps_of, z, t, noise)
        signal, sigma = signal_and_noise(t, z)
        return z_t, (z_t - signal * z) / sigma

    return sds(s, scale)._replace(inversion=inversion)


def ddim_inversion(steps: int, eps: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """An `inversion`: DDIM (Song et al. 2021, eq. 13) run from z to t in equal steps. Returns z_t and the last prediction.

    Args:
      eps: (eps_of, z_t, t) -> the noise to go along.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")

    def inversion(eps_of, z, t, noise):
        def step(i, carry):
            now, then = t * i // steps, t * (i + 1) // steps
            guess = eps(eps_of, carry[0], now)
            return add_noise(eps_to_x0(guess, carry[0], now), guess, then), guess

        return jax.lax.fori_loop(0, steps, step, (z, noise))  # one copy of the network, whatever the number of steps

    return inversion


def at_least(s: float, least: float) -> float:
    """The guidance scale, if it is one."""
    if math.isnan(s) or s < least:
        raise ValueError(f"guidance needs s >= {least:g}, got {s}")
    return s


# --- the registry ---------------------------------------------------------------------------------------------------------
OBJECTIVES: Mapping[str, Callable[..., Objective]] = {
    "sds": sds,
    "csd": csd,
    "nfsd": nfsd,
    "vsd": vsd,
    "lods-embedding": lods_embedding,
    "lods-lora": lods_lora,
    "sds-bridge": sds_bridge,
    "ism": ism,
    "sdi": sdi,
    "dds": dds,
}


def make_objective(name: str, s: float | None = None, options: Mapping[str, float | str] | None = None) -> Objective:
    """The named objective with its guidance scale, or its own, and options.

    A name with a colon is code, which is imported and called: only a name that a person has given may come here. What reads a
    folder from elsewhere asks `is_code` first.

    Args:
      name: of `OBJECTIVES`, or `package.module:factory`.
      s: guidance scale.
      options: whatever else the factory takes, by name.

    Returns:
      The objective.

    Raises:
      UserError: there is no such objective, or the code of one's own fails.
      ValueError: a number that the objective does not take.
    """
    given = dict(options or {}) | ({} if s is None else {"s": s})
    factory = load_objective(name)
    takes = list(inspect.signature(factory).parameters)
    for key in given:
        if key not in takes:
            raise UserError(f"objective {name} takes no {key}; it takes {', '.join(takes) or 'nothing'}")
    if not is_code(name):
        return factory(**given)
    with told(name, "failed"):
        made = factory(**given)
    if not isinstance(made, Objective):
        raise UserError(f"objective {name} must give a lods_jax.core.types.Objective, got a {type(made).__name__}")
    return made


def is_code(name: str) -> bool:
    """Whether an objective is a factory of one's own, which has to be imported."""
    return ":" in name


def load_objective(name: str) -> Callable[..., Objective]:
    """The factory of a registered name, or of `package.module:factory`, also from the current folder."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if not is_code(name):
        raise UserError(f"unknown objective {name}; there are {', '.join(OBJECTIVES)}, or package.module:factory")
    module, _, attribute = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last: a file of the folder must not take the place of a library
    with told(name, "cannot be imported"):
        factory = getattr(importlib.import_module(module), attribute)
    if not inspect.isfunction(factory):  # os.sep is no function, and sys.exit is none that gives an objective
        raise UserError(f"objective {name} must be a Python function that gives an Objective, got a {type(factory).__name__}")
    return factory


@contextmanager
def told(name: str, what: str) -> Iterator[None]:
    """Whatever the code of one's own raises is one line; LODS_TRACEBACK=1 shows where."""
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = (
            one_line(error) if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {one_line(error)}"
        )
        raise UserError(f"objective {name} {what}: {reason}") from error
