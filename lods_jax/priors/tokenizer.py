"""Text to token ids with a CLIP tokenizer, and small vocabularies in which every known word is one token.

A CLIP tokenizer splits a text into words (runs of letters, single digits, runs of other characters), and a word into
symbols by byte-pair encoding (Sennrich et al. 2016): of all merges that apply, the earliest in the list goes first.
"""

import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

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
    """The CLIPTokenizer of a Stable Diffusion folder."""
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    directory = folder / "tokenizer"
    for name in ("vocab.json", "merges.txt"):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name} is missing: expected a CLIP tokenizer there")
    return CLIPTokenizer.from_pretrained(directory)


def tokenize(tokenizer: Any, texts: Sequence[str], length: int) -> Int[np.ndarray, "k n"]:
    """Ids of each text between the start and the end token, cut and padded to `length`."""
    encoded = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="np")
    return encoded["input_ids"].astype(np.int32)


def unknown_words(text: str, words: Iterable[str]) -> list[str]:
    """The words and marks of `text` that are not among `words`, in their order."""
    known = set(words)
    return [word for word in re.findall(r"[^\W\d_]+|\S", text.lower()) if word not in known]
