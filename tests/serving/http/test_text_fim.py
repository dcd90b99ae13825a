"""Infilling written as text: what is recognised, and that the ids are those of an infilling prompt."""

from __future__ import annotations

import logging

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny_llama import tiny_llama

from llama import Llama
from llama.errors import UnsupportedError
from llama.prompts import Prompt, completion_prompt, infilling_prompt
from llama.serving.http.problems import Problem, problem_of
from llama.serving.http.service import Service
from llama.serving.http.settings import Settings
from llama.serving.http.text_fim import FimText, split_fim

# Text as editors hold it: code, spaces at both ends, pieces of markers and whole control pieces of other kinds.
CODE = st.lists(
    st.sampled_from(["def f", "(", " ", "  ", "\n", "x", " <EOT>", "</s>", "<PRE", "SUF>", "<", "ü", "漢"]),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def llama() -> Llama:
    return tiny_llama(max_seq_len=512)


def service(llama: Llama, **settings: object) -> Service:
    return Service(llama, None, Settings("tiny", **settings))


def without_spaces(p: str, s: str) -> str:
    # With a space in all three places it would be the other spelling.
    assume(not (p.startswith(" ") and p.endswith(" ") and s.endswith(" ")))
    return f"<PRE>{p}<SUF>{s}<MID>"


SPELLINGS = {
    "spaced": (lambda p, s: f"<PRE> {p} <SUF>{s} <MID>", False),
    "bare": (without_spaces, False),
    "suffix first": (lambda p, s: f"<PRE> <SUF>{s} <MID> {p}", True),
    "suffix first, bare": (lambda p, s: f"<PRE><SUF>{s}<MID>{p}", True),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@given(head=CODE, prefix=CODE, suffix=CODE)
def test_ids_are_those_of_an_infilling_prompt(
    llama: Llama, spelling: str, head: str, prefix: str, suffix: str
) -> None:
    spell, suffix_first = SPELLINGS[spelling]
    assume(prefix or not suffix_first)
    text = head + spell(prefix, suffix)
    assume(all(text.count(marker) == 1 for marker in ("<PRE>", "<SUF>", "<MID>")))
    wanted = infilling_prompt(llama.tokenizer, head + prefix, suffix, suffix_first=suffix_first)
    assert service(llama, text_fim=True).text_prompt(text) == wanted
    assert service(llama).text_prompt(text, text_fim=True) == wanted


@given(head=CODE, prefix=CODE, suffix=CODE)
def test_only_the_markers_become_control_ids(llama: Llama, head: str, prefix: str, suffix: str) -> None:
    tokenizer = llama.tokenizer
    text = f"{head}<PRE> {prefix} <SUF>{suffix} <MID>"
    assume(all(text.count(marker) == 1 for marker in ("<PRE>", "<SUF>", "<MID>")))
    control = [
        i for i in service(llama).text_prompt(text, text_fim=True).tokens if i in tokenizer.control_ids
    ]
    assert control == [tokenizer.bos_id, tokenizer.prefix_id, tokenizer.suffix_id, tokenizer.middle_id]


def test_the_space_too_many_of_some_clients_stays_in_the_suffix() -> None:
    assert split_fim("<PRE> a <SUF> b <MID>") == FimText("a", " b")


def test_one_space_between_pre_and_suf_is_an_empty_prefix() -> None:
    assert split_fim("<PRE> <SUF>b <MID>") == FimText("", "b")


def test_cellsense_keeps_the_space_before_its_cursor() -> None:
    text = "import os\n            # File:/a.ipynb\n                <PRE>x = <SUF>\ny = 2<MID>"
    head = "import os\n            # File:/a.ipynb\n                "
    assert split_fim(text) == FimText(head + "x = ", "\ny = 2")


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "<PRE>an HTML page</PRE><PRE>with two</PRE>",
        "<PRE> a <MID>b <SUF>",
        "<SUF> b <PRE> a <MID>",
        "<PRE> a <SUF>b <MID> and an answer that has begun",
        "<PRE> a <SUF>b",
    ],
)
def test_other_texts_stay_text(llama: Llama, text: str) -> None:
    assert service(llama).text_prompt(text, text_fim=True) == completion_prompt(llama.tokenizer, text)


@pytest.mark.parametrize("marker", ["<PRE>", "<SUF>", "<MID>"])
def test_a_marker_twice_is_refused_with_what_to_do(llama: Llama, marker: str) -> None:
    text = f"<PRE> print('{marker}') <SUF>b <MID>"
    with pytest.raises(Problem, match=r"2 times.*suffix") as raised:
        service(llama, text_fim=True).text_prompt(text)
    assert raised.value.status == 400


def test_a_model_without_the_pieces_says_so() -> None:
    plain = tiny_llama(kind="plain")
    with pytest.raises(UnsupportedError) as raised:
        service(plain, text_fim=True).text_prompt("<PRE> a <SUF>b <MID>")
    assert problem_of(raised.value).status == 400


def test_without_the_flag_it_is_text_and_the_log_says_so_once(
    llama: Llama, caplog: pytest.LogCaptureFixture
) -> None:
    served = service(llama)
    text = "<PRE> a <SUF>b <MID>"
    with caplog.at_level(logging.WARNING, logger="llama.serving.http"):
        made: list[Prompt] = [served.text_prompt(each) for each in ("x", text, text)]
    assert made[1] == completion_prompt(llama.tokenizer, text)
    (record,) = caplog.records
    assert "--text-fim" in record.getMessage()
