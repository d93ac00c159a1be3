"""Texts to the context of a U-Net: vocabulary, tokenizers, text encoders, and the words that textual inversions add to them."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lods_jax.priors import flax_networks, tokenizer
from lods_jax.priors.diffusers_folder import ALL_PARTS, read_config, read_vocabulary
from lods_jax.priors.sdxl import pack, pooled_rows, text_parts, zeros_for_nothing
from lods_jax.priors.user_adapters import TokenEmbedding, pattern_of, read_token_embeddings

TOKENIZERS = {"text": "tokenizer", "text_2": "tokenizer_2"}
TABLE = ("text_model", "embeddings", "token_embedding", "embedding")  # the path of the token embeddings [vocabulary w]


class PromptEncoder(NamedTuple):
    """The functions of a `Prior` that read texts.

    Attributes:
        embed: (weights, texts) -> tokens [k n w].
        truncate: (text, ending) -> text, cut so that the ending fits behind it.
        extend: weights -> the same with the vectors of the textual inversions in the tables of the text encoders.
    """

    embed: Callable
    truncate: Callable[..., str]
    extend: Callable[[dict], dict]


class Tower(NamedTuple):
    """One text encoder with its tokenizer and the words that textual inversions add to them.

    Attributes:
        ids: texts -> token ids [k n].
        network: () -> the text encoder, with a row of its table for each token.
        end: () -> id of the end token.
        truncate: as in `PromptEncoder`.
        extend: parameters of the text encoder -> the same with the added vectors in its table.
    """

    ids: Callable[[Sequence[str]], Int[np.ndarray, "k n"]]
    network: Callable[[], nn.Module]
    end: Callable[[], int]
    truncate: Callable[..., str]
    extend: Callable[[Any], Any]


def prompt_encoder(
    folder: Path, networks: Mapping[str, nn.Module], strict: bool = True, embeddings: Sequence[str | Path] = ()
) -> PromptEncoder:
    """The prompt encoder of a Stable Diffusion folder.

    Args:
        folder: in diffusers layout.
        networks: {part: text encoder}; two, as SDXL has, give a text as `sdxl.pack` does.
        strict: whether texts with words outside the folder's `vocabulary.json` are refused; words of `embeddings` are known.
        embeddings: files of textual inversions.

    Returns:
        Its functions. `embed` takes the weights that `extend` has seen.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is malformed, or of other text encoders.
    """
    known = read_vocabulary(folder) if strict else None
    added = read_token_embeddings(embeddings, [network.config.hidden_size for network in networks.values()])
    vectors = [{one.token: one.vectors[i] for one in added} for i in range(len(networks))]
    towers = {part: tower(folder, part, *given) for (part, *given) in zip(networks, networks.values(), vectors, strict=True)}
    pooled = len(towers) > 1
    zeros = pooled and zeros_for_nothing(folder)

    @cache
    def encode() -> Callable:
        """The compiled text encoders: (their parameters, token ids of each) -> tokens."""
        modules = [one.network() for one in towers.values()]
        if not pooled:
            return jax.jit(lambda params, ids: flax_networks.encode_text(modules[0], params[0], ids[0]))
        ends = [one.end() for one in towers.values()]

        @jax.jit
        def both(params, ids):
            states, vectors = zip(*map(flax_networks.encode_penultimate, modules, params, ids, ends), strict=True)
            return pack(jnp.concatenate(states, -1), vectors[-1])

        return both

    def embed(weights: dict, texts: Sequence[str]) -> Float[Array, "k n w"]:
        for line in texts if known is not None else ():
            if unknown := tokenizer.unknown_words(without_tokens(added, line), known.words):
                raise ValueError(f"unknown word {unknown[0]!r} in {line!r}; it may use: {', '.join(sorted(known.words))}")
        ids = [jnp.asarray(one.ids(texts)) for one in towers.values()]
        tokens = encode()([weights[part] for part in towers], ids)
        return jnp.where(jnp.array([text == "" for text in texts])[:, None, None], 0.0, tokens) if zeros else tokens

    def truncate(words: str, ending: str = "") -> str:
        for one in towers.values():
            words = one.truncate(words, ending)
        return words

    def extend(weights: dict) -> dict:
        return weights | {part: one.extend(weights[part]) for part, one in towers.items()}

    return PromptEncoder(embed, truncate, extend)


def tower(folder: Path, part: str, text: nn.Module, added: Mapping[str, Float[np.ndarray, "_ w"]]) -> Tower:
    """One text encoder of a folder, and its tokenizer.

    Args:
        folder: in diffusers layout.
        part: "text" or "text_2".
        text: the text encoder.
        added: {token of a textual inversion: its vectors for this text encoder}.

    Returns:
        Its functions.
    """
    length, size = text.config.max_position_embeddings, text.config.vocab_size
    names = {token: names_of(token, len(vectors)) for token, vectors in added.items()}
    expand, every = expander(names), [name for own in names.values() for name in own]

    @cache
    def clip() -> Any:
        return tokenizer.with_tokens(tokenizer.load_tokenizer(folder, TOKENIZERS[part]), every)

    @cache
    def ids_of_added() -> list[int]:
        return [clip().convert_tokens_to_ids(name) for name in every]

    @cache
    def rows() -> int:
        """Of the table. New ids follow the tokenizer's, wherever the table ends."""
        return max([size - 1, *ids_of_added()]) + 1

    def network() -> nn.Module:
        if rows() == size:
            return text
        config = read_config(folder / ALL_PARTS[part][0] / "config.json")
        return flax_networks.text_encoder(config.get("text_config", config) | {"vocab_size": rows()}, projection=part == "text_2")

    def ids(texts: Sequence[str]) -> Int[np.ndarray, "k n"]:
        return tokenizer.tokenize(clip(), [expand(line) for line in texts], length, rows())

    def truncate(words: str, ending: str = "") -> str:
        return tokenizer.truncate(clip(), words, ending, length, expand)

    def extend(params: Any) -> Any:
        if not added:
            return params
        table = at(params, TABLE)
        table = jnp.concatenate([table, jnp.zeros((rows() - len(table), table.shape[1]), table.dtype)])
        vectors = jnp.concatenate([jnp.asarray(own, table.dtype) for own in added.values()])
        return replaced(params, TABLE, table.at[jnp.asarray(ids_of_added())].set(vectors))

    return Tower(ids, network, lambda: clip().eos_token_id, truncate, extend)


