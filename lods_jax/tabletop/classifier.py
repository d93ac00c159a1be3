"""The classifier of the tabletop world: what an image shows, or that it shows nothing, and how good the object in it is.

Trained (`train_classifier`) on renders and on damaged renders alone, never on samples of a prior, and apart from the prior's own
text encoder. Its kind head has one class more than there are kinds: NONE, for blobs, specks and wrecks. Without it a coloured
blob would be called a ball or a mug, and an accuracy would mean nothing.

Quality lies in (0, 1]: exp(-e / 0.08), where e is what the network believes to be the mean colour error to the nearest true
render over the object's area (`damage.error`). A true render has 1; a car without wheels about 0.3.
"""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Float
from safetensors.numpy import load_file

from lods_jax.core.cameras import VIEWS
from lods_jax.core.paths import CLASSIFIER
from lods_jax.tabletop.objects import COLORS, KINDS, PATTERNS

SIZE = 128  # edge of the images that it reads, pixels
NONE = len(KINDS)  # index of the class "no object" in the kind head
HEADS = {"kind": len(KINDS) + 1, "color": len(COLORS), "pattern": len(PATTERNS), "view": len(VIEWS), "quality": 1}
ERROR_SCALE = 0.08  # colour error at which quality is 1 / e


class Classifier(nn.Module):
    """Images [b 128 128 3] in [0, 1] -> ({head: logits [b classes]}, features [b 128])."""

    @nn.compact
    def __call__(self, rgb):
        b, half = len(rgb), SIZE // 2
        # Pixels of a 2x2 block as channels: a quarter of the work at full resolution.
        x = (2 * rgb - 1).reshape(b, half, 2, half, 2, 3).swapaxes(2, 3).reshape(b, half, half, 12)
        x = nn.silu(nn.GroupNorm(8)(nn.Conv(24, (3, 3), name="conv_in")(x)))
        for width in (48, 96, 128, 128):
            x = nn.Conv(width, (3, 3), strides=2)(x)
            y = nn.Conv(width, (3, 3))(nn.silu(nn.GroupNorm(8)(x)))
            x = x + nn.Conv(width, (3, 3), kernel_init=nn.initializers.zeros)(nn.silu(nn.GroupNorm(8)(y)))
        # Flattened, not averaged: the view shows in where things are.
        features = nn.silu(nn.Dense(128)(nn.silu(nn.GroupNorm(8)(x)).reshape(b, -1)))
        return {head: nn.Dense(n, name=head)(features) for head, n in HEADS.items()}, features


class ClassifierOutput(NamedTuple):
    """What the classifier reads in n images, on the host.

    Attributes:
        kind: index [n] into KINDS, or NONE.
        color: index [n] into COLORS.
        pattern: index [n] into PATTERNS.
        view: index [n] into VIEWS.
        quality: [n] in (0, 1].
        features: [n 128] for KID.
    """

    kind: np.ndarray
    color: np.ndarray
    pattern: np.ndarray
    view: np.ndarray
    quality: np.ndarray
    features: np.ndarray


def load_classifier(path: Path = CLASSIFIER) -> Any:
    """Reads the parameters of a trained classifier.

    Args:
        path: of the file.

    Returns:
        Float32 parameters.

    Raises:
        FileNotFoundError: there is no file; the message says how to train one.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no classifier at {path}; train one with: lods train-prior --part classifier --out {path.parent}"
        )
    return unflatten_dict({tuple(k.split("/")): jnp.asarray(v, jnp.float32) for k, v in load_file(path).items()})


_apply = jax.jit(lambda params, rgb: Classifier().apply({"params": params}, rgb))


def classify(params: Any, rgb: Float[np.ndarray, "n h w 3"], chunk: int = 64) -> ClassifierOutput:
    """Reads images.

    Args:
        params: from `load_classifier`.
        rgb: n >= 1 square images in [0, 1]; those of another size are resized.
        chunk: images per call; it does not change the result.

    Returns:
        What is read in each image.
    """
    heads, features = [], []
    for i in range(0, len(rgb), chunk):
        part = np.asarray(rgb[i : i + chunk], np.float32)
        if part.shape[1:3] != (SIZE, SIZE):
            part = np.asarray(jax.image.resize(part, (len(part), SIZE, SIZE, 3), "linear"))
        full = np.concatenate([part, np.zeros((chunk - len(part), SIZE, SIZE, 3), np.float32)])
        out, seen = _apply(params, full)
        heads.append({head: np.asarray(x)[: len(part)] for head, x in out.items()})
        features.append(np.asarray(seen)[: len(part)])
    logits = {head: np.concatenate([part[head] for part in heads]) for head in HEADS}
    read = {head: x.argmax(-1) for head, x in logits.items() if head != "quality"}
    quality = 1 / (1 + np.exp(-logits["quality"][:, 0].astype(np.float64)))
    return ClassifierOutput(**read, quality=quality, features=np.concatenate(features))
