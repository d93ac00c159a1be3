"""The captions of the sheets of samples: drawn by a rule, and none of them by hand."""

import pytest

from lods_jax.tabletop.dataset import parse_caption
from lods_jax.tabletop.objects import COMPOSITE


@pytest.fixture(scope="module")
def module(experiment):
    return experiment("prior_samples")


def test_a_caption_names_a_view_where_its_kind_has_a_front(module):
    drawn = [parse_caption(text) for subject in module.SUBJECTS.values() for text in module.drawn(*subject)]
    assert all((c.view is not None) == (c.kind in COMPOSITE) for c in drawn)


@pytest.mark.parametrize("name", ["robots", "snowmen"])
def test_faces_are_counted_from_the_front(module, name):
    assert {parse_caption(text).view for text in module.drawn(*module.SUBJECTS[name])} == {"front"}
