"""Adapters that people bring along: LoRA files that are merged into the frozen weights, and textual inversions for the prompts.

A merged LoRA costs nothing in a step, and a learned one acts beside it. It is added in float32, before the weights are rounded to
the dtype that they compute in: bfloat16 would lose small updates one by one.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from lods_jax.priors.adapter_files import LowRank
from lods_jax.priors.diffusers_folder import PICKLES
from lods_jax.priors.hub import family_of, file_hash
from lods_jax.priors.lora import site_name
from lods_jax.priors.torch_weights import channels_last, read_arrays, torch_shape

ScaledFile = tuple[str | Path, float]  # a LoRA and its scale
FILE_AS_TOKEN = ("emb_params", "*")  # keys of the web UI of A1111, where the name of the file is the token
SDXL_KEYS = ("clip_l", "clip_g")  # vectors for SDXL's first and second text encoder; the name of the file is the token


class TokenEmbedding(NamedTuple):
    """A textual inversion (Gal et al. 2023): a word of prompts whose token embeddings were learned.

    Attributes:
        token: how prompts write it, in any case.
        vectors: inputs of each text encoder, one for each token that it stands for there [n w].
        file: that it is from.
    """

    token: str
    vectors: tuple[Float[np.ndarray, "_ _"], ...]
    file: Path


def check_adapter_file(file: str | Path) -> Path:
    """Checks that a file may be an adapter, before anything large is read.

    Args:
        file: its path.

    Returns:
        The path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is pickled.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}: --prior.lora and --prior.embedding take safetensors files")
    if file.suffix in PICKLES:
        raise ValueError(f"{file} is pickled, and to load it can run code: save its arrays as safetensors, under the same keys")
    return file


def merge(params: Any, adapter: Mapping[str, LowRank], scale: float) -> Any:
    """The parameters of a part with an adapter added to its kernels.

    Args:
        params: tree of float32 NumPy arrays.
        adapter: {PyTorch's name of a layer: its factors}, of `adapter_files.read_lora`.
        scale: that all of it is multiplied by.

    Returns:
        A new tree.
    """
    flat = flatten_dict(params)
    paths = {site_name(path): path for path in flat if path[-1] == "kernel"}
    for name, factors in adapter.items():
        path = paths[name]
        added = factors.up @ factors.down.reshape(len(factors.down), -1)
        added = added.reshape(torch_shape(path, flat[path].shape)) * np.float32(scale * factors.scale)
        flat[path] = flat[path] + channels_last(path, added)
    return unflatten_dict(flat)


def read_token_embeddings(files: Sequence[str | Path], widths: Sequence[int]) -> list[TokenEmbedding]:
    """Reads textual inversions, as diffusers or the web UI of A1111 save them.

    Args:
        files: safetensors files.
        widths: of the token embeddings of each text encoder.

    Returns:
        One for each file.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file holds anything else or is for other text encoders, or two stand for the same token.
    """
    found: list[TokenEmbedding] = []
    for file in map(check_adapter_file, files):
        one = read_token_embedding(file)
        if len(one.vectors) != len(widths):
            of, has = ("two text encoders, as SDXL has", "one") if len(widths) == 1 else ("one text encoder", "two, as SDXL")
            raise ValueError(f"{file} is a textual inversion for {of}: this prior has {has}")
        if (found_widths := [own.shape[1] for own in one.vectors]) != list(widths):
            base, own = family_of(sum(found_widths)), family_of(sum(widths))
            raise ValueError(
                f"{file} was trained on {base}, and this prior is {own}: use a textual inversion of the same base model"
            )
        if twin := next((other for other in found if other.token.lower() == one.token.lower()), None):
            raise ValueError(
                f"{twin.file} and {file} both stand for {one.token!r} in prompts: leave one of them out, or rename it"
            )
        found.append(one)
    return found


def read_token_embedding(file: Path) -> TokenEmbedding:
    """Reads one textual inversion.

    Args:
        file: safetensors file.

    Returns:
        Its token is the key of diffusers, and the name of a file of A1111 or of one for SDXL's two text encoders.

    Raises:
        ValueError: it holds anything else.
    """
    state = read_arrays(file)
    keys = SDXL_KEYS if set(state) == set(SDXL_KEYS) else tuple(state)[:1]
    vectors = [np.atleast_2d(state[key]).astype(np.float32) for key in keys]
    if len(state) != len(keys) or not keys or any(own.ndim != 2 or not own.size for own in vectors):
        wanted = f"one array, the vectors of a textual inversion [n width], or SDXL's {' and '.join(SDXL_KEYS)}"
        raise ValueError(f"{file} must hold {wanted}, got {sorted(state)[:5]}")
    token = (file.stem if keys == SDXL_KEYS or keys[0] in FILE_AS_TOKEN else keys[0]).strip()
    if not token or len(token) > 100:
        raise ValueError(f"{file}: the key of its vectors must be their word in prompts, got {keys[0]!r:.100}")
    return TokenEmbedding(token, tuple(vectors), file)


def adapter_notes(loras: Sequence[ScaledFile], embeddings: Sequence[str | Path]) -> Iterator[dict[str, Any]]:
    """Yields what the record of a run says of each file.

    Args:
        loras: merged into the weights.
        embeddings: read for the prompts.

    Yields:
        {"file", "sha256", and "scale" or "token" and "vectors"}.
    """
    for file, scale in loras:
        yield {"file": str(file), "sha256": file_hash(Path(file)), "scale": scale}
    for file in embeddings:
        one = read_token_embedding(Path(file))
        yield {"file": str(file), "sha256": file_hash(Path(file)), "token": one.token, "vectors": len(one.vectors[-1])}


def unused_words(notes: Iterable[Mapping[str, Any]], texts: Sequence[str | None]) -> Iterator[str]:
    """Yields a line for each textual inversion whose word stands in no text, so that it changes nothing.

    Args:
        notes: from `adapter_notes`.
        texts: all that a prior is asked with; None for one that there is not.

    Yields:
        The line.

    Examples:
        >>> list(unused_words([{"file": "toy.safetensors", "token": "<cat-toy>"}], ["a <Cat-Toy> on a mug", None]))
        []
    """
    for note in notes:
        if "token" in note and not any(pattern_of([note["token"]]).search(text) for text in texts if text):
            yield f"{note['file']} changes nothing: no prompt has its word {note['token']}"


def pattern_of(tokens: Sequence[str] | Mapping[str, Any]) -> re.Pattern:
    """A pattern that finds tokens, the longest first, which are no part of another word."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)


def note_line(note: Mapping[str, Any]) -> str:
    """One line on an adapter, from its note of `adapter_notes`.

    Examples:
        >>> note_line({"file": "toy.safetensors", "sha256": "0123456789abcdef0", "scale": 0.8})
        'toy.safetensors: a LoRA at scale 0.8, SHA-256 0123456789abcdef'
    """
    if "token" in note:
        what = f"{note['token']} in prompts, {note['vectors']} vector{'s' if note['vectors'] > 1 else ''}"
    else:
        what = f"a LoRA at scale {note['scale']:g}"
    return f"{note['file']}: {what}, SHA-256 {note['sha256'][:16]}"
