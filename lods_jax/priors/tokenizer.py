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
    """Token ids and merges of a CLIP tokenizer in which each of `words` is one token.

    The first 512 tokens are the bytes, inside a word and at its end, so that any other text has tokens too.
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
    """The symbols of an ASCII word after byte-pair encoding."""
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
    """A tokenizer for `words` as the text files of a Stable Diffusion folder, by their path in it.

    `vocabulary.json` beside them lists the words: a network trained on these alone knows no others.
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


def load_tokenizer(folder: Path) -> Any:
    """The CLIP tokenizer of a Stable Diffusion folder, from vocab.json and merges.txt or from tokenizer.json.

    transformers 5 saves the latter alone. Where there are both, the former are read, as by transformers 4.

    Raises:
      FileNotFoundError: neither is there.
      ValueError: in one line, for files that hold no CLIP tokenizer.
    """
    directory = folder / "tokenizer"
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
        clip = (CLIPTokenizer if slow else CLIPTokenizerFast).from_pretrained(directory)
        clip("a mug")
    except Exception as error:  # of the types that transformers and tokenizers raise for a damaged file none is their own
        raise ValueError(f"{directory} holds no CLIP tokenizer: {one_line(error, 200)}") from None
    return clip


def check_ids(file: Path) -> None:
    """Raises ValueError unless vocab.json is an object of tokens and their ids."""
    for token, number in read_config(file).items():
        if type(number) is not int or not 0 <= number < 2**31:
            raise ValueError(f"{file}: the id of {token!r} must be a whole number from 0 on, got {number!r:.100}")


def tokenize(tokenizer: Any, texts: Sequence[str], length: int, rows: int = 2**31) -> Int[np.ndarray, "k n"]:
    """Ids of each text between the start and the end token, cut and padded to `length`.

    Args:
      rows: of the text encoder's table of embeddings.

    Raises:
      ValueError: an id is not in the table: words were added to the tokenizer alone.
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


def truncate(tokenizer: Any, text: str, ending: str, length: int) -> str:
    """The longest beginning of `text`, in whole words, that has a place in `length` tokens together with `ending`.

    A text whose first word is too long, as a text without spaces is, is cut between letters.
    """
    too_long = lambda end: len(tokenizer.tokenize(text[:end] + ending)) > length - 2  # noqa: E731 (start and end token)
    if not too_long(len(text)):
        return text
    ends = [0, *(match.end() for match in re.finditer(r"\S+", text))]
    if len(ends) > 1 and too_long(ends[1]):
        ends = range(len(text))
    return text[: ends[max(0, bisect_left(ends, True, key=too_long) - 1)]].rstrip(" ,;:")


def left_out(truncate: Callable[[str, str], str], texts: Mapping[str, str], endings: Sequence[str] = ("",)) -> str:
    """One line on what a prior does not read of some texts; "" if it reads all.

    Args:
      truncate: of the prior.
      texts: by what a person calls them: "prompt", "negative prompt".
      endings: what may follow the prompt.
    """
    lost = []
    for name, text in texts.items():
        kept = min((truncate(text, ending) for ending in (endings if name == "prompt" else [""])), key=len)
        if kept != text:
            lost.append(f"of the {name}: {shorten(text[len(kept) :], 200, placeholder=' ...')!r}")
    return f"longer than this prior reads; left out is the end {' and '.join(lost)}" if lost else ""


def unknown_words(text: str, words: Iterable[str]) -> list[str]:
    """The words and marks of `text` that are not among `words`, in their order."""
    known = set(words)
    return [word for word in re.findall(r"[^\W\d_]+|\S", text.lower()) if word not in known]
