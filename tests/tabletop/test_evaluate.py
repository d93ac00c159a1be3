"""The gates on priors whose figures are known: one that ignores the text, one that hears only colours, a worse VAE."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lods_jax.core.cameras import VIEWS
from lods_jax.priors.gaussian import gaussian
from lods_jax.tabletop import evaluate
from lods_jax.tabletop.classifier import ClassifierOutput
from lods_jax.tabletop.dataset import COLORS, KINDS, PATTERNS, Caption, Renders, caption_of, held_out, parse_caption
from lods_jax.tabletop.objects import COMPOSITE

PRIMITIVES = tuple(kind for kind in KINDS if kind not in COMPOSITE)
labels = st.tuples(*(st.integers(0, len(names) - 1) for names in (KINDS, COLORS, PATTERNS, VIEWS))).map(np.array)


class Means(dict):
    """The mean image of every caption: a brightness of its colour."""

    def __missing__(self, text):
        return list(COLORS).index(parse_caption(text).color) / 10

    def __contains__(self, text):
        return True


HEARS_COLORS = gaussian(Means({"": 0.3}))
DEAF = HEARS_COLORS._replace(embed=lambda weights, texts: np.full((len(texts), 1, 1), 0.3, np.float32))


@pytest.fixture(scope="module")
def renders():
    """Two images of every kind, as bright as a prior that hears colours expects."""
    rng, kind = np.random.default_rng(0), np.arange(24) % 12
    rows = np.stack([kind, *(rng.integers(n, size=24) for n in (8, 3, 4))], 1)
    image = rows[:, 1, None, None, None] / 10 + rng.normal(scale=0.1, size=(24, 8, 8, 3))
    return Renders((255 * image.clip(0, 1)).astype(np.uint8), rows, *np.zeros((3, 24)))


# --- caption swap -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("attribute", ["kind", "color", "view"])
@given(labels, st.integers(0, 9))
def test_a_wrong_caption_is_wrong_in_one_attribute(attribute, row, seed):
    right, wrong = caption_of(row), evaluate.wrong(np.random.default_rng(seed), row, attribute)
    assert [name for name in Caption._fields if getattr(right, name) != getattr(wrong, name)] == [attribute]
    assert (right.kind in COMPOSITE) == (wrong.kind in COMPOSITE)


def test_every_wrong_color_has_its_turn():
    rng, red = np.random.default_rng(0), np.zeros(4, int)
    assert {evaluate.wrong(rng, red, "color").color for _ in range(100)} == set(COLORS) - {"red"}


def test_no_caption_makes_a_difference_to_a_prior_that_ignores_the_text(renders):
    swap = evaluate.caption_swap(DEAF, {}, renders, draws=2)
    assert swap["correct"][0] > 0
    assert swap["color"] == swap["kind"] == swap["view"] == (0, 0)


def test_a_prior_that_hears_colors_is_disturbed_by_wrong_colors_alone(renders):
    swap = evaluate.caption_swap(HEARS_COLORS, {}, renders, draws=2)
    assert swap["color"][0] > 3 * swap["color"][1] > 0
    assert swap["kind"] == swap["view"] == (0, 0)


# --- samples ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_the_captions_to_sample_show_every_kind_equally_often_and_every_view(split):
    asked = evaluate.sample_captions(split)
    assert {held_out(*caption[:3]) for caption in asked} == {split == "unseen"}
    assert [caption.kind for caption in asked] == list(KINDS) * 8
    for kind in KINDS:
        views = sorted(str(caption.view) for caption in asked if caption.kind == kind)
        assert views == sorted(2 * VIEWS if kind in COMPOSITE else ["None"] * 8)


def test_the_caption_of_a_seed_does_not_depend_on_how_many_there_are():
    assert evaluate.sample_captions("seen", 30) == evaluate.sample_captions("seen")[:30]


@pytest.fixture(scope="module")
def sample():
    return evaluate.sampler(HEARS_COLORS._replace(decode=lambda weights, z: z), {})


def test_samples_are_guided_from_no_text_towards_their_text(sample):
    """In closed form, as in test_sampling: from 0.3 by 4 times the difference to 0 for red, and to 0.3 for green."""
    means = sample(["a red ball", "a green ball"], [0, 1]).mean((1, 2, 3))
    np.testing.assert_allclose(means, [0.3 + evaluate.SCALE * (0.0 - 0.3), 0.3], atol=0.05)  # DDIM keeps 3 % of its start


def test_an_image_depends_on_its_own_text_and_seed_alone(sample):
    """50 images are two chunks, of which the second is filled up."""
    texts = ["a red ball", "a green ball"] * 25
    images = sample(texts, list(range(50)))
    for i in (1, 49):
        np.testing.assert_allclose(images[i : i + 1], sample(texts[i : i + 1], [i]), atol=1e-5)
    assert np.abs(images[0] - images[2]).mean() > 0.1


def test_agreement_counts_what_was_read_as_asked_and_views_only_where_one_was_asked():
    asked = [Caption("ball", "red"), Caption("mug", "red", "striped", "front"), Caption("mug", "blue", "plain", "back")]
    right = [[KINDS.index(c.kind) for c in asked], [0, 0, 4], [0, 1, 0], [0, 1, 2]]
    read = ClassifierOutput(*map(np.array, right), np.ones(3), np.zeros((3, 1)))
    assert set(evaluate.agreement(read, asked).values()) == {1}
    other = read._replace(kind=np.array([0, 0, 4]), color=np.array([1, 1, 1]), view=np.array([3, 1, 3]))
    assert evaluate.agreement(other, asked) == pytest.approx(
        {"kind": 2 / 3, "color": 0, "pattern": 1, "view": 1 / 2, "quality": 1}
    )


# --- figures ----------------------------------------------------------------------------------------------------------
def test_a_decoder_that_is_off_by_a_tenth_has_20_decibels():
    off = HEARS_COLORS._replace(decode=lambda weights, z: z + 0.1)
    assert evaluate.vae_psnr(off, {}, np.full((3, 4, 4, 3), 51, np.uint8)) == pytest.approx(20, abs=1e-4)


def test_the_table_says_which_gates_are_passed_and_which_are_missed():
    limit = evaluate.GATES["samples: kind"]
    lines = evaluate.table({"samples: kind": limit, "samples: color": 0.0, "no gate": 1.0, "captions": ["a mug"]}).splitlines()
    ends = [line.split()[-1] for line in lines[2:]]
    assert ends == ["pass", "MISSED", "1"]
