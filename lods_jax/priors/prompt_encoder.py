"""Texts to the context of a U-Net: vocabulary, tokenizer, text encoder, and the words that textual inversions add to them."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lods_jax.priors import flax_networks, tokenizer
from lods_jax.priors.diffusers_folder import PARTS, read_config, read_vocabulary
from lods_jax.priors.user_adapters import TokenEmbedding, read_token_embeddings

TABLE = ("text_model", "embeddings", "token_embedding", "embedding")  # the path of the token embeddings [vocabulary w]


class PromptEncoder(NamedTuple):
    """The functions of a `Prior` that read texts.

    Attributes:
        embed: (weights, texts) -> tokens [k n w].
        truncate: (text, ending) -> text, cut so that the ending fits behind it.
        extend: parameters of the text encoder -> the same with the vectors of the textual inversions in its table.
    """

    embed: Callable
    truncate: Callable[..., str]
    extend: Callable[[Any], Any]


def prompt_encoder(folder: Path, text: nn.Module, strict: bool = True, embeddings: Sequence[str | Path] = ()) -> PromptEncoder:
    """The prompt encoder of a Stable Diffusion folder.

    Args:
        folder: in diffusers layout.
        text: its text encoder.
        strict: whether texts with words outside the folder's `vocabulary.json` are refused; words of `embeddings` are known.
        embeddings: files of textual inversions.

    Returns:
        Its functions. `embed` takes the weights that `extend` has seen.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is malformed, or of another text encoder.
    """
    known = read_vocabulary(folder) if strict else None
    length, size = text.config.max_position_embeddings, text.config.vocab_size
    added = read_token_embeddings(embeddings, text.config.hidden_size)
    expand = expander({one.token: names_of(one) for one in added})

    @cache
    def clip() -> Any:
        return tokenizer.with_tokens(tokenizer.load_tokenizer(folder), [name for one in added for name in names_of(one)])

    @cache
    def ids_of_added() -> dict[str, int]:
        return {name: clip().convert_tokens_to_ids(name) for one in added for name in names_of(one)}

    @cache
    def encode() -> tuple[Callable, int]:
        """The compiled text encoder, and the rows of its table. New ids follow the tokenizer's, wherever the table ends."""
        rows = max([size - 1, *ids_of_added().values()]) + 1
        module = text
        if rows > size:
            config = read_config(folder / PARTS["text"][0] / "config.json")
            module = flax_networks.text_encoder(config.get("text_config", config) | {"vocab_size": rows})
        return jax.jit(partial(flax_networks.encode_text, module)), rows

    def embed(weights: dict, texts: Sequence[str]) -> Float[Array, "k n w"]:
        for line in texts if known is not None else ():
            if unknown := tokenizer.unknown_words(without_tokens(added, line), known.words):
                raise ValueError(f"unknown word {unknown[0]!r} in {line!r}; it may use: {', '.join(sorted(known.words))}")
        encode_text, rows = encode()
        ids = tokenizer.tokenize(clip(), [expand(line) for line in texts], length, rows)
        return encode_text(weights["text"], jnp.asarray(ids))

    def truncate(words: str, ending: str = "") -> str:
        return tokenizer.truncate(clip(), words, ending, length, expand)

    def extend(params: Any) -> Any:
        if not added:
            return params
        table, ids = at(params, TABLE), ids_of_added()
        table = jnp.concatenate([table, jnp.zeros((encode()[1] - len(table), table.shape[1]), table.dtype)])
        rows = jnp.asarray([ids[name] for one in added for name in names_of(one)])
        return replaced(
            params, TABLE, table.at[rows].set(jnp.concatenate([jnp.asarray(one.vectors, table.dtype) for one in added]))
        )

    return PromptEncoder(embed, truncate, extend)


def names_of(one: TokenEmbedding) -> list[str]:
    """The names in the tokenizer of the tokens that one textual inversion stands for; no text of a user has them."""
    return [f"<|{one.token}|{i}|>" for i in range(len(one.vectors))]


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


def pattern_of(tokens: Sequence[str] | Mapping[str, Any]) -> re.Pattern:
    """A pattern that finds tokens, the longest first, which are no part of another word."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)


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
