"""Every distillation objective: a few noise predictions and one formula.

Notation: e[q] is the noise predicted for query q at z_t, which the prior's own schedule mixes from z and noise, and s the
guidance scale. What an objective calls `residual` is multiplied by w(t), the variance of the noise, and pulled back through
encoder and renderer: a score is a cotangent, not a loss. Equal, up to rounding, to the gradient of the surrogate
0.5 |z - sg(z - w residual)|^2 / b.

Coefficients of the predictions and of the noise sum to zero, so a perfect denoiser exerts no force, and the same formula holds of
velocities: e = sqrt(alpha_bar_t) v + q z_t, and z_t cancels. Under flow matching a residual is therefore (1 - sigma) times itself
with v[q] in place of e[q], and with noise - z in place of the noise. LODS, for one: v[y] - (1 - 1/s) v[a] - (noise - z) / s.

Where the published residual grows with s it is multiplied by `scale`, 1/s by default, which puts it on the scale of LODS: one
learning rate, one set of regularizer weights and one densification threshold serve all. scale = 1 is the published form.
"""

from collections.abc import Callable, Mapping

from lods_jax.core.noise_schedule import velocity_weight
from lods_jax.core.types import Objective, Query
from lods_jax.distillation.fixed_noise import one_noise, surface_noise
from lods_jax.distillation.guidance import at_least, csd, nfsd, sds
from lods_jax.distillation.inversions import along_path, at_later, ddim_inversion, ddim_noise, own_prediction
from lods_jax.distillation.reconstruction import guided_reconstruction


