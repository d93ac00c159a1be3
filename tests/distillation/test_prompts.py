import pytest

from lods_jax.core.cameras import VIEWS
from lods_jax.core.errors import UserError
from lods_jax.distillation.prompts import prompt_table
from lods_jax.distillation.registry import make_objective


def test_each_view_has_its_row_and_the_negative_prompt_has_no_view():
    table = prompt_table("a red mug", "blurry")
    assert dict(zip(VIEWS, table["prompt"], strict=True))["back"] == "a red mug, back view"
    assert set(table["null"]) == {"blurry"}
    assert set(table["plain"]) == {"a red mug"}


def test_a_thing_without_a_front_has_no_view_words():
    assert set(prompt_table("a red ball", with_view=False)["prompt"]) == {"a red ball"}


def test_a_word_is_left_out_of_the_views_that_it_contradicts():
    table = prompt_table("a smiling robot", without={"smiling": ("back", "side")})
    rows = dict(zip(VIEWS, table["prompt"], strict=True))
    assert rows["back"] == "a robot, back view"
    assert rows["front"] == "a smiling robot, front view"
    assert set(table["plain"]) == {"a smiling robot"}


def test_a_prompt_that_is_too_long_keeps_the_words_of_its_views():
    """A prior that reads 20 characters: without the view's words all four rows would be one."""
    table = prompt_table("a mug of blue porcelain", truncate=lambda text, ending: text[: 20 - len(ending)])
    assert dict(zip(VIEWS, table["prompt"], strict=True))["front"] == "a mug of, front view"
    assert len(set(table["prompt"])) == len(VIEWS)
    assert all(len(row) == 20 and row.endswith(" view") for row in table["prompt"])
    assert set(table["plain"]) == {"a mug of blue porcelain"}  # the tokenizer cuts it, as in PyTorch


@pytest.mark.parametrize(
    ("without", "says"),
    [
        ({"angry": ("back",)}, "'angry', which is no word of the prompt"),
        ({"robot": ("behind",)}, "out of the view 'behind'; there are side, front"),
        ({"a": ("back",), "smiling": ("back",), "robot": ("back",)}, "nothing of the prompt"),
    ],
)
def test_words_that_cannot_be_left_out_are_named(without, says):
    with pytest.raises(ValueError, match=says):
        prompt_table("a smiling robot", without=without)


def test_the_adapter_has_a_text_of_its_own():
    assert prompt_table("a mug", "blurry", adapter="<new1>")["adapter"] == ["<new1>"] * 4
    assert "adapter" not in prompt_table("a mug", "blurry")
    asked = make_objective("lods-lora", options={"adapter_text": "adapter"})
    assert asked.queries[asked.trained_query].text == "adapter"
    with pytest.raises(UserError, match="sds takes no adapter_text"):
        make_objective("sds", options={"adapter_text": "adapter"})
