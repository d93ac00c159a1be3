"""Text to token ids with a CLIP tokenizer, and small vocabularies in which every known word is one token.

A CLIP tokenizer splits a text into words (runs of letters, single digits, runs of other characters), and a word into
symbols by byte-pair encoding (Sennrich et al. 2016): of all merges that apply, the earliest in the list goes first.
"""

import json
import re
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from jaxtyping import Int

from lods_jax.core.errors import one_line
from lods_jax.priors.diffusers_folder import read_config

Merge = tuple[str, str]

START, END = "<|startoftext|>", "<|endoftext|>"
WORD = r"[a-z]+|[!-@[-`{-~]"  # ASCII: letters, or one other character


def build_vocabulary(words: Iterable[str]) -> tuple[dict[str, int], list[Merge]]:
    """Token ids and merges of a CLIP tokenizer in which each of the words is one token.

    The first 512 tokens are the bytes, inside a word and at its end, so that any other text has tokens too.

    Args:
        words: letters a to z, or one punctuation mark each.

    Returns:
        {token: id}, and the merges in their order.

    Raises:
        ValueError: a word has other characters.
    """
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    words = list(words)
    ranks: dict[Merge, int] = {}
    for word in words:
        if not re.fullmatch(WORD, word):
            raise ValueError(f"a word of a vocabulary is letters a to z or one punctuation mark, got {word!r}")
        # A new merge is the last in the list: it acts only where no earlier one does, so that earlier words stay whole.
        while len(symbols := split(word, ranks)) > 1:
            ranks[symbols[0], symbols[1]] = len(ranks)
    assert all(len(split(word, ranks)) == 1 for word in words)
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in ranks), START, END]
    # Two merges may spell the same token, ab + c and a + bc: dict.fromkeys keeps one of them.
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, list(ranks)


def split(word: str, ranks: dict[Merge, int]) -> list[str]:
    """The symbols of an ASCII word after byte-pair encoding.

    Args:
        word: not empty.
        ranks: {pair of symbols: rank}; the lowest rank merges first.

    Returns:
        Symbols; the last one ends in "</w>".

    Examples:
        >>> split("mug", {("m", "u"): 0})
        ['mu', 'g</w>']
    """
    symbols = [*word[:-1], word[-1] + "</w>"]
    while known := [pair for pair in pairwise(symbols) if pair in ranks]:
        first, second = min(known, key=ranks.__getitem__)
        merged = []
        for symbol in symbols:
            if symbol == second and merged and merged[-1] == first:
                merged[-1] = first + second
            else:
                merged.append(symbol)
        symbols = merged
    return symbols


def files(words: Sequence[str], length: int = 77) -> dict[str, str]:
    """The text files of a tokenizer for a few words.

    `vocabulary.json` lists the words, since a network trained on them alone knows no others.

    Args:
        words: each becomes one token.
        length: of a tokenized text.

    Returns:
        {path in a Stable Diffusion folder: content}.
    """
    vocabulary, merges = build_vocabulary(words)
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **special}
    return {
        "tokenizer/vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "tokenizer/merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n",
        "tokenizer/tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "tokenizer/special_tokens_map.json": json.dumps(special, indent=2) + "\n",
        "vocabulary.json": json.dumps({"words": list(words)}, indent=2) + "\n",
    }


