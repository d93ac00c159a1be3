"""What reaches a terminal is one line, and commands it nothing."""

import contextlib

import pytest

from lods_jax.core.errors import UserError, escaped, one_line, release_remarks, remark, remarks_wait


@pytest.mark.parametrize("char", ["\x1b", "\x07", "\r", "\x9b", "\u202e", "\u2028", "\udcff", "\x7f"])
def test_what_a_terminal_obeys_is_spelled_out(char):
    text = escaped(f"a{char}b")
    assert text.isprintable()
    assert text[0] + text[-1] == "ab"
    text.encode("utf-8")


def test_what_people_write_stays():
    for text in ("a red mug", "чашка 一只 é", "🙂", "two\nlines"):
        assert escaped(text) == text


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (UserError("steps must\n  be\t1"), "steps must be 1"),
        (FileNotFoundError(2, "No such file or directory", "a\x1b.png"), r"a\x1b.png: No such file or directory"),
        (OSError("disk full"), "disk full"),
        (ValueError(), "ValueError"),
        (MemoryError(), "there is not enough memory"),
    ],
)
def test_an_error_is_told_in_one_line(error, says):
    assert one_line(error) == says


def test_the_middle_of_an_endless_line_is_left_out():
    assert len(one_line(ValueError("x" * 10_000))) < 1100


def test_a_remark_waits_for_the_work_and_a_refusal_is_alone(capsys):
    with contextlib.suppress(UserError), remarks_wait():
        remark("before a refusal")
        raise UserError
    assert capsys.readouterr().err == ""
    with remarks_wait():
        remark("before\x1b the work")
        assert capsys.readouterr().err == ""
        release_remarks()
        assert capsys.readouterr().err == "before\\x1b the work\n"
        remark("in its midst")
        remark("in its midst")
        assert capsys.readouterr().err == "in its midst\n"
    with remarks_wait():
        remark("of a command without work")
    remark("outside")
    assert capsys.readouterr().err == "of a command without work\noutside\n"
