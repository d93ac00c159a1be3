"""Captions say what renders show: the grammar, the split, and the labels, cameras and backgrounds of random renders."""

import re
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lods_jax.core.cameras import TABLETOP, VIEWS, turntable, view_of
from lods_jax.priors.tokenizer import from_words, tokenize
from lods_jax.tabletop import dataset
from lods_jax.tabletop.dataset import (
    WORDS,
    Caption,
    boundary_distance,
    caption_of,
    captions,
    held_out,
    parse_caption,
    render_caption,
    sample_renders,
)
from lods_jax.tabletop.objects import COLORS, COMPOSITE, KINDS, PATTERNS

EVERY = [Caption(*words) for words in product(KINDS, [*COLORS, None], PATTERNS, [*VIEWS, None])]
PER_KIND = {"ball": 8, "mug": 8}
SIZE = 16


# --- captions ---------------------------------------------------------------------------------------------------------
@given(st.sampled_from(EVERY))
def test_a_caption_reads_back_as_its_attributes(caption):
    assert parse_caption(str(caption)) == caption


@given(st.data(), st.sampled_from(EVERY))
def test_case_commas_and_the_order_of_words_do_not_matter(data, caption):
    words = data.draw(st.permutations(str(caption).upper().replace(",", " ,").split()))
    assert parse_caption(" ".join(words)) == caption


def test_captions_are_english():
    assert str(Caption("mug", "red", "striped", "side")) == "a red striped mug, side view"
    assert str(Caption("ball", "orange")) == "an orange ball"
    assert str(Caption("car", view="overhead")) == "a car, overhead view"


@given(st.sampled_from(EVERY))
def test_the_article_is_an_before_a_vowel_and_a_before_a_consonant(caption):
    assert re.match(r"an [aeiou]|a [^aeiou]", str(caption))


def test_every_word_is_one_token_and_the_longest_caption_has_nine():
    ids = tokenize(from_words(WORDS), [str(c) for c in EVERY], 77)
    words = [len(re.findall(r"\w+|,", str(c))) for c in EVERY]
    end = ids.max()  # the end token has the last id, and fills the rest
    np.testing.assert_array_equal(np.argmax(ids == end, 1) + 1, np.array(words) + 2)
    assert max(words) + 2 == 9


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a red teapot", "unknown words teapot"),
        ("a big red hot mug", "unknown words big, hot"),
        ("red", "no kind of object"),
        ("", "no kind of object"),
    ],
)
def test_a_caption_that_names_nothing_known_is_refused_in_one_line(text, what):
    with pytest.raises(ValueError, match=f"^caption '{text}' has {what}; a caption reads like .*view'$"):
        parse_caption(text)


# --- splits -----------------------------------------------------------------------------------------------------------
def test_seen_and_unseen_are_disjoint_and_complete():
    seen, unseen = set(captions("seen")), set(captions("unseen"))
    assert not seen & unseen
    assert seen | unseen == set(captions("all")) == {c for c in EVERY if c.color and not c.view}


def test_the_held_out_share_is_what_the_threshold_says():
    """A hash under 0.15 holds a triple out: three standard errors of 288 draws are 0.063."""
    assert abs(len(captions("unseen")) / len(captions("all")) - 0.15) < 0.063


def test_what_is_held_out_together_is_seen_apart():
    seen = captions("seen")
    assert {(c.kind, c.pattern) for c in seen} == set(product(KINDS, PATTERNS))
    assert {(c.color, c.pattern) for c in seen} == set(product(COLORS, PATTERNS))
    assert {c.kind for c in captions("unseen")} == set(KINDS)


def test_the_split_never_changes():
    """Weights were trained without these: in another split they would count as unseen what they have seen."""
    first = ["a red striped ball", "a white checkered ball", "an orange striped cube", "a yellow cube"]
    assert [str(c) for c in captions("unseen")][:4] == first
    assert len(captions("unseen")) == 54


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be seen, unseen or all, got 'test'"):
        captions("test")


# --- labels -----------------------------------------------------------------------------------------------------------
@given(st.tuples(*(st.integers(0, len(names) - 1) for names in (KINDS, COLORS, PATTERNS, VIEWS))))
def test_labels_name_their_caption_with_a_view_only_where_there_is_a_front(labels):
    kind, color, pattern, view = labels
    caption = caption_of(np.array(labels))
    assert caption[:3] == (KINDS[kind], list(COLORS)[color], PATTERNS[pattern])
    assert caption.view == (VIEWS[view] if KINDS[kind] in COMPOSITE else None)


ANGLES = st.tuples(st.floats(-179, 179, width=32), st.floats(-30, 88, width=32))


