import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lods_jax.priors import tokenizer

WORD_LISTS = st.lists(st.from_regex(tokenizer.WORD, fullmatch=True).filter(lambda w: len(w) < 16), max_size=20)


@given(WORD_LISTS, st.text("ab", min_size=1, max_size=12))
def test_every_word_of_a_vocabulary_is_one_token(words, dense):
    """Words over two letters share most of their pairs, where a merge for one could break another."""
    words = [*words, *(dense[:i] for i in range(1, len(dense) + 1)), dense[::-1]]
    clip = tokenizer.from_words(words)
    ids = tokenizer.tokenize(clip, words, 3)
    assert clip.convert_ids_to_tokens(ids[:, 1]) == [word + "</w>" for word in words]
    assert np.all(ids[:, 0] == clip.bos_token_id)
    assert np.all(ids[:, 2] == clip.eos_token_id)


@given(WORD_LISTS)
def test_words_ids_are_distinct_and_within_the_vocabulary(words):
    vocabulary, merges = tokenizer.build_vocabulary(words)
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(set(merges)) == len(merges)


@pytest.mark.parametrize("word", ["Mug", "two words", "t-shirt", "", "é", "mug3", ".."])
def test_a_word_that_clip_would_split_or_change_is_refused(word):
    with pytest.raises(ValueError, match="letters a to z or one punctuation mark"):
        tokenizer.build_vocabulary(["a", word])


def test_texts_are_cut_and_padded_to_one_length():
    clip = tokenizer.from_words(["a", "red", "mug", ","])
    ids = tokenizer.tokenize(clip, ["", "A red  mug, a", "a red mug a red mug"], 6)
    end = clip.eos_token_id
    assert ids.dtype == np.int32
    assert clip.convert_ids_to_tokens(ids[1]) == [
        tokenizer.START,
        "a</w>",
        "red</w>",
        "mug</w>",
        ",</w>",
        tokenizer.END,
    ]
    assert list(ids[0]) == [clip.bos_token_id] + [end] * 5
    assert ids[2, -1] == end


def test_the_fixtures_tokens_are_those_of_clip(sd, arrays):
    """`a red mug` encoded by the tokenizer that made the fixture decodes to what was said."""
    clip = tokenizer.load_tokenizer(sd)
    texts = [clip.decode(row, skip_special_tokens=True) for row in np.asarray(arrays["input_ids"])]
    np.testing.assert_array_equal(tokenizer.tokenize(clip, texts, 77), arrays["input_ids"])


def test_unknown_words_are_found_whatever_their_case_and_marks():
    assert tokenizer.unknown_words("A red Dragon, 3 mugs.", ["a", "red", ","]) == ["dragon", "3", "mugs", "."]


def test_a_missing_tokenizer_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vocab\.json is missing, and so is tokenizer\.json: expected a CLIP tokenizer"):
        tokenizer.load_tokenizer(tmp_path)


@given(st.lists(st.sampled_from(["a", "red", "mug", "x" * 9, ",", "日本語"]), max_size=30), st.integers(4, 40))
def test_a_text_is_cut_to_the_most_whole_words_that_fit_with_its_ending(words, length):
    text, ending = " ".join(words), ", side view"
    fits = lambda text: len(CLIP(text + ending)["input_ids"]) <= length  # noqa: E731
    ends = [" ".join(words[:i]) for i in range(len(words) + 1)]
    if words and not fits(words[0]):
        ends = [text[:i] for i in range(len(text))]
    expected = text if fits(text) else max(filter(fits, ends), key=len, default="").rstrip(" ,")
    assert tokenizer.truncate(CLIP, text, ending, length) == expected


CLIP = tokenizer.from_words(["a", "red", "mug", "side", "view", ","])


def test_one_line_tells_what_a_prior_does_not_read():
    truncate = lambda text, ending="": text[: 12 - len(ending)]  # noqa: E731
    said = tokenizer.left_out(truncate, {"prompt": "a red mug", "negative prompt": "a blurry picture"}, [", at", ", above"])
    assert said == "longer than this prior reads; left out is the end of the prompt: 'mug' and of the negative prompt: 'ture'"
    assert tokenizer.left_out(truncate, {"prompt": "a mug", "negative prompt": ""}, [", at"]) == ""
