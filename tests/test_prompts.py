from lods_jax.cameras import VIEWS
from lods_jax.prompts import prompt_table


def test_each_view_has_its_row_and_the_negative_prompt_has_no_view():
    table = prompt_table("a red mug", "blurry")
    assert dict(zip(VIEWS, table["prompt"], strict=True))["back"] == "a red mug, back view"
    assert set(table["null"]) == {"blurry"}
    assert set(table["plain"]) == {"a red mug"}


def test_a_thing_without_a_front_has_no_view_words():
    assert set(prompt_table("a red ball", with_view=False)["prompt"]) == {"a red ball"}
