"""The page of a run in a browser without a GPU: size, time to the first frame, frames per second while it turns.

    python -m experiments.benchmarks.page            # 20,000 Gaussians, headless Chromium with software GL

The Gaussians are drawn around an object's surface with sizes and opacities as runs end with them. Canvas: 588 px, as one run has
on a desktop; while it turns, the page lowers its resolution where a machine is slow, down to 0.25.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from lods_jax.config import Config, dump
from lods_jax.runs.page import write_page
from lods_jax.runs.run_directory import read_run
from lods_jax.scenes.ply import write_splat
from lods_jax.scenes.spherical_harmonics import Y00
from lods_jax.tabletop.metrics import surface_points
from tests.runs.browser import Browser

REPEATS, SECONDS = 5, 4.0


def splats(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    colors = np.array([0.8, 0.2, 0.1]) + 0.1 * rng.normal(size=(n, 3))
    return {
        "means": surface_points("mug", n) + 0.01 * rng.normal(size=(n, 3)).astype(np.float32),
        "quats": rng.normal(size=(n, 4)).astype(np.float32),
        "log_scales": np.log((2000 / n) ** 0.5 * rng.uniform(0.01, 0.04, (n, 3))).astype(np.float32),
        "opacity_logits": rng.normal(1.0, 2.0, n).astype(np.float32),
        "sh": ((colors - 0.5) / Y00)[:, None].astype(np.float32),
    }


def main() -> None:
    print("Gaussians  page, MB  first frame, ms  frames per second")
    for n in (4_000, 20_000):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name, "run")
            folder.mkdir()
            (folder / "config.yaml").write_text(dump(Config(prompt="a red mug")))
            (folder / "run.json").write_text(json.dumps({"state": "finished"}))
            write_splat(folder / "scene.splat", splats(n))
            page = Path(name, "index.html")
            write_page([read_run(folder)], page)
            first, rate = [], []
            for _ in range(REPEATS):
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, Browser(Path(profile)) as browser:
                    browser.open(page)
                    first.append(browser.run("Number(document.body.dataset.firstFrame)"))
                    time.sleep(1.5)  # the page finds its resolution
                    before, began = browser.run("Number(document.body.dataset.frames)"), time.monotonic()
                    time.sleep(SECONDS)
                    after, ended = browser.run("Number(document.body.dataset.frames)"), time.monotonic()
                    rate.append((after - before) / (ended - began))
            size = page.stat().st_size / 2**20
            print(f"{n:9,d}  {size:8.2f}  {np.median(first):15.0f}  {np.median(rate):17.1f}", flush=True)


if __name__ == "__main__":
    main()