def to_boundary(azimuth, elevation):
    return float(boundary_distance(*np.deg2rad(np.float32([[azimuth], [elevation]])))[0])


@given(ANGLES, st.floats(-1, 1), st.floats(-1, 1))
def test_a_view_word_holds_for_less_than_the_distance_to_the_boundary(angles, right, up):
    step = 0.999 * to_boundary(*angles)
    views = [
        int(view_of(*jnp.deg2rad(jnp.array([azimuth, elevation]))))
        for azimuth, elevation in (angles, (angles[0] + right * step, angles[1] + up * step))
    ]
    assert views[0] == views[1]


@given(st.sampled_from([45, 135, -45, -135]), st.floats(-30, 60), st.floats(-180, 180))
def test_the_boundary_distance_is_zero_where_the_view_word_changes(limit, elevation, azimuth):
    assert abs(to_boundary(limit, elevation)) < 1e-4  # float32 of degrees
    assert abs(to_boundary(azimuth, TABLETOP.above)) < 1e-4


# --- renders ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def renders():
    return sample_renders(jax.random.key(0), PER_KIND, SIZE)


def test_a_key_determines_the_renders(renders):
    again, other = (sample_renders(jax.random.key(seed), PER_KIND, SIZE) for seed in (0, 1))
    for one, two in zip(renders, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert np.any(renders.rgb != other.rgb)


def test_how_many_are_traced_at_once_changes_nothing(renders):
    """8 renders in chunks of 3 are another compilation: it may round a byte, or decide an edge otherwise."""
    ball, chunked = (sample_renders(jax.random.key(0), {"ball": 8}, SIZE, chunk=chunk) for chunk in (1, 3))
    for one, two in zip(ball[1:], chunked[1:], strict=True):
        np.testing.assert_array_equal(one, two)
    off = np.abs(ball.rgb.astype(int) - chunked.rgb)
    assert np.mean(off > 1) < 1e-3


def test_a_kind_looks_the_same_whichever_kinds_are_drawn_with_it(renders):
    """Only the order differs."""
    alone = sample_renders(jax.random.key(0), {"ball": 8}, SIZE).rgb
    among = renders.rgb[renders.labels[:, 0] == KINDS.index("ball")]
    assert {image.tobytes() for image in among} == {image.tobytes() for image in alone}


def test_labels_agree_with_the_cameras_and_the_counts(renders):
    view = view_of(jnp.asarray(renders.azimuth), jnp.asarray(renders.elevation))
    np.testing.assert_array_equal(view, renders.labels[:, 3])
    kinds, counts = np.unique(renders.labels[:, 0], return_counts=True)
    assert {KINDS[k]: n for k, n in zip(kinds, counts, strict=True)} == PER_KIND


def test_backgrounds_are_even_and_white_or_grey(renders):
    corners = renders.rgb[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(len(renders.rgb), -1)
    np.testing.assert_array_equal(np.ptp(corners, 1), 0)
    shade = corners[:, 0]
    assert np.all((shade == 255) | ((shade >= 0.3 * 255 - 1) & (shade <= 0.9 * 255 + 1)))
    assert 0 < np.mean(shade == 255) < 1


@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_renders_keep_to_their_split(split, monkeypatch):
    """With no renderer behind it: what is drawn, not how it looks."""
    monkeypatch.setattr(dataset, "render_objects", lambda kind, camera, v, *rest, **_: np.zeros((len(v), 1, 1, 4)))
    renders = sample_renders(jax.random.key(0), dict.fromkeys(KINDS, 8), 1, split=split)
    assert {held_out(*caption_of(labels)[:3]) for labels in renders.labels} == {split == "unseen"}
    assert abs(np.mean(renders.rgb == 255) - 0.5) < 4 * 0.5 / 96**0.5  # half are white, within four standard errors


def true_ball(caption, background=1.0):
    return np.asarray(render_caption(caption, turntable(2), SIZE, background=background))


def test_a_caption_is_composited_on_its_background():
    on_white, on_black, on_blue = (true_ball("a red ball", background) for background in (1.0, 0.0, (0.0, 0.0, 1.0)))
    np.testing.assert_array_equal(on_white[..., 3], on_black[..., 3])
    np.testing.assert_allclose(on_white[..., :3] - on_black[..., :3], 1 - on_white[..., 3:].repeat(3, -1), atol=1e-6)
    np.testing.assert_array_equal(on_blue[:, 0, 0], [[0, 0, 1, 0]] * 2)


def test_a_caption_without_a_color_is_white():
    np.testing.assert_array_equal(true_ball("a ball"), true_ball(Caption("ball", "white")))
    assert np.any(true_ball("a ball") != true_ball("a red ball"))