def from_words(words: Sequence[str]) -> Any:
    """The CLIPTokenizer of `files(words)`."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files(words).items():
            file = Path(folder) / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return load_tokenizer(Path(folder))


def load_tokenizer(folder: Path, part: str = "tokenizer") -> Any:
    """The CLIP tokenizer of a folder, from vocab.json and merges.txt or from tokenizer.json.

    transformers 5 saves only the latter. Where there are both, the former are read, as by transformers 4.

    Args:
        folder: in diffusers layout.
        part: folder of the files within it; "" for a CLIP alone, as transformers saves it.

    Returns:
        A tokenizer of transformers.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: the files hold no CLIP tokenizer; one line.
    """
    directory = folder / part
    slow = (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file()
    if not slow and not (directory / "tokenizer.json").is_file():
        missing = "merges.txt" if (directory / "vocab.json").is_file() else "vocab.json"
        beside = "and so is tokenizer.json: expected a CLIP tokenizer there"
        raise FileNotFoundError(f"{directory / missing} is missing, {beside}")
    if slow:
        check_ids(directory / "vocab.json")
    from transformers.models.clip.tokenization_clip import CLIPTokenizer
    from transformers.models.clip.tokenization_clip_fast import CLIPTokenizerFast

    try:
        # `tokenize` cuts to the length that it is given; with a limit of its own the tokenizer warns of what is only counted.
        clip = (CLIPTokenizer if slow else CLIPTokenizerFast).from_pretrained(directory, model_max_length=2**31)
        clip("a mug")
    except Exception as error:  # of the types that transformers and tokenizers raise for a damaged file none is their own
        raise ValueError(f"{directory} holds no CLIP tokenizer: {one_line(error, 200)}") from None
    return clip


def with_tokens(tokenizer: Any, words: Sequence[str]) -> Any:
    """A tokenizer after words were added to it that are one token each, as they are written.

    Args:
        tokenizer: from `load_tokenizer`; it is changed.
        words: new ones.

    Returns:
        The tokenizer.
    """
    from transformers import AddedToken

    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer


def check_ids(file: Path) -> None:
    """Checks that vocab.json is an object of tokens and their ids.

    Args:
        file: its path.

    Raises:
        ValueError: it is not.
    """
    for token, number in read_config(file).items():
        if type(number) is not int or not 0 <= number < 2**31:
            raise ValueError(f"{file}: the id of {token!r} must be a whole number from 0 on, got {number!r:.100}")


def tokenize(tokenizer: Any, texts: Sequence[str], length: int, rows: int = 2**31) -> Int[np.ndarray, "k n"]:
    """Token ids of texts between the start and the end token, cut and padded.

    Args:
        tokenizer: from `load_tokenizer`.
        texts: k texts.
        length: of the result.
        rows: size of the text encoder's embedding table.

    Returns:
        Ids [k length].

    Raises:
        ValueError: the tokenizer fails, or gives an id outside the table, as after words were added to the tokenizer alone.
    """
    try:
        encoded = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length)["input_ids"]
        ids = np.asarray(encoded, np.int64)
    except Exception as error:  # as `load_tokenizer`
        raise ValueError(f"{tokenizer.name_or_path} holds a tokenizer that fails: {one_line(error, 200)}") from None
    if (beyond := ids[(ids < 0) | (ids >= rows)]).size:
        token = tokenizer.convert_ids_to_tokens(int(beyond[0]))
        table = f"the text encoder has embeddings for 0 to {rows - 1}"
        raise ValueError(
            f"{tokenizer.name_or_path} gives {token!r} the id {beyond[0]}, and {table}: words that were added to a tokenizer, "
            "as for a textual inversion, must be added to the text encoder too"
        )
    return ids.astype(np.int32)


def truncate(tokenizer: Any, text: str, ending: str, length: int, expand: Callable[[str], str] = str) -> str:
    """The longest beginning of a text, in whole words, that fits into `length` tokens together with an ending.

    A text whose first word is too long, as one without spaces, is cut between letters.

    Args:
        tokenizer: from `load_tokenizer`.
        text: to be cut.
        ending: follows the text; it is counted and not returned.
        length: in tokens, start and end token included.
        expand: text -> text, writes words out that stand for several tokens.

    Returns:
        The beginning, without trailing spaces and commas.
    """
    too_long = lambda end: len(tokenizer.tokenize(expand(text[:end] + ending))) > length - 2  # noqa: E731 (start and end token)
    if not too_long(len(text)):
        return text
    ends = [0, *(match.end() for match in re.finditer(r"\S+", text))]
    if len(ends) > 1 and too_long(ends[1]):
        ends = range(len(text))
    return text[: ends[max(0, bisect_left(ends, True, key=too_long) - 1)]].rstrip(" ,;:")


def left_out(truncate: Callable[[str, str], str], texts: Mapping[str, str], endings: Sequence[str] = ("",)) -> str:
    """One line that tells which ends of texts a prior does not read.

    Args:
        truncate: (text, ending) -> text, of the prior.
        texts: {name for the user: text}; "prompt" is followed by an ending.
        endings: what may follow the prompt.

    Returns:
        The line; "" if all is read.
    """
    lost = []
    for name, text in texts.items():
        kept = min((truncate(text, ending) for ending in (endings if name == "prompt" else [""])), key=len)
        if kept != text:
            lost.append(f"of the {name}: {shorten(text[len(kept) :], 200, placeholder=' ...')!r}")
    return f"longer than this prior reads; left out is the end {' and '.join(lost)}" if lost else ""


def unknown_words(text: str, words: Iterable[str]) -> list[str]:
    """The words and punctuation marks of a text that are not among `words`, in their order.

    Args:
        text: of any words.
        words: the known ones.

    Returns:
        The others, in lower case.

    Examples:
        >>> unknown_words("a red dragon", ["a", "red"])
        ['dragon']
    """
    known = set(words)
    return [word for word in re.findall(r"[^\W\d_]+|\S", text.lower()) if word not in known]
