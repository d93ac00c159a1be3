"""Files of prompts: what is read of them, each with its place, and that nothing is taken for a prompt that may be none."""

import pytest

from lods_jax.core.errors import UserError
from lods_jax.runs.prompt_files import MAX_BYTES, pick, read_prompts
from lods_jax.tabletop.dataset import parse_caption


def written(tmp_path, name, text):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


BOTH = ["a red mug", "a blue car"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "# a set\na red mug\n\n  a blue car \na red mug\n"),
        ("p.txt", "a red mug\r\na blue car\r\n"),
        ("p.txt", "a red mug\ra blue car"),
        ("p.txt", '"a red mug"\n“a blue car”\n'),
        ("p.txt", "a red mug\na blue car\n".encode("utf-8-sig")),
        ("p.txt", "a red mug\na blue car\n".encode("utf-16")),
        ("p.json", '["a red mug", ["a blue car"]]'),
        ("P.JSON", '{"dreamfusion": ["a red mug"], "more": {"x": ["a blue car"]}}'),
        ("p.json", '["a red mug", "a blue car"]'.encode("utf-8-sig")),
        ("p.json", '{"version": "1.0", "prompts": [{"id": "p1", "prompt": "a red mug"}, {"caption": "a blue car", "n": 1}]}'),
        ("p.json", '{"version": 1, "library": {"x": ["a red mug", "a blue car"]}}'),
        ("p.jsonl", '{"prompt": "a red mug", "seed": 3}\n\n"a blue car"\n'),
        ("p.ndjson", '{"text": "a red mug"}\n{"text": "a blue car"}'),
        ("p.csv", 'id,Prompt\n1,"a red mug"\n2,a blue car\n'),
        ("p.tsv", "caption\tid\na red mug\t1\na blue car\t2\n"),
    ],
)
def test_a_file_of_two_prompts_has_two(tmp_path, name, text):
    assert list(read_prompts(written(tmp_path, name, text))) == BOTH


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("p.txt", "# a set\n\na red mug", ", line 3"),
        ("p.json", '{"x": ["a car", {"prompt": "a red mug"}]}', ".x[1].prompt"),
        ("p.jsonl", '"a car"\n{"prompt": "a red mug"}', ", line 2.prompt"),
        ("p.csv", "prompt\na car\na red mug\n", ", line 3"),
    ],
)
def test_a_prompt_comes_with_its_place(tmp_path, name, text, place):
    file = written(tmp_path, name, text)
    assert read_prompts(file)["a red mug"] == f"{file}{place}"


def test_the_shipped_set_is_of_the_world_that_the_prior_knows():
    prompts = list(read_prompts("tabletop"))
    assert len(prompts) == 24
    captions = [parse_caption(prompt) for prompt in prompts]
    assert {str(caption) for caption in captions} == set(prompts)
    assert all(sum(c.kind == kind for c in captions) == 2 for kind in {c.kind for c in captions})
    assert all(sum(c.color == color for c in captions) == 3 for color in {c.color for c in captions})


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.txt", "# nothing\n\n", "p.txt holds no prompt"),
        ("p.txt", "x" * (MAX_BYTES + 1), "a file of prompts may have 1000000"),
        ("p.txt", f"a car\n{2001 * 'x'}", "p.txt, line 2: a prompt of 2001 characters; it may have 2000"),
        ("p.txt", b"a car\na caf\xe9", "p.txt, line 2: not UTF-8 text: save it as UTF-8"),
        ("p.txt", b"\xff\xfe\x00", "p.txt, line 1: not UTF-16 text"),
        ("p.json", "{", "p.json is not JSON"),
        ("p.json", 900 * "[" + 900 * "]", "p.json holds no prompt"),
        ("p.json", 100_000 * "[", "p.json is not JSON"),
        ("p.json", '{"a": 1}', "p.json holds no prompt"),
        ("p.json", '{"version": "1.0", "library": ["a car"]}', "p.json.version is a text that may be no prompt"),
        ("p.json", '["a car", 3]', r"p.json\[1\] must be a prompt, got 3"),
        ("p.json", '{"prompts": null}', "p.json.prompts must be a prompt, got null"),
        ("p.jsonl", '"a car"\na red mug', "p.jsonl, line 2, is not JSON"),
        ("p.jsonl", '{"prompt": "a car"}\n{"prompt": 3}', "p.jsonl, line 2.prompt must be a prompt"),
        ("p.csv", "id,name\n1,a car\n", "p.csv, line 1: there must be a column prompt, text or caption, got id, name"),
    ],
)
def test_what_may_be_no_prompt_is_refused_with_file_and_line(tmp_path, name, text, says):
    with pytest.raises(UserError, match=says):
        read_prompts(written(tmp_path, name, text))


def test_a_missing_file_is_refused_with_the_sets_that_there_are(tmp_path):
    with pytest.raises(UserError, match="no set of that name: tabletop"):
        read_prompts(tmp_path / "nothing.txt")


def test_words_pick_the_one_prompt_that_has_them():
    prompts = ["a zoomed out photo of a hamburger", "a corgi, a hamburger and a cat", "a corgi"]
    assert pick(prompts, "lib:zoomed_hamburger") == prompts[0]
    for name, says in (("lib:hamburger", "2 prompts have these words"), ("lib:dog", "no prompt has these words")):
        with pytest.raises(UserError, match=says):
            pick(prompts, name)
