"""The first samples of both shipped priors side by side, and numbered sheets for a reader who is not told the captions.

    python experiments/prior_samples.py      # about 2 minutes on 2 cores

Seeds 0 to 47, none left out. Captions are drawn at random from all 288 triples, held-out ones too, with a random view where the
kind has a front. Both priors get the same captions and seeds, and the guidance scale and steps of the gates. Writes to --out:

  pairs.jpg              twelve pairs in a row, the 128-pixel prior above the 64-pixel one, all at 128 pixels
  blind-PRIOR-1..4.png   the same images in a shuffled order, with nothing but numbers
  SUBJECT.png            donuts, checks, robots, snowmen: seeds 0 to 11 of the 128-pixel prior, below them those of the other
  captions.json          the captions, and the seeds in the order of the blind sheets: to be opened after these are read
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw

from lods_jax.core.files import replacing
from lods_jax.core.images import grid, to_uint8, write_image
from lods_jax.core.paths import TABLETOP, TABLETOP_64
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.tabletop.classifier import SIZE
from lods_jax.tabletop.dataset import VIEWS, Caption, captions
from lods_jax.tabletop.evaluate import sampler
from lods_jax.tabletop.objects import COMPOSITE
from lods_jax.training.distributed import start_jax

PRIORS = {"tabletop-128": TABLETOP, "tabletop-64": TABLETOP_64}
COUNTED, LARGE = 12, 320  # samples of a subject, and images on a blind sheet; edge of an image there, pixels
SUBJECTS = {
    "all": (4 * COUNTED, captions("all")),
    "donuts": (COUNTED, [c for c in captions("all") if c.kind == "donut"]),
    "checks": (COUNTED, [c for c in captions("all") if c.pattern == "checkered"]),
    "robots": (COUNTED, [c._replace(view="front") for c in captions("all") if c.kind == "robot"]),
    "snowmen": (COUNTED, [c._replace(view="front") for c in captions("all") if c.kind == "snowman"]),
}


def drawn(n: int, choices: list[Caption]) -> list[str]:
    """n captions at random, with a random view where the kind has a front and the choice names none."""
    rng = np.random.default_rng(0)
    pairs = zip(rng.integers(len(choices), size=n), rng.integers(len(VIEWS), size=n), strict=True)
    picked = [(choices[i], VIEWS[view]) for i, view in pairs]
    return [str(c._replace(view=c.view or view) if c.kind in COMPOSITE else c) for c, view in picked]


def numbered(rgb: np.ndarray, number: int) -> np.ndarray:
    """An enlarged image with its number in a corner."""
    image = Image.fromarray(to_uint8(rgb)).resize((LARGE, LARGE), Image.Resampling.BICUBIC)
    ImageDraw.Draw(image).text((6, 4), str(number), fill="black", font_size=24)
    return np.asarray(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/experiments/prior_samples"))
    out = parser.parse_args().out
    start_jax()
    asked = {name: drawn(*subject) for name, subject in SUBJECTS.items()}
    all_of_them = [(name, seed, text) for name, texts in asked.items() for seed, text in enumerate(texts)]
    names, seeds, texts = (list(column) for column in zip(*all_of_them, strict=True))
    shown, order = {name: [] for name in SUBJECTS}, {}
    for i, (prior_name, folder) in enumerate(PRIORS.items()):
        prior = stable_diffusion(folder)
        images = sampler(prior, prior.init(jax.random.key(0)))(texts, seeds)
        images = np.asarray(jax.image.resize(images, (len(images), SIZE, SIZE, 3), "linear"))
        for name in SUBJECTS:
            shown[name].append(images[np.array(names) == name])
        order[prior_name] = np.random.default_rng([1, i]).permutation(len(asked["all"])).tolist()
        tiles = np.stack([numbered(shown["all"][i][seed], k) for k, seed in enumerate(order[prior_name])])
        for sheet, some in enumerate(np.split(tiles, len(tiles) // COUNTED)):
            write_image(out / f"blind-{prior_name}-{sheet + 1}.png", grid(some, 4))
    with replacing(out / "pairs.jpg") as file:
        Image.fromarray(grid(np.concatenate(shown.pop("all"), 1), 12)).save(file, quality=88)
    for name, images in shown.items():
        write_image(out / f"{name}.png", grid(np.concatenate(images), 6), scale=2)
    with replacing(out / "captions.json") as file:
        file.write_text(json.dumps({"captions": asked, "order": order}, indent=2) + "\n")


if __name__ == "__main__":
    main()
