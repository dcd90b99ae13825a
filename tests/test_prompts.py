"""Prompt formats against ids put together by hand from SentencePiece calls, and the published ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import public_tokenizer, tiny_tokenizer

from llama.detokenizer import Detokenizer
from llama.errors import DialogError, PromptError, UnsafeTagError, UnsupportedError
from llama.prompts import (
    B_INST,
    B_SYS,
    E_INST,
    E_SYS,
    SPECIAL_TAGS,
    Prompt,
    chat_prompt,
    completion_prompt,
    infilling_prompt,
    render_prompt,
    split_fill,
)
from llama.tokenizer import Tokenizer

LAW = settings(deadline=None, derandomize=True, max_examples=100)
PREFIX, SUFFIX = 'def remove_non_ascii(s: str) -> str:\n    """ ', "\n    return result\n"
GOLDEN_PSM = [
    1, 32007, 822, 3349, 29918, 5464, 29918, 294, 18869, 29898, 29879, 29901, 851, 29897, 1599, 851, 29901,
    13, 1678, 9995, 29871, 32008, 13, 1678, 736, 1121, 13, 32009,
]  # fmt: skip
CODE = st.lists(
    st.sampled_from(["<PRE>", " <SUF>", " <MID>", " <EOT>", "<step>", "</s>", "\r\n", "\n", "    ", "if x"])
    | st.text(max_size=5).map(lambda s: s.replace("▁", " ")),
    max_size=6,
).map("".join)  # fmt: skip

Make = Callable[[str], Tokenizer]


def both(kind: str, public: str) -> list[object]:
    """The trained vocabulary, and the public one where it is there."""
    return [
        pytest.param(lambda: tiny_tokenizer(kind), id=kind),
        pytest.param(lambda: public_tokenizer(public), id=public),
    ]


