"""Laws of the YAML reader: what is written is read, a scalar is the text that stands there, and no file takes time or memory."""

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lods_jax.config.yaml_text import MAX_BYTES, read_yaml, write_yaml
from lods_jax.core.errors import UserError

# C1 controls are refused by `config.check`: the library writes U+0085 as a line end.
texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x85\ufeff"), max_size=20)


@given(st.recursive(texts, lambda x: st.lists(x, max_size=4) | st.dictionaries(texts, x, max_size=4), max_leaves=12))
def test_what_is_written_is_read(value):
    assert read_yaml(write_yaml({"key": value}), "it") == {"key": value}


@pytest.mark.parametrize("text", ["off", "1e3", "0400", "12:30", "2024-01-01", "'null'", '"~"', "=", "<<"])
def test_a_scalar_is_the_text_that_stands_there(text):
    assert read_yaml(f"a: {text}", "it") == {"a": text.strip("'\"")}


@pytest.mark.parametrize("text", ["", "~", "null", "NULL"])
def test_only_an_empty_place_and_a_plain_null_are_nothing(text):
    assert read_yaml(f"a: {text}", "it") == {"a": None}


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_a_mark_of_its_encoding_is_no_part_of_a_file(mark):
    assert read_yaml("steps: 5\r\n".encode(mark), "it") == {"steps": "5"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "it has the key a twice, in lines 1 and 3"),
        ("x: {a: 1, a: 1}", "it has the key a twice, in lines 1 and 1"),
        ("{[1]: 2}", "it, line 1: a key must be a word"),
        ("a: 1\n\tb: 2", "line 2"),
        ("a: b: c", "mapping values are not allowed here, line 1"),
        ("a: 1\n--- \nb: 2", "is not YAML"),
        ("a: *b", "undefined alias"),
        (b"caf\xe9", "it is no UTF-8 text, byte 3"),
        (b"a: \0", "is not YAML"),
    ],
)
def test_what_is_no_yaml_is_one_line(text, says):
    with pytest.raises(UserError) as caught:
        read_yaml(text, "it")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_anchor_that_is_named_anew_means_the_new_one_and_warns_nobody(recwarn):
    assert read_yaml("a: &x 1\nb: &x 2\nc: *x", "it") == {"a": "1", "b": "2", "c": "2"}
    assert not recwarn.list


def test_references_in_a_circle_and_nine_to_the_ninth_are_values_like_others():
    assert list(read_yaml("a: &a {b: *a}", "it")) == ["a"]
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    assert len(read_yaml("\n".join(lines), "it")["i"]) == 9


LONG = {
    "large": "a: [" + 400_000 * "1," + "1]",
    "many": "a: [" + 30_000 * "1," + "1]",
    "deep": 2000 * "[",
    "deeper": 100_000 * "[",
    "long": MAX_BYTES * "x",
    "dashes": 60_000 * "- ",
    "questions": 60_000 * "? ",
}


@pytest.mark.parametrize("name", LONG)
def test_what_is_made_to_take_long_does_not(name):
    began = time.monotonic()
    with suppress(UserError):
        read_yaml(LONG[name], "it")
    assert time.monotonic() - began < 5  # half a second here; 22 s it was
