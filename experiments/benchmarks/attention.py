"""How long does attention take in Stable Diffusion's networks, by which kernel, and how far is each from float32?

    python -m experiments.benchmarks.attention                    # a GPU: 1 minute; with PyTorch beside it also its kernel
    python -m experiments.benchmarks.attention --batch 1 --layers "self, 64" --seconds 0.2 --dtype float32       # a CPU

Layers of the U-Nets of Stable Diffusion 2.1 and 1.5 at 512 px and of their autoencoder: forward, and forward with the way back to
queries, keys and values. Errors are of the output, relative to softmax(q k / sqrt d) v in float32. Milliseconds are medians of
calls that end when the device has finished, after one that compiles. A kernel that refuses a layer leaves a row that says why.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.benchmarks.against_gsplat import median_ms, run_apart
from lods_jax.runs.run_directory import append, truncate_log


class Layer(NamedTuple):
    """Queries, keys, heads and the width of a head."""

    queries: int
    keys: int
    heads: int
    width: int


LAYERS = {
    "self, 4096": Layer(4096, 4096, 5, 64),
    "cross, 4096": Layer(4096, 77, 5, 64),
    "self, 1024": Layer(1024, 1024, 10, 64),
    "cross, 1024": Layer(1024, 77, 10, 64),
    "self, 256": Layer(256, 256, 20, 64),
    "cross, 256": Layer(256, 77, 20, 64),
    "self, 64": Layer(64, 64, 20, 64),
    "cross, 64": Layer(64, 77, 20, 64),
    "autoencoder": Layer(4096, 4096, 1, 512),
    "1.5: self, 4096": Layer(4096, 4096, 8, 40),
    "1.5: self, 1024": Layer(1024, 1024, 8, 80),
    "1.5: self, 256": Layer(256, 256, 8, 160),
}


def inputs(layer: Layer, batch: int) -> list[np.ndarray]:
    """Queries, keys, values and a cotangent, [b n h d]."""
    rng = np.random.default_rng(0)
    lengths = layer.queries, layer.keys, layer.keys, layer.queries
    return [rng.standard_normal((batch, n, layer.heads, layer.width), np.float32) for n in lengths]


def ours(args: argparse.Namespace, done: set) -> None:
    """Rows of the kernels that JAX has."""
    import jax
    import jax.numpy as jnp

    from lods_jax.priors.attention import plain

    by = lambda name: partial(jax.nn.dot_product_attention, implementation=name)  # noqa: E731
    kernels: dict[str, Callable] = {"plain": plain, "XLA": by("xla"), "cuDNN": by("cudnn")}
    for name in args.layers:
        layer, batch = LAYERS[name], args.batch if name != "autoencoder" else max(1, args.batch // 2)
        q, k, v, g = (jnp.asarray(x, args.dtype) for x in inputs(layer, batch))
        scale = layer.width**-0.5
        exact = jax.jit(partial(plain, scale=scale))(*(x[:1].astype(jnp.float32) for x in (q, k, v)))
        for kernel, attend in kernels.items():
            if (kernel, name) in done:
                continue
            forward = jax.jit(partial(attend, scale=scale))
            both = jax.jit(lambda q, k, v, g, forward=forward: jax.vjp(forward, q, k, v)[1](g))
            row = {"kernel": kernel, "layer": name, "batch": batch, "dtype": args.dtype, "device": jax.devices()[0].device_kind}
            try:
                out = forward(q, k, v)[:1].astype(jnp.float32)
                row["error"] = float(jnp.linalg.norm(out - exact) / jnp.linalg.norm(exact))
                row["forward, ms"], _ = median_ms(lambda: jax.block_until_ready(forward(q, k, v)), args.seconds)  # noqa: B023
                row["both, ms"], _ = median_ms(lambda: jax.block_until_ready(both(q, k, v, g)), args.seconds)  # noqa: B023
            except Exception as error:  # whatever a kernel raises of what it does not do
                row["refused"] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            tell(args.out, row)


def pytorch(args: argparse.Namespace, done: set) -> None:
    """Rows of PyTorch's scaled_dot_product_attention."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    for name in args.layers:
        layer, batch = LAYERS[name], args.batch if name != "autoencoder" else max(1, args.batch // 2)
        if ("PyTorch", name) in done:
            continue
        cuda = lambda x: torch.tensor(x, dtype=getattr(torch, args.dtype), device="cuda").transpose(1, 2)  # noqa: E731
        q, k, v, g = (cuda(x).contiguous() for x in inputs(layer, batch))
        q, k, v = (x.requires_grad_() for x in (q, k, v))

        def forward(q=q, k=k, v=v):
            with torch.no_grad():
                scaled_dot_product_attention(q, k, v)
            torch.cuda.synchronize()

        def both(q=q, k=k, v=v, g=g):
            torch.autograd.grad(scaled_dot_product_attention(q, k, v), (q, k, v), g)
            torch.cuda.synchronize()

        row = {"kernel": "PyTorch", "layer": name, "batch": batch, "dtype": args.dtype, "device": torch.cuda.get_device_name()}
        row["forward, ms"], row["both, ms"] = median_ms(forward, args.seconds)[0], median_ms(both, args.seconds)[0]
        tell(args.out, row)


def tell(path: Path, row: dict) -> None:
    """Appends a finished row, and prints it."""
    append(path, row)
    figures = " ".join(f"{name} {row[name]:.3g}" for name in ("forward, ms", "both, ms", "error") if name in row)
    print(f"{row['layer']:<18}{row['kernel']:<9}{figures}{row.get('refused', '')}", flush=True)


def table(rows: list[dict]) -> str:
    """Milliseconds forward, and with the way back, by layer and kernel, as Markdown."""
    timed = {(row["layer"], row["kernel"]): row for row in rows}
    kernels = list(dict.fromkeys(row["kernel"] for row in rows))
    lines = ["| layer, tokens | " + " | ".join(kernels) + " |", "|---" * (len(kernels) + 1) + "|"]
    for layer in LAYERS:
        cells = []
        for kernel in kernels:
            row = timed.get((layer, kernel), {})
            forward = f"{row['forward, ms']:.2f}" if "forward, ms" in row else "refused" if row else ""
            cells.append(f"{forward}, {row['both, ms']:.2f}" if "both, ms" in row else forward)
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="examples: two predictions of eight views")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=[*LAYERS])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seconds", type=float, default=0.15, help="for every time")
    sides = {"ours": ours, "pytorch": pytorch}
    parser.add_argument("--sides", nargs="+", choices=sides, default=[*sides])
    parser.add_argument("--out", type=Path, default=Path("outputs/experiments/attention.jsonl"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["kernel"], row["layer"]) for row in truncate_log(args.out)}
    run_apart([sides[side] for side in args.sides], args, done)


if __name__ == "__main__":
    main()