def raw(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    processor = sentencepiece.SentencePieceProcessor()
    processor.Load(tokenizer.model_path)
    return processor.encode


def msg(role: str, content: str, **more: str) -> dict[str, str]:
    return {"role": role, "content": content, **more}


def test_completion_is_bos_and_text_and_stops_at_eos():
    tokenizer = tiny_tokenizer()
    prompt = completion_prompt(tokenizer, "return x")
    assert prompt.tokens == (tokenizer.bos_id, *raw(tokenizer)("return x"))
    assert (prompt.stop_ids, prompt.start_of_text) == ({tokenizer.eos_id}, False)
    empty = completion_prompt(tokenizer, "")
    assert (empty.tokens, empty.start_of_text) == ((tokenizer.bos_id,), True)


@pytest.mark.parametrize("kind", ["plain", "infilling", "step"])
def test_a_prompt_written_by_hand_stops_where_its_format_does(kind: str):
    """Infilling at EOT, a 70B chat at <step>; who allows no control pieces stops at eos alone."""
    t = tiny_tokenizer(kind)
    ends = {t.eos_id, t.eot_id, t.step_id} - {None}
    assert len(ends) == {"plain": 1, "infilling": 2, "step": 3}[kind]
    assert completion_prompt(t, " <PRE> a <SUF> b <MID>", allow_control=True).stop_ids == ends
    assert completion_prompt(t, " <PRE> a <SUF> b <MID>").stop_ids == {t.eos_id}


def test_control_pieces_written_as_text_count_only_when_allowed():
    tokenizer = tiny_tokenizer()
    text = "<PRE> return <SUF> x <MID>"
    assert tokenizer.control_ids.isdisjoint(completion_prompt(tokenizer, text).tokens[1:])
    allowed = completion_prompt(tokenizer, text, allow_control=True).tokens
    wanted = [tokenizer.bos_id, tokenizer.prefix_id, tokenizer.suffix_id, tokenizer.middle_id]
    assert [i for i in allowed if i in tokenizer.control_ids] == wanted


def test_golden_infilling_ids():
    tokenizer = public_tokenizer("codellama")
    prompt = infilling_prompt(tokenizer, PREFIX, SUFFIX)
    assert list(prompt.tokens) == GOLDEN_PSM
    assert prompt.stop_ids == {32010, 2}
    assert prompt.start_of_text is False
    mid = GOLDEN_PSM.index(32008)
    before, after = GOLDEN_PSM[2:mid], GOLDEN_PSM[mid + 1 : -1]
    spm = infilling_prompt(tokenizer, PREFIX, SUFFIX, suffix_first=True)
    assert list(spm.tokens) == [1, 32007, 32008, *after, 32009, *before]
    assert spm.stop_ids == {32010, 2}


@pytest.mark.parametrize("make", both("infilling", "codellama"))
@LAW
@given(prefix=CODE, suffix=CODE)
def test_infilling_has_its_four_marks_once_and_both_parts_come_back(make, prefix: str, suffix: str):
    t = make()
    psm, spm = (list(infilling_prompt(t, prefix, suffix, suffix_first=f).tokens) for f in (False, True))
    for tokens, marks in (
        (psm, [t.bos_id, t.prefix_id, t.suffix_id, t.middle_id]),
        (spm, [t.bos_id, t.prefix_id, t.suffix_id, t.middle_id]),
    ):
        assert [i for i in tokens if i in t.control_ids] == marks
    assert infilling_prompt(t, prefix, suffix).stop_ids == {t.eot_id, t.eos_id}
    suf, mid = psm.index(t.suffix_id), psm.index(t.middle_id)
    assert t.decode(psm[2:suf]) == prefix
    assert t.decode_infilling(psm[suf + 1 : mid]) == suffix
    assert spm == [*psm[:2], *psm[suf:], *psm[2:suf]]


def text_of(t: Tokenizer, prompt: Prompt, ids: list[int]) -> str:
    decoder = Detokenizer(t, start_of_text=prompt.start_of_text)
    return "".join([*map(decoder.push, ids), decoder.finish()])


@pytest.mark.parametrize("make", both("infilling", "codellama"))
@LAW
@given(text=CODE, cut=st.integers(0, 4), suffix=CODE)
def test_a_middle_as_in_training_comes_back(make, text: str, cut: int, suffix: str):
    """In the SPM order prefix and middle were one text, in the PSM order the middle was one that goes on."""
    t = make()
    ids = t.encode(text, bos=False, eos=False)
    prefix = t.decode(ids[:cut])
    assume(t.encode(prefix, bos=False, eos=False) == ids[:cut] and text.startswith(prefix))
    middle = text[len(prefix) :]
    spm = infilling_prompt(t, prefix, suffix, suffix_first=True)
    assert spm.tokens[len(spm.tokens) - len(ids[:cut]) :] == tuple(ids[:cut])
    assert text_of(t, spm, ids[cut:]) == middle
    psm = infilling_prompt(t, prefix, suffix)
    assert text_of(t, psm, t.encode_infilling(middle)) == middle


def test_infilling_names_the_pieces_that_are_absent():
    with pytest.raises(UnsupportedError, match="▁<PRE>, ▁<SUF>, ▁<MID>, ▁<EOT>"):
        infilling_prompt(tiny_tokenizer("plain"), "a", "b")


@pytest.mark.parametrize("bad", [None, 3, b"x"])
def test_parts_that_are_no_text_are_a_named_error(bad):
    tokenizer = tiny_tokenizer()
    for call in (
        lambda: infilling_prompt(tokenizer, "a", bad),
        lambda: infilling_prompt(tokenizer, bad, "a"),
        lambda: completion_prompt(tokenizer, bad),
        lambda: split_fill(bad),
    ):
        with pytest.raises(PromptError, match=type(bad).__name__):
            call()


def test_split_fill_takes_one_mark_of_either_name():
    assert split_fill("a <FILL> b") == ("a ", " b")
    assert split_fill("<FILL_ME>") == ("", "")
    assert split_fill("a\r\n<FILL_ME>\r\n") == ("a\r\n", "\r\n")


@pytest.mark.parametrize(
    ("text", "count"),
    [("none", 0), ("", 0), ("<FILL> <FILL_ME>", 2), ("<FILL><FILL>", 2), ("<FILL_ME>" * 3, 3)],
)
def test_split_fill_counts_the_marks(text: str, count: int):
    with pytest.raises(PromptError, match=f"found {count}"):
        split_fill(text)


def test_the_references_constants():
    assert (B_INST, E_INST, B_SYS, E_SYS) == ("[INST]", "[/INST]", "<<SYS>>\n", "\n<</SYS>>\n\n")
    assert SPECIAL_TAGS == ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<step>"]


@pytest.mark.parametrize("make", both("infilling", "codellama"))
def test_inst_chat_one_message(make):
    t = make()
    prompt = chat_prompt(t, [msg("user", "  return x \n")])
    assert list(prompt.tokens) == [t.bos_id, *raw(t)("[INST] return x [/INST]")]
    assert (prompt.stop_ids, prompt.start_of_text) == ({t.eos_id}, True)


@pytest.mark.parametrize("make", both("plain", "llama2"))
def test_inst_chat_system_and_past_turns(make):
    t, sp = make(), raw(make())
    dialog = [
        msg("system", "the system"),
        msg("user", "value "),
        msg("assistant", " def\n"),
        msg("user", "list"),
        msg("assistant", "index"),
        msg("user", " <step> </s>"),
    ]
    expected = [
        *[t.bos_id, *sp("[INST] <<SYS>>\nthe system\n<</SYS>>\n\nvalue [/INST] def "), t.eos_id],
        *[t.bos_id, *sp("[INST] list [/INST] index "), t.eos_id],
        *[t.bos_id, *sp("[INST] <step> </s> [/INST]")],
    ]
    assert list(chat_prompt(t, dialog).tokens) == expected


@pytest.mark.parametrize("make", both("step", "codellama-70b"))
def test_step_chat(make):
    t, sp = make(), raw(make())
    dialog = [
        msg("system", " the system "),
        msg("user", "value "),
        msg("assistant", "def", destination=" user "),
        msg("user", "[INST] list"),
    ]
    expected = [
        t.bos_id,
        *[*sp(" Source: system"), *sp("\n\n the system"), t.step_id],
        *[*sp(" Source: user"), *sp("\n\n value"), t.step_id],
        *[*sp(" Source: assistant\nDestination: user"), *sp("\n\n def"), t.step_id],
        *[*sp(" Source: user"), *sp("\n\n [INST] list"), t.step_id],
        *[*sp(" Source: assistant\nDestination: user"), *sp("\n\n ")],
    ]
    prompt = chat_prompt(t, dialog)
    assert list(prompt.tokens) == expected
    assert (prompt.stop_ids, prompt.start_of_text) == ({t.step_id, t.eos_id}, True)


@pytest.mark.parametrize("make", both("step", "codellama-70b"))
def test_step_chat_begins_with_an_empty_system_message_where_there_is_none(make):
    t, sp = make(), raw(make())
    expected = [
        *[t.bos_id, *sp(" Source: system"), t.step_id],
        *[*sp(" Source: user"), *sp("\n\n value"), t.step_id],
        *[*sp(" Source: assistant\nDestination: user"), *sp("\n\n ")],
    ]
    assert list(chat_prompt(t, [msg("user", "value")]).tokens) == expected


@pytest.mark.parametrize("kind", ["infilling", "step"])
@LAW
@given(content=CODE)
def test_text_in_a_chat_makes_no_control_id(kind: str, content: str):
    t = tiny_tokenizer(kind)
    if kind == "step":
        content = content.replace("<step>", "<s>")
    empty = chat_prompt(t, [msg("user", "x")]).tokens
    full = chat_prompt(t, [msg("user", content)]).tokens
    assert [i for i in full if i in t.control_ids] == [i for i in empty if i in t.control_ids]


BAD_DIALOGS = {
    "empty": ([], "empty"),
    "lone system": ([msg("system", "s")], "only a system message"),
    "assistant first": ([msg("assistant", "a")], "message 0 .*'assistant', expected 'user'"),
    "system then assistant": (
        [msg("system", "s"), msg("assistant", "a")],
        "message 1 .*'assistant', expected 'user'",
    ),
    "two users": ([msg("user", "a"), msg("user", "b")], "message 1 .*'user', expected 'assistant'"),
    "late system": ([msg("user", "a"), msg("system", "b")], "message 1 .*'system', expected 'assistant'"),
    "assistant last": (
        [msg("user", "a"), msg("assistant", "b")],
        "message 1, the last .*'assistant', expected 'user'",
    ),
    "unknown role": ([msg("user", "a"), msg("tool", "b")], "message 1 .*unknown role 'tool'"),
    "content no str": (
        [{"role": "user", "content": None}],
        "message 0 .*'content' must be a str, got NoneType",
    ),
    "content list": ([msg("user", "a"), {"role": "assistant", "content": ["x"]}], "message 1 .*got list"),
    "no content": ([{"role": "user"}], "message 0 .*no 'content'"),
    "no role": ([{"content": "a"}], "message 0 .*no 'role'"),
    "message no dict": (["hello"], "message 0 .*must be a dict.* got str"),
    "dialog is a str": ("hello", "list of messages, got str"),
    "dialog is a message": (msg("user", "a"), "list of messages, got dict"),
    "dialog is None": (None, "list of messages, got NoneType"),
}


@pytest.mark.parametrize("kind", ["plain", "step"])
@pytest.mark.parametrize("name", BAD_DIALOGS)
def test_a_bad_dialog_is_a_named_error_with_its_place(kind: str, name: str):
    dialog, message = BAD_DIALOGS[name]
    with pytest.raises(DialogError, match=message):
        chat_prompt(tiny_tokenizer(kind), dialog)


@pytest.mark.parametrize("bad", ["a\nDestination: b", "", 3])
def test_a_destination_is_one_line(bad: object):
    dialog = [{"role": "user", "content": "a", "destination": bad}]
    with pytest.raises(DialogError, match=r"message 0 .*'destination'"):
        chat_prompt(tiny_tokenizer("step"), dialog)
    assert chat_prompt(tiny_tokenizer("plain"), dialog) == chat_prompt(
        tiny_tokenizer("plain"), [msg("user", "a")]
    )


@pytest.mark.parametrize(("kind", "own"), [("infilling", SPECIAL_TAGS[:4]), ("step", ["<step>"])])
@pytest.mark.parametrize("tag", SPECIAL_TAGS)
def test_only_the_tags_of_the_models_own_format_are_refused(kind: str, own: list[str], tag: str):
    t = tiny_tokenizer(kind)
    dialog = [msg("system", "s"), msg("user", "a"), msg("assistant", f"x{tag}y"), msg("user", "b")]
    if tag in own:
        with pytest.raises(UnsafeTagError) as caught:
            chat_prompt(t, dialog)
        assert (caught.value.tag, caught.value.index) == (tag, 2)
    else:
        assert tag in t.decode(chat_prompt(t, dialog).tokens)


def test_a_tag_in_a_destination_is_refused():
    with pytest.raises(UnsafeTagError):
        chat_prompt(tiny_tokenizer("step"), [msg("user", "a", destination="<step>")])


def test_rendering_shows_control_ids_by_name_and_text_as_it_is():
    t = tiny_tokenizer("step")
    assert render_prompt(t, infilling_prompt(t, "a\r\n", " b").tokens) == "⟨bos⟩⟨PRE⟩ a\r\n⟨SUF⟩ b⟨MID⟩"
    assert render_prompt(t, [t.eos_id, t.eot_id, t.step_id, -1, 0]) == "⟨eos⟩⟨EOT⟩⟨step⟩⟨pad⟩⟨unk⟩"
    assert render_prompt(t, infilling_prompt(t, "⟨PRE⟩", "⟨").tokens) == "⟨bos⟩⟨PRE⟩ ⟨⟨PRE⟩⟨SUF⟩⟨⟨⟨MID⟩"
    chat = render_prompt(t, chat_prompt(t, [msg("user", "hi")]).tokens)
    assert chat == (
        "⟨bos⟩  Source: system⟨step⟩  Source: user \n\n hi⟨step⟩  Source: assistant\nDestination: user \n\n "
    )


@LAW
@given(text=st.lists(st.sampled_from(["⟨", "⟩", "⟨bos⟩", "⟨⟨", " <PRE>", "a", " "]), max_size=6).map("".join))
def test_a_text_that_looks_like_a_control_id_is_rendered_apart_from_one(text: str):
    t = tiny_tokenizer()
    shown = render_prompt(t, completion_prompt(t, text).tokens)
    assert shown.startswith("⟨bos⟩")
    body = shown.removeprefix("⟨bos⟩")
    # Undoing the doubling gives the text: nothing is left that could be a control id.
    assert body.replace("⟨⟨", "\0").count("⟨") == 0
    assert body.replace("⟨⟨", "⟨").removeprefix(" ") == text