def dds(s: float = 7.5, scale: float | None = None) -> Objective:
    """Delta denoising score: the guided score of the render, minus that of the reference under the source text.

    Hertz et al. 2023, eq. 3. The noise and the bias that both scores share cancel, so an identical pair exerts no force.

    Args:
        s: guidance scale of both scores, at least 1.
        scale: factor of the residual; None for 1 / s.

    Returns:
        An objective that learns nothing. Its queries y0 and null0 use the reference latents and the table "source".

    Raises:
        ValueError: s is below 1 or NaN.

    Examples:
        >>> dds(s=2.0).residual({"y": 3.0, "null": 1.0, "y0": 3.0, "null0": 1.0}, 5.0, 0)
        0.0
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
    """Variational score distillation: scale (s e[y] + (1 - s) e[null] - e[q]), q a LoRA that denoises the renders.

    ProlificDreamer (Wang et al. 2023, eq. 9). Query q is the prompt without view words, through the LoRA at scale 1. At s = 1 it
    is LODS at s = inf with an unconditional branch that sees prompt and camera.

    Args:
        s: guidance scale, at least 1.
        scale: factor of the residual; None for 1 / s.
        pose: whether the LoRA is conditioned on the camera; 0 is no.

    Returns:
        An objective that trains q.

    Raises:
        ValueError: s is below 1 or NaN.

    Examples:
        >>> vsd(s=7.5).trained_query
        'q'
    """
    scale = 1 / at_least(s, 1.0) if scale is None else scale
    return Objective(
        {"y": Query("prompt"), "null": Query("null"), "q": Query("plain", lora=1.0, pose=bool(pose))},
        residual=lambda e, noise, t: scale * (s * e["y"] + (1 - s) * e["null"] - e["q"]),
        trained_query="q",
    )


def lods_embedding(s: float = 1000.0, x0_rescale: float | None = None) -> Objective:
    """LODS with a learned unconditional embedding: e[y] - (1 - 1/s) e[a] - noise / s.

    Yang et al. 2024, eq. 10. The embedding a is trained to denoise the current renders. At initialisation a is the null text, and
    the residual that of SDS divided by s. Once e[a] predicts the noise of the renders, the residual is e[y] - noise, which does
    not move a good image: the mismatch between training and guided sampling is gone.

    Args:
        s: guidance scale, at least 1; `math.inf` is allowed.
        x0_rescale: as of `sds`; s must be finite then.

    Returns:
        An objective that trains the embedding a.

    Raises:
        ValueError: s is below 1 or NaN, or `x0_rescale` does not go with it.

    Examples:
        >>> lods_embedding(float("inf")).residual({"y": 3.0, "a": 1.0}, 5.0, 0)
        2.0
    """
    return lods(s, Query("learned"), x0_rescale)


def lods_lora(s: float = 1000.0, lora: float = 0.5, adapter_text: str = "null", x0_rescale: float | None = None) -> Objective:
    """LODS with a LoRA on the unconditional branch: e[y] - (1 - 1/s) e[a] - noise / s.

    Yang et al. 2024, eq. 11. The branch a is the negative prompt through the LoRA, at the same scale in the score and in the
    denoising loss. The conditional branch is the frozen network.

    Args:
        s: guidance scale, at least 1; `math.inf` is allowed.
        lora: scale of the LoRA, positive.
        adapter_text: the prompt table of the branch a, "null", or "adapter" for a text of its own.
        x0_rescale: as of `sds`; s must be finite then.

    Returns:
        An objective that trains the LoRA.

    Raises:
        ValueError: s is below 1 or NaN, `lora` is not positive, or `x0_rescale` does not go with s.

    Examples:
        >>> lods_lora(lora=0.5).queries["a"].lora
        0.5
    """
    if not lora > 0:
        raise ValueError(f"lora must be positive, got {lora}")
    return lods(s, Query(adapter_text, lora=lora), x0_rescale)


def lods(s: float, unconditional: Query, x0_rescale: float | None = None) -> Objective:
    """LODS with any unconditional branch: e[y] - (1 - 1/s) e[a] - noise / s.

    Args:
        s: guidance scale, at least 1; `math.inf` is allowed.
        unconditional: the query a, which is trained to denoise the renders.
        x0_rescale: as of `sds`; s must be finite then.

    Returns:
        An objective that trains a.

    Raises:
        ValueError: s is below 1 or NaN, or `x0_rescale` does not go with it.
    """
    keep = 1 / at_least(s, 1.0)  # 0 at s = inf
    made = Objective(
        {"y": Query("prompt"), "a": unconditional},
        residual=lambda e, noise, t: e["y"] - (1 - keep) * e["a"] - keep * noise,
        trained_query="a",
    )
    return made if x0_rescale is None else made._replace(x0_residual=guided_reconstruction(s, keep, x0_rescale, "a"))


def sds_bridge(s: float = 40.0, scale: float | None = None, first: float | int = 0) -> Objective:
    """The bridge form of score distillation: scale s (e[y] - e[source]), from the current images to those of the prompt.

    McAllister et al. 2024, section 4. The source text describes what the renders look like now: the prompt with words such as
    "oversaturated, smooth, pixelated" (`source_prompt` of a configuration). No random noise enters the residual. Renders look
    like that only once there is an object: the paper's two-stage form begins with SDS.

    Args:
        s: guidance scale, at least 1, of both stages. The default is chosen here; the paper names none.
        scale: factor of the residual; None for 1 / s.
        first: number of steps of SDS before the bridge. They cost one prediction more, that of the null text, in all steps.

    Returns:
        An objective that learns nothing.

    Raises:
        ValueError: s is below 1 or NaN.

    Examples:
        >>> sds_bridge(s=40.0).residual({"y": 3.0, "source": 1.0}, 5.0, 0)
        2.0
    """
    scale = 1 / at_least(s, 1.0) if scale is None else scale
    bridge = Objective(
        {"y": Query("prompt"), "source": Query("source")}, residual=lambda e, noise, t: scale * s * (e["y"] - e["source"])
    )
    if not first > 0:
        return bridge
    start = sds(s, scale)
    return start._replace(queries={**start.queries, **bridge.queries}, later=(first, bridge.residual))


def asd(s: float = 7.5, scale: float | None = None, shift: float = 0.05) -> Objective:
    """Asynchronous score distillation: scale (s e[y] + (1 - s) e[null] - e[y]'), the last at a later timestep.

    ScaleDreamer (Ma et al. 2024, arXiv 2407.02040), as its code has it. e[y]' is what the frozen network predicts at
    t' = t + shift (t - 20) with the same noise. A network denoises better at a later timestep, as VSD's LoRA does once it has
    learned; here nothing is learned. The code draws the shift from U(0, 0.1); this is its mean, since t is drawn in any case.

    Args:
        s: guidance scale, at least 1.
        scale: factor of the residual; None for 1 / s.
        shift: by how much later, as a share of t - 20; positive.

    Returns:
        An objective that learns nothing and has an `inversion`.

    Raises:
        ValueError: s is below 1 or NaN, or `shift` is not positive.
    """
    return sds(s, scale)._replace(inversion=at_later(shift), inversion_predictions=1)


def ism(s: float = 7.5, scale: float | None = None, steps: float | int = 4) -> Objective:
    """Interval score matching: SDS on a DDIM inversion under the null text.

    LucidDreamer (Liang et al. 2024, section 3). z_t comes from z in equal deterministic steps. The prediction of the last step,
    made at the timestep before t, takes the place of the noise.

    Args:
        s: guidance scale, at least 1.
        scale: factor of the residual; None for 1 / s.
        steps: DDIM steps from z to z_t, at least 1.

    Returns:
        An objective that learns nothing and has an `inversion`.

    Raises:
        ValueError: s is below 1 or NaN, or `steps` is below 1.
    """
    inversion = ddim_inversion(int(steps), lambda eps_of, z, t: eps_of("null", z, t))
    return sds(s, scale)._replace(inversion=inversion, inversion_predictions=int(steps), leaves_noise_aside=True)


def sdi(s: float = 7.5, scale: float | None = None, steps: float | int = 4) -> Objective:
    """Score distillation via inversion: SDS with the noise of a DDIM inversion.

    Lukoianov et al. 2024, section 4. The inversion is guided by the prompt with the scale -s, so that it removes what guidance
    adds on the way back. The residual subtracts the noise that leads from z to z_t in one step.

    Args:
        s: guidance scale, at least 1.
        scale: factor of the residual; None for 1 / s.
        steps: DDIM steps from z to z_t, at least 1.

    Returns:
        An objective that learns nothing and has an `inversion`.

    Raises:
        ValueError: s is below 1 or NaN, or `steps` is below 1.
    """
    inversion = ddim_noise(int(steps), s)
    return sds(s, scale)._replace(inversion=inversion, inversion_predictions=2 * int(steps), leaves_noise_aside=True)


def dsd(s: float = 7.5, scale: float | None = None, steps: float | int = 4, shift: float = 0.05) -> Objective:
    """Diverse score distillation: scale (s e[y] + (1 - s) e[null] - e[y]'), on the path of one noise.

    Xu et al. 2024 (arXiv 2412.06780), as its code has it. Guided DDIM leads the noise of the run to the later timestep
    t' = t + shift (t - 20). What is predicted there takes the place of random noise in z_t and z_t', and e[y]' is asked at z_t'.
    So each seed follows a path of its own, and ends in a place of its own. It needs timesteps that fall over the run. The code
    draws the shift from U(0, 0.1), and takes fewer steps to a later t'.

    Args:
        s: guidance scale of score and path, at least 1.
        scale: factor of the residual; None for 1 / s.
        steps: DDIM steps from pure noise to t', at least 1.
        shift: by how much later, as a share of t - 20; positive.

    Returns:
        An objective that learns nothing and has an `inversion` and one `noise`.

    Raises:
        ValueError: s is below 1 or NaN, `steps` is below 1, or `shift` is not positive.
    """
    path = along_path(int(steps), s, shift)
    return sds(s, scale)._replace(inversion=path, inversion_predictions=2 * int(steps) + 3, noise=one_noise)


def cfd(s: float = 7.5, scale: float | None = None) -> Objective:
    """Consistent flow distillation: SDS with noise that lies on the surface and stays there.

    Yan et al. 2025 (arXiv 2501.05445), section 3. All views of a surface point see one noise, in all steps, so that the scores of
    views agree on one path of the flow. It needs timesteps that fall over the run.

    Args:
        s: guidance scale, at least 1. The default is chosen here.
        scale: factor of the residual; None for 1 / s.

    Returns:
        An objective that learns nothing and has a `noise`.

    Raises:
        ValueError: s is below 1 or NaN.
    """
    return sds(s, scale)._replace(noise=surface_noise)


def rfds(s: float = 50.0, scale: float | None = None) -> Objective:
    """Rectified flow distillation sampling: scale (s v[y] + (1 - s) v[null] - (noise - z)), weighed alike at every t.

    Yang et al. 2025, "Text-to-image rectified flow as plug-and-play priors" (arXiv 2406.03293), as its code has it. It is SDS
    with the weight 1 / sqrt(alpha_bar_t) in place of w(t), for any prior; under flow matching that is the published force.

    Args:
        s: guidance scale, at least 1. The paper's code has 50 with InstaFlow.
        scale: factor of the residual; None for 1 / s.

    Returns:
        An objective that learns nothing.

    Raises:
        ValueError: s is below 1 or NaN.
    """
    return sds(s, scale)._replace(weight=velocity_weight)


def rfds_rev(s: float = 50.0, scale: float | None = None, steps: float | int = 1) -> Objective:
    """RFDS whose noise is first brought to what the prompt predicts: RFDS-Rev of Yang et al. 2025.

    The flow is inverted to the noise that leads to z: `inversions.own_prediction`. The random noise is where it begins.

    Args:
        s: guidance scale, at least 1, of the score; the inversion is not guided.
        scale: factor of the residual; None for 1 / s.
        steps: of the inversion, at least 1, which the paper's code has.

    Returns:
        An objective that learns nothing and has an `inversion`.

    Raises:
        ValueError: s is below 1 or NaN, or `steps` is below 1.
    """
    return rfds(s, scale)._replace(inversion=own_prediction(int(steps)), inversion_predictions=int(steps))


# The names of the command line and of configurations; `registry.make_objective` reads them.
OBJECTIVES: Mapping[str, Callable[..., Objective]] = {
    "sds": sds,
    "csd": csd,
    "nfsd": nfsd,
    "vsd": vsd,
    "lods-embedding": lods_embedding,
    "lods-lora": lods_lora,
    "sds-bridge": sds_bridge,
    "asd": asd,
    "ism": ism,
    "sdi": sdi,
    "dsd": dsd,
    "cfd": cfd,
    "rfds": rfds,
    "rfds-rev": rfds_rev,
    "dds": dds,
}
