"""Laws of the chat program: what is sent, what is kept, what is printed where, and what ends it."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from scripted_backend import CTRL_C, FOREVER, ScriptedBackend, talk

from llama.errors import NumericsError, PromptError, RankError, RequestError, UnsafeTagError
from llama.terminal.backend import Chat, Completion, End, Infilling, Sampling, ServerError
from llama.terminal.conversation import Turn


def test_each_question_is_sent_behind_all_turns_and_the_system() -> None:
    backend = ScriptedBackend(["one", ["t", "wo"], "three"])
    done = talk(backend, ["first", "second", "third"], system="be brief")
    assert [ask.messages[0] for ask in backend.asked if isinstance(ask, Chat)] == [
        {"role": "system", "content": "be brief"}
    ] * 3
    assert backend.said[2] == ["be brief", "first", "one", "second", "two", "third"]
    roles = [message["role"] for message in backend.asked[2].messages]  # type: ignore[union-attr]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert done.conversation.turns == [Turn("first", "one"), Turn("second", "two"), Turn("third", "three")]
    assert done.code == 0


def test_stdout_has_the_answers_and_stderr_all_else(capsys: pytest.CaptureFixture[str]) -> None:
    backend = ScriptedBackend(["a\n", "b"])
    done = talk(backend, ["x", "y", "/help", "/system z", "/nonsense"], interactive=True, stats=True)
    assert done.out == "a\nb\n"
    out, err = capsys.readouterr()
    assert out == ""
    for word in ("scripted", "/save FILE", "'z'", "no command /nonsense", "no token counts"):
        assert word in err


@pytest.mark.parametrize("capability", ["completion", "python"])
def test_without_chat_each_text_is_continued_as_it_is(capability: str) -> None:
    backend = ScriptedBackend(["1", "2"])
    done = talk(backend, ["def a():\n  ", " b "], capability=capability)
    assert backend.asked == [Completion("def a():\n  "), Completion(" b ")]
    assert len(done.conversation.turns) == 2


def test_infilling_needs_one_hole(capsys: pytest.CaptureFixture[str]) -> None:
    backend = ScriptedBackend(["x"])
    assert talk(backend, ["a<FILL>b", "none", "<FILL><FILL>"], capability="infilling").code == 1
    assert backend.asked == [Infilling("a", "b")]
    err = capsys.readouterr().err
    assert "found 0" in err
    assert "found 2" in err


def test_a_systems_text_needs_chat() -> None:
    with pytest.raises(RequestError, match="needs --cap chat"):
        talk(ScriptedBackend([]), [], capability="python", system="x")
    assert talk(ScriptedBackend([]), ["/system x"], capability="python").code == 1


@pytest.mark.parametrize("end", [["exit"], [" exit "], []])
def test_exit_and_the_inputs_end_leave(end: list[str]) -> None:
    backend = ScriptedBackend(["1"])
    assert talk(backend, ["x", *end, *(["never"] if end else [])]).code == 0
    assert len(backend.asked) == 1


@pytest.mark.parametrize("command", ["end", "/reset"])
def test_end_begins_anew_and_keeps_the_system(command: str) -> None:
    backend = ScriptedBackend(["1", "2"])
    talk(backend, ["x", command, "y"], system="s")
    assert backend.said == [["s", "x"], ["s", "y"]]


def test_the_system_can_be_changed_and_taken_away() -> None:
    backend = ScriptedBackend(["1", "2"])
    talk(backend, ["/system new words", "x", "/system", "y"], system="old")
    assert backend.said == [["new words", "x"], ["x", "1", "y"]]


def test_ctrl_c_stops_the_answer_and_what_was_said_stays(capsys: pytest.CaptureFixture[str]) -> None:
    backend = ScriptedBackend([["half", FOREVER], "next"])
    done = talk(backend, ["x"], stop=True)
    assert done.code == 0
    assert done.out == "half\n"
    assert done.conversation.turns == [Turn("x", "half")]
    assert backend.closed == 1
    assert "stopped" in capsys.readouterr().err


def test_ctrl_c_before_the_first_word_leaves_no_turn() -> None:
    backend = ScriptedBackend([[FOREVER], "fine"])
    done = talk(backend, ["x", "y"], stop=True)
    assert done.conversation.turns == [Turn("y", "fine")]
    assert backend.said[1] == ["y"]


def test_the_signal_does_what_the_key_does() -> None:
    """As from `kill -INT`, or where standard input is no terminal."""

    class Signalled(ScriptedBackend):
        async def stream(self, ask, sampling):
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGINT)
            async for piece in super().stream(ask, sampling):
                yield piece

    backend = Signalled([["half", FOREVER]])
    before = signal.getsignal(signal.SIGINT)
    assert talk(backend, ["x"]).out == "half\n"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("interactive", "code", "asked"), [(True, 0, 1), (False, 130, 0)])
def test_ctrl_c_at_the_prompt_clears_it_and_ends_a_script(interactive: bool, code: int, asked: int) -> None:
    backend = ScriptedBackend(["1"])
    assert talk(backend, [CTRL_C(), "x"], interactive=interactive).code == code
    assert len(backend.asked) == asked


@pytest.mark.parametrize(
    "error",
    [RequestError("bad"), NumericsError("nan"), ServerError("gone"), UnsafeTagError("[INST]", 0)],
    ids=repr,
)
@pytest.mark.parametrize("interactive", [True, False])
def test_an_answer_that_fails_is_told_and_not_kept(
    error: Exception, interactive: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = ScriptedBackend([["some", error], "fine"])
    done = talk(backend, ["x", "y"], interactive=interactive)
    assert backend.said[1] == ["y"]
    assert done.out == "some\nfine\n"
    assert done.code == (0 if interactive else 1)
    assert f"error: {error}" in capsys.readouterr().err


def test_an_input_that_cannot_be_read_is_told_and_the_rest_goes_on() -> None:
    backend = ScriptedBackend(["1"])
    assert talk(backend, [PromptError("not UTF-8"), "x"]).code == 1
    assert backend.said == [["x"]]


def test_a_rank_that_is_gone_ends_the_program() -> None:
    with pytest.raises(RankError):
        talk(ScriptedBackend([RankError("rank 1 is gone")]), ["x", "y"], interactive=True)


def test_a_turn_whose_answer_holds_a_tag_is_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """The chat format would refuse every later question for it."""
    backend = ScriptedBackend(["see [/INST]", "fine"])
    done = talk(backend, ["x", "y"])
    assert backend.said[1] == ["y"]
    assert done.out == "see [/INST]\nfine\n"
    assert "[/INST], a tag" in capsys.readouterr().err
    assert len(talk(ScriptedBackend(["[/INST]"]), ["x"], capability="python").conversation.turns) == 1


WORDS = "w w w w w w w w"  # eight tokens of a ScriptedBackend


def test_the_oldest_turns_leave_a_full_context_and_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """A quarter is for the answer. When turns leave, twice as much room is made, and not at every turn."""
    backend = ScriptedBackend([WORDS] * 8, context=80)
    questions = [f"q{i} w w w w w w w" for i in range(8)]  # a turn has 16 tokens
    talk(backend, questions)
    firsts = [said[0].split()[0] for said in backend.said]
    # Room behind three turns and a question: 80 - 56 = 24; behind four 8, less than 20: two leave, for 40.
    assert firsts == ["q0", "q0", "q0", "q0", "q2", "q2", "q4", "q4"]
    assert all(said[-1] == question for said, question in zip(backend.said, questions, strict=True))
    assert (
        capsys.readouterr().err.count("the context is full (80 tokens): the 2 oldest turns are forgotten")
        == 2
    )


def test_a_limit_of_the_answer_leaves_more_for_the_turns() -> None:
    backend = ScriptedBackend([WORDS] * 8, context=80)
    talk(backend, [f"q{i} w w w w w w w" for i in range(5)], sampling=Sampling(max_gen_len=4))
    assert [said[0].split()[0] for said in backend.said] == ["q0"] * 5


def test_the_oldest_turns_leave_where_only_the_server_can_count(capsys: pytest.CaptureFixture[str]) -> None:
    backend = ScriptedBackend([WORDS] * 8, context=80, tells_room=False)
    done = talk(backend, [f"q{i} w w w w w w w" for i in range(8)])
    assert done.code == 0
    assert [said[0].split()[0] for said in backend.said] == ["q0"] * 5 + ["q3"] * 3
    assert "3 oldest turns are forgotten" in capsys.readouterr().err


@pytest.mark.parametrize("tells_room", [True, False])
def test_a_question_that_never_fits_is_refused_and_the_program_goes_on(tells_room: bool) -> None:
    backend = ScriptedBackend(["1", "2"], context=10, tells_room=tells_room)
    done = talk(backend, ["a", "w " * 20, "b"])
    assert done.code == 1
    assert [said[-1] for said in backend.said] == ["a", "b"]


@pytest.mark.parametrize(
    ("limit", "end", "words"),
    [
        (5, End("length", 10, 3, 5), "cut at 5 tokens (--max-gen-len)"),
        (5, End("length"), "cut at 5 tokens"),
        (None, End("length", 10, 3, 5), "the context is full (50 tokens): the answer was cut"),
        (9, End("length", 10, 3, 5), "the context is full"),
        (5, End("stop", 10, 3, 5), "10 tokens of the prompt, 3 of them reused, 5 generated"),
    ],
    ids=str,
)
def test_an_answer_that_was_cut_says_why(
    limit: int | None, end: End, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = ScriptedBackend([["x", end]], context=50)
    talk(backend, ["q"], sampling=Sampling(max_gen_len=limit), stats=True)
    err = capsys.readouterr().err
    assert words in err
    assert ("cut" in err) == (end.finish_reason == "length")


def test_blank_texts_are_not_sent() -> None:
    backend = ScriptedBackend([])
    assert talk(backend, ["", "  \n"]).code == 0
    assert backend.asked == []