def context_shape(folder: Path) -> tuple[int, int]:
    """The shape of one embedded text, without tokenizer and weights.

    Args:
        folder: in diffusers layout.

    Returns:
        Rows and width.
    """
    configs = [read_config(folder / ALL_PARTS[part][0] / "config.json") for part in text_parts(folder)]
    length, width = configs[0]["max_position_embeddings"], sum(config["hidden_size"] for config in configs)
    return length + (pooled_rows(configs[-1]["projection_dim"], width) if len(configs) > 1 else 0), width


def names_of(token: str, n: int) -> list[str]:
    """The names in the tokenizer of the n tokens that a `token` of prompts stands for; no text of a user has them."""
    return [f"<|{token}|{i}|>" for i in range(n)]


def expander(names: Mapping[str, Sequence[str]]) -> Callable[[str], str]:
    """Builds a function that writes the tokens of textual inversions out: one word for each vector.

    Args:
        names: {token: words}.

    Returns:
        text -> text. Tokens are found in any case, and not inside other words.

    Examples:
        >>> expander({"toy": ["<|toy|0|>", "<|toy|1|>"]})("a Toy, no toyota")
        'a <|toy|0|> <|toy|1|>, no toyota'
    """
    if not names:
        return lambda text: text
    words = {token.lower(): " ".join(own) for token, own in names.items()}
    return lambda text: pattern_of(names).sub(lambda match: words[match[0].lower()], text)


def without_tokens(added: Sequence[TokenEmbedding], text: str) -> str:
    """A text without the tokens of textual inversions, for a look at its other words.

    Args:
        added: the textual inversions.
        text: any.

    Returns:
        The text with a space for each token.
    """
    return pattern_of([one.token for one in added]).sub(" ", text) if added else text


def at(tree: Any, path: Sequence[str]) -> Any:
    """The subtree of a tree of dicts at a path."""
    return at(tree[path[0]], path[1:]) if path else tree


def replaced(tree: Any, path: Sequence[str], value: Any) -> Any:
    """A tree of dicts with another value at a path.

    Args:
        tree: nested dicts.
        path: keys from the root.
        value: the new one.

    Returns:
        A new tree; what lies beside the path is shared.

    Examples:
        >>> replaced({"a": {"b": 1, "c": 2}}, ["a", "b"], 3)
        {'a': {'b': 3, 'c': 2}}
    """
    return {**tree, path[0]: replaced(tree[path[0]], path[1:], value)} if path else value
