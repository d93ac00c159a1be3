"""Learn to Optimize Denoising Scores (Yang et al., ECCV 2024) in one file, step for step equal to lods_jax without importing it.

    python experiments/lods_in_one_file.py            # two minutes; writes outputs/lods_in_one_file.png

A prior that is known exactly, a 3D scene that is drawn in ten lines, and the method: a score that is pulled back as a cotangent,
and an unconditional branch that is fitted to the current renders. The prior is the best denoiser of 64 pictures, two objects with
32 sides each; the text names one object and a side. There is a truth, so the table can say which objective finds it: SDS with
little guidance; LODS stays nearer, since it learns the object's word, not to the end, since one embedding cannot name every side.

Notation: theta the scene, psi the learned embedding, z_t = sqrt(ab) z + sqrt(1 - ab) noise, s the guidance scale.
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

SIZE, BATCH, BLOBS = 24, 8, 96
ALPHA_BAR = jnp.cumprod(1 - jnp.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)  # Stable Diffusion's schedule
WORDS = ("totem", "table", "front", "side", "back")
NAMED = 2.0**20  # the logit of a word in a text: leaves no weight to pictures without it


# --- the scene: round blobs, seen by an orthographic camera that circles the z axis -----------------------------------------
def render(theta: dict, azimuth: jax.Array) -> jax.Array:
    """Blobs from n sides, front to back over white: rgb [n SIZE SIZE 3]."""

    def one(azimuth):
        towards = jnp.array([jnp.cos(azimuth), jnp.sin(azimuth), 0.0])  # the camera
        right = jnp.array([-jnp.sin(azimuth), jnp.cos(azimuth), 0.0])
        order = jnp.argsort(-theta["means"] @ towards)  # nearest first
        means, colors, size, opacity = (theta[k][order] for k in ("means", "colors", "log_size", "opacity_logit"))
        axis = (jnp.arange(SIZE) + 0.5) / SIZE * 2 - 1
        dx = axis[None, None, :] - (means @ right)[:, None, None]
        dy = axis[None, :, None] + means[:, 2, None, None]  # z is up, rows go down
        falloff = jnp.exp(-0.5 * (dx**2 + dy**2) / jnp.exp(2 * size)[:, None, None])
        alpha = 0.99 * jax.nn.sigmoid(opacity)[:, None, None] * falloff
        light = jnp.cumprod(1 - alpha, 0)  # what gets past the first i blobs
        weight = alpha * jnp.concatenate([jnp.ones_like(light[:1]), light[:-1]])
        return jnp.einsum("nyx,nc->yxc", weight, colors) + light[-1][..., None]

    return jax.vmap(one)(azimuth)


def true_object(name: str) -> dict:
    """What the texts mean: a totem of three colours, or a table with a thing on it."""
    z = jnp.linspace(-0.55, 0.55, 24)
    turn = jnp.arange(24) * 2.4
    if name == "totem":
        means = jnp.stack([0.22 * jnp.cos(turn) + 0.25 * (z > 0.2), 0.22 * jnp.sin(turn), z], -1)
        colors = jnp.where(
            z[:, None] < -0.2, jnp.array([0.8, 0.2, 0.2]), jnp.where(z[:, None] < 0.2, 0.9, jnp.array([0.2, 0.3, 0.8]))
        )
    else:
        means = jnp.stack([0.5 * jnp.cos(turn), 0.5 * jnp.sin(turn), jnp.where(jnp.arange(24) % 3 > 0, 0.1, z - 0.3)], -1)
        colors = jnp.tile(jnp.array([0.3, 0.6, 0.3]), (24, 1))
    return {"means": means, "colors": colors, "log_size": jnp.full(24, jnp.log(0.13)), "opacity_logit": jnp.full(24, 3.0)}


def first_scene(key: jax.Array) -> dict:
    means = 0.35 * jax.random.normal(key, (BLOBS, 3))
    grey = {
        "colors": jnp.full((BLOBS, 3), 0.5),
        "log_size": jnp.full(BLOBS, jnp.log(0.1)),
        "opacity_logit": jnp.full(BLOBS, -1.5),
    }
    return {"means": means} | grey


# --- the prior: the exact denoiser of a set of captioned pictures ------------------------------------------------------------
def side_of(azimuth: jax.Array) -> jax.Array:
    """0 front, 1 side, 2 back."""
    angle = jnp.abs((azimuth + jnp.pi) % (2 * jnp.pi) - jnp.pi)
    return jnp.where(angle < jnp.pi / 4, 0, jnp.where(angle > 3 * jnp.pi / 4, 2, 1))


def make_prior() -> dict:
    """Pictures x [n SIZE SIZE 3] in [-1, 1], and which of WORDS describe each [n 5]."""
    azimuth = jnp.arange(32) * 2 * jnp.pi / 32
    x = jnp.concatenate([2 * render(true_object(name), azimuth) - 1 for name in WORDS[:2]])
    thing = jnp.repeat(jnp.eye(2), 32, 0)
    return {"x": x, "features": jnp.concatenate([thing, jnp.eye(3)[jnp.tile(side_of(azimuth), 2)]], 1)}


def predict(prior: dict, z_t: jax.Array, t: jax.Array, tokens: jax.Array) -> jax.Array:
    """eps [b ...]: with p(picture i | z_t, text) at hand, the best guess of the noise is (z_t - sqrt(ab) E[x]) / sqrt(1 - ab)."""
    ab = ALPHA_BAR[t].reshape(-1, 1, 1, 1)
    distance = jnp.sum((z_t[:, None] - jnp.sqrt(ab)[:, None] * prior["x"][None]) ** 2, (2, 3, 4)) / (2 * (1 - ab[:, :, 0, 0]))
    named = jax.nn.log_softmax(tokens @ prior["features"].T)
    x = jnp.einsum("bn,nhwc->bhwc", jax.nn.softmax(named - distance), prior["x"])
    return (z_t - jnp.sqrt(ab) * x) / jnp.sqrt(1 - ab)


def prompt(azimuth: jax.Array) -> jax.Array:
    """The tokens of "a totem, front view" and so on: logits of words [b 5]. No word at all is the empty text."""
    return NAMED * (jnp.eye(5)[0][None] + jnp.eye(5)[2 + side_of(azimuth)])


# --- the method --------------------------------------------------------------------------------------------------------------
def add_noise(z, noise, t):
    ab = ALPHA_BAR[t].reshape(-1, 1, 1, 1)
    return jnp.sqrt(ab) * z + jnp.sqrt(1 - ab) * noise


def sds(s, e_y, e_u, noise):
    """DreamFusion (Poole et al. 2023) over s: at a good picture guidance still pushes on, by (s - 1) / s (e_y - e_u)."""
    return (s * e_y + (1 - s) * e_u - noise) / s


def lods(s, e_y, e_a, noise):
    """The same formula with the learned branch: where it predicts the noise of the renders, what is left is e_y - noise."""
    return e_y - (1 - 1 / s) * e_a - noise / s


def make_step(prior: dict, residual, s: float, learn: bool, tx_theta, tx_psi):
    """(theta, psi, optimizers, step, key) -> the same after one step."""

    def draw(keys, low, high, shape):
        k_t, k_noise = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        t = jax.vmap(lambda k: jax.random.randint(k, (), low, high + 1))(k_t)
        return t, jax.vmap(lambda k: jax.random.normal(k, shape))(k_noise)

    @jax.jit
    def step(theta, psi, opt_theta, opt_psi, i, key):
        # One key per view: a device that has some of the views draws what one device with all of them would.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, i), jnp.arange(BATCH))
        k_camera, _, _, k_score, k_fit = jnp.moveaxis(jax.vmap(partial(jax.random.split, num=5))(keys), 1, 0)
        azimuth = 2 * jnp.pi * (jnp.arange(BATCH) + jax.vmap(jax.random.uniform)(k_camera)) / BATCH

        # The score is a cotangent, not a loss: w(t) residual / b, pulled back through the renderer.
        z, pullback = jax.vjp(lambda theta: 2 * render(theta, azimuth) - 1, theta)
        t, noise = draw(k_score, 20, 980, z.shape[1:])
        z_t = add_noise(z, noise, t)
        unconditional = jnp.broadcast_to(psi, (BATCH, 5))
        force = residual(s, predict(prior, z_t, t, prompt(azimuth)), predict(prior, z_t, t, unconditional), noise)
        (g_theta,) = pullback((1 - ALPHA_BAR[t]).reshape(-1, 1, 1, 1) * force / BATCH)

        # The learned branch is fitted to denoise the same renders, with a draw of its own: the training loss of any prior.
        t, noise = draw(k_fit, 0, 999, z.shape[1:])
        z_t = add_noise(z, noise, t)
        g_psi = jax.grad(lambda psi: jnp.mean((predict(prior, z_t, t, jnp.broadcast_to(psi, (BATCH, 5))) - noise) ** 2))(psi)

        updates, opt_theta = tx_theta.update(g_theta, opt_theta)
        theta = optax.apply_updates(theta, updates)
        if learn:
            updates, opt_psi = tx_psi.update(g_psi, opt_psi)
            psi = optax.apply_updates(psi, updates)
        return theta, psi, opt_theta, opt_psi

    return step


def distill(residual, s: float, learn: bool, steps: int, seed: int = 0) -> tuple[dict, jax.Array]:
    """The scene and the learned embedding after a run."""
    tx_theta = optax.adam(optax.cosine_decay_schedule(0.02, steps, 0.05))
    tx_psi = optax.adam(0.3)  # psi must keep up with the scene
    step = make_step(make_prior(), residual, s, learn, tx_theta, tx_psi)
    theta, psi, key = first_scene(jax.random.key(seed)), jnp.zeros(5), jax.random.key(seed + 1)
    opt_theta, opt_psi = tx_theta.init(theta), tx_psi.init(psi)
    for i in range(steps):
        theta, psi, opt_theta, opt_psi = step(theta, psi, opt_theta, opt_psi, i, key)
    return theta, psi


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("outputs/lods_in_one_file.png"))
    args = parser.parse_args()
    azimuth = (jnp.arange(8) + 0.25) * 2 * jnp.pi / 8  # none of them is in the prior
    truth = render(true_object("totem"), azimuth)
    runs = {
        "SDS s = 1": (sds, 1.0, False), "SDS s = 7.5": (sds, 7.5, False), "SDS s = 100": (sds, 100.0, False),
        "CSD": (sds, 1e9, False), "LODS s = 7.5": (lods, 7.5, True), "LODS s = 100": (lods, 100.0, True),
    }  # fmt: skip
    rows = [truth]
    print(f"{'':>14} {'error':>7} {'beyond [0, 1]':>14}   learned words")
    for name, (residual, s, learn) in runs.items():
        theta, psi = distill(residual, s, learn, args.steps)
        rgb = render(theta, azimuth)
        error, beyond = jnp.sqrt(jnp.mean((rgb - truth) ** 2)), jnp.mean(jnp.abs(rgb - jnp.clip(rgb, 0, 1)))
        learned = ", ".join(f"{word} {x:+.1f}" for word, x in zip(WORDS, psi, strict=True)) if learn else "-"
        print(f"{name:>14} {error:7.3f} {beyond:14.4f}   {learned}", flush=True)
        rows.append(rgb)
    image = np.asarray(jnp.clip(jnp.stack(rows), 0, 1)).transpose(0, 2, 1, 3, 4).reshape(len(rows) * SIZE, 8 * SIZE, 3)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * image + 0.5).astype(np.uint8)).resize((8 * SIZE * 4, len(rows) * SIZE * 4), 0).save(args.out)
    print(f"{args.out}: the truth, then {', '.join(runs)}")


if __name__ == "__main__":
    main()
