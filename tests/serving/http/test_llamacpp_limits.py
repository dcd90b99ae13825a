"""llama.cpp's limits for lines, as laws over texts that come in any parts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llama.serving.http.llamacpp.limits import LineLimits

PARTS = st.lists(st.text(" \t\r\nab", max_size=6), max_size=8)


def indented(text: str, n_indent: int) -> str:
    """The text before the first later line that is not blank and has less indentation."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if i and line.strip() and len(line) - len(line.lstrip(" \t")) < n_indent:
            return "\n".join(lines[:i]) + "\n"
    return text


@given(parts=PARTS, n_indent=st.integers(1, 4))
def test_the_text_ends_before_the_first_line_with_less_indentation(parts: list[str], n_indent: int) -> None:
    limits = LineLimits(n_indent)
    shown = "".join(limits.feed(part) for part in parts) + limits.feed("", final=True)
    text = "".join(parts)
    assert shown == indented(text, n_indent)
    assert limits.ended == (shown != text)


@given(parts=PARTS, n_indent=st.integers(1, 4))
def test_nothing_is_held_back_but_what_the_next_character_may_cut_off(
    parts: list[str], n_indent: int
) -> None:
    limits, given_text, shown = LineLimits(n_indent), "", ""
    for part in parts:
        given_text += part
        shown += limits.feed(part)
        if limits.ended:
            return
        assert given_text.startswith(shown)
        if held := given_text[len(shown) :]:
            assert not held.strip()
            assert indented(given_text + "x", n_indent) == shown


@given(parts=st.lists(st.tuples(st.text("\na", max_size=4), st.integers(0, 3)), max_size=6))
def test_after_the_time_the_next_line_break_ends_the_text(parts: list[tuple[str, int]]) -> None:
    now, expected, over = 0, "", False
    limits = LineLimits(seconds=4, clock=lambda: now)
    shown = ""
    for i, (part, passed) in enumerate(parts):
        now += passed if i else 100
        shown += limits.feed(part)
        if not over:
            over = now - 100 >= 4 and "\n" in part
            expected += part[: part.index("\n") + 1] if over else part
    assert (shown, limits.ended) == (expected, over)


def test_without_limits_everything_passes() -> None:
    limits = LineLimits()
    assert not limits.on
    assert [limits.feed(part) for part in ("a\n", "  ", "b")] == ["a\n", "  ", "b"]


def test_a_blank_line_with_less_indentation_does_not_count() -> None:
    limits = LineLimits(4)
    assert limits.feed("a\n\n  \r\n    b\n  c") == "a\n\n  \r\n    b\n"
    assert limits.ended
