"""Laws of the adapter for lm-eval, without lm-eval: `make clients` runs it within the real one.

Its requests are objects with `args`, as lm-eval's instances; the oracle is transformers' twin.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_llama import tiny_llama, twin_logits
from tiny_tokenizers import tiny_tokenizer

from llama.errors import (
    DialogError,
    EvaluationError,
    PromptTooLongError,
    SamplingError,
    UnsafeTagError,
    UnsupportedError,
)
from llama.evaluation import scoring
from llama.evaluation.harness import LlamaLM
from llama.generation import Llama

TOKENIZER = tiny_tokenizer()
BOS = TOKENIZER.bos_id
LONG = "def return self value list index print " * 30


class Hook:
    """Notes what it is to remember, as lm-eval's CacheHook does."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def add_partial(self, kind: str, args: Any, result: Any) -> None:
        self.seen.append((kind, args, result))


def instances(*args: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=each) for each in args]


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, bos=False, eos=False)


def summed(before: list[int], scored: list[int]) -> tuple[float, bool]:
    """The log-probability of `scored` behind `before`, and whether each is the likeliest."""
    logs = torch.log_softmax(twin_logits([*before, *scored]).double(), dim=-1)[len(before) - 1 : -1]
    total = sum(float(row[token]) for row, token in zip(logs, scored, strict=True))
    return total, [int(row.argmax()) for row in logs] == scored


def close(found: tuple[float, bool], expected: tuple[float, bool]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert found[1] is expected[1]


@pytest.fixture
def lm(llama: Llama) -> LlamaLM:
    made = LlamaLM(llama)
    made.cache_hook = Hook()
    return made


PAIRS = [
    ("def return", " self value"),
    ("def return ", "self"),
    ("", "def return"),
    ("  ", "x"),
    ("é 漢字", " <PRE> x"),
    ("a\n", "\n"),
    ("de", "f"),
]


@pytest.mark.parametrize(("context", "continuation"), PAIRS)
def test_a_continuation_is_what_the_context_does_not_hold(lm, context, continuation):
    """Both are encoded together; blanks at the end of the context count to the continuation."""
    whole = [BOS, *ids(context + continuation)]
    first = min(1 + len(ids(context.rstrip())), len(whole) - 1)
    (found,) = lm.loglikelihood(instances((context, continuation)))
    close(found, summed(whole[:first], whole[first:]))


def test_many_at_once_are_each_as_alone(lm, monkeypatch):
    alone = [lm.loglikelihood(instances(pair))[0] for pair in PAIRS]
    monkeypatch.setattr(scoring, "_CALL_TOKENS", 12)
    for found, expected in zip(lm.loglikelihood(instances(*PAIRS)), alone, strict=True):
        close(found, expected)
    assert lm.loglikelihood([]) == []


def test_the_models_own_answer_is_greedy_and_any_other_is_not(lm, llama):
    """Of a random model's answers few are encoded as they were written: those that are."""
    words = [
        "def",
        "return",
        "self",
        "value",
        "list",
        "index",
        "print",
        "range",
        "class",
        "import",
        "none",
        "true",
        "false",
        "step",
        "user",
    ]
    prompts = [f"{one} {two}" for one in words for two in words[:4]]
    answers = llama.generate([[BOS, *ids(prompt)] for prompt in prompts], 2, temperature=0)[0]
    texts = [TOKENIZER.decode_infilling(answer) for answer in answers]
    asked = [
        (prompt, text)
        for prompt, text, answer in zip(prompts, texts, answers, strict=True)
        if ids(prompt + text) == ids(prompt) + answer
    ]
    assert len(asked) >= 3
    assert all(greedy for _, greedy in lm.loglikelihood(instances(*asked)))
    assert not any(
        greedy for _, greedy in lm.loglikelihood(instances(*((prompt, "q q") for prompt, _ in asked)))
    )


def test_an_empty_continuation_is_certain(lm):
    assert lm.loglikelihood(instances(("def", ""), ("", ""))) == [(0.0, True), (0.0, True)]


def test_a_long_context_loses_its_beginning_and_says_so(lm, capsys):
    """The whole has max_seq_len tokens, as with lm-eval's own models; bos goes with the beginning."""
    (found,) = lm.loglikelihood(instances((LONG, " value")))
    whole = [BOS, *ids(LONG + " value")][-128:]
    first = len(whole) - len(ids(LONG + " value")) + len(ids(LONG.rstrip()))
    close(found, summed(whole[:first], whole[first:]))
    assert "warning: 1 of 1 requests do not fit 128 tokens" in capsys.readouterr().err
    lm.loglikelihood(instances(("def", " value")))
    assert capsys.readouterr().err == ""


def test_a_continuation_that_fills_the_context_is_refused(lm):
    with pytest.raises(PromptTooLongError, match=r"continuation has \d+ tokens, but max_seq_len is 128"):
        lm.loglikelihood(instances(("x", LONG)))


def rolling(tokens: list[int], longest: int) -> float:
    """As lm-eval's docstring draws it: the first window behind bos; the last one is filled up with its past."""
    total, done = 0.0, 0
    while done < len(tokens):
        end = min(done + longest, len(tokens))
        before = [BOS, *tokens[:end]][-(longest + 1) : -(end - done)] if done else [BOS]
        total += summed(before, tokens[done:end])[0]
        done = end
    return total


@pytest.mark.parametrize("count", [0, 1, 15, 16, 40, 45])
def test_rolling_scores_every_token_once(count):
    lm = LlamaLM(tiny_llama(max_seq_len=16))
    tokens = ids(LONG)[:count]
    text = TOKENIZER.decode(tokens)
    assert ids(text) == tokens
    (found,) = lm.loglikelihood_rolling(instances((text,)))
    assert found == pytest.approx(rolling(tokens, 15), rel=1e-4)


def test_rolling_keeps_texts_apart(lm):
    texts = ["def return", "", LONG, "x"]
    together = lm.loglikelihood_rolling(instances(*((text,) for text in texts)))
    assert together == pytest.approx(
        [lm.loglikelihood_rolling(instances((text,)))[0] for text in texts], rel=1e-4
    )
    assert together[1] == 0.0


def test_answers_are_the_librarys_own(lm, llama):
    prompts = ["def return self", "", "é 漢字", " class"]
    expected = [each["generation"] for each in llama.text_completion(prompts, temperature=0, max_gen_len=12)]
    asked = [(prompt, {"until": [], "max_gen_toks": 12}) for prompt in prompts]
    assert lm.generate_until(instances(*asked)) == expected
    assert lm.generate_until([]) == []


def test_an_answer_ends_before_the_first_stop(lm):
    (whole,) = lm.generate_until(instances(("def return self", {"max_gen_toks": 12})))
    stop = whole[3:5]
    for until in (stop, [stop, "never there", ""]):
        (found,) = lm.generate_until(instances(("def return self", {"until": until, "max_gen_toks": 12})))
        assert found == whole[: whole.index(stop)]


def test_each_request_has_its_own_settings_and_answers_keep_their_order(lm):
    asked = [("def return self", {"max_gen_toks": count}) for count in (3, 9, 3, 6)]
    alone = [lm.generate_until(instances(each))[0] for each in asked]
    assert lm.generate_until(instances(*asked)) == alone
    assert alone[1].startswith(alone[0])
    assert alone[1] != alone[0]


@pytest.mark.parametrize(
    ("settings", "is_greedy"),
    [
        ({}, True),
        ({"do_sample": False, "temperature": 2.0}, True),
        ({"temperature": 0.0}, True),
        ({"do_sample": True}, True),  # lm-eval's rule: without a temperature it is 0
        ({"temperature": 2.0}, False),
        ({"do_sample": True, "temperature": 2.0, "top_k": 400}, False),
        ({"temperature": 2.0, "top_k": 1}, True),
        ({"temperature": 2.0, "top_p": 0.0}, True),
        ({"num_beams": 1, "until": None}, True),
    ],
)
def test_which_settings_draw(lm, settings, is_greedy):
    """Repeats of a request that draws differ; under a seed of torch the whole is the same again."""
    (greedy,) = lm.generate_until(instances(("def return self", {"max_gen_toks": 12})))
    asked = instances(*[("def return self", {**settings, "max_gen_toks": 12})] * 4)
    found = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            found.append(lm.generate_until(asked))
    assert found[0] == found[1]
    assert (set(found[0]) == {greedy}) is is_greedy
    assert len(set(found[0])) == (1 if is_greedy else 4)


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_the_limit_has_several_names(lm, name):
    (three,) = lm.generate_until(instances(("def return self", {"max_gen_toks": 3})))
    assert lm.generate_until(instances(("def return self", {name: 3}))) == [three]


def test_a_long_prompt_leaves_room_for_the_answer(lm, llama, capsys):
    (found,) = lm.generate_until(instances((LONG, {"max_gen_toks": 28})))
    assert found == TOKENIZER.decode_infilling(
        llama.generate([[BOS, *ids(LONG)][-100:]], 28, temperature=0)[0][0]
    )
    assert "warning: 1 of 1 requests" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, EvaluationError, "max_gen_toks is 256, but max_seq_len is 128"),
        ({"max_gen_toks": 128}, EvaluationError, "max_gen_toks is 128, but max_seq_len is 128"),
        ({"num_beams": 4}, EvaluationError, "'num_beams' .* known are until, max_gen_toks"),
        ({"max_gen_toks": 4, "top_p": 7}, SamplingError, "top_p"),
        ({"max_gen_toks": 4, "until": [3]}, SamplingError, "stop"),
    ],
)
def test_settings_without_a_meaning_are_refused(lm, settings, error, message):
    with pytest.raises(error, match=message):
        lm.generate_until(instances(("def", settings)))


def test_a_control_piece_in_a_text_stays_text(lm, llama):
    text = "</s><s> <PRE> x ⟨bos⟩"
    assert TOKENIZER.control_ids.isdisjoint(ids(text))
    close(
        lm.loglikelihood(instances(("def", text)))[0],
        summed([BOS, *ids("def")], ids("def" + text)[len(ids("def")) :]),
    )


DIALOG = [
    {"role": "system", "content": "self value"},
    {"role": "user", "content": "def return"},
    {"role": "assistant", "content": "list"},
    {"role": "user", "content": "index"},
]


@pytest.mark.parametrize("kind", ["infilling", "step"])
def test_a_dialog_is_answered_as_the_library_answers_it(kind):
    """With the control ids between its turns, which have no text."""
    llama = tiny_llama(kind=kind)
    lm = LlamaLM(llama)
    text = lm.apply_chat_template(DIALOG)
    assert text.count("⟨bos⟩") == (2 if kind == "infilling" else 1)
    (expected,) = llama.chat_completion([DIALOG], temperature=0, max_gen_len=9)
    assert lm.generate_until(instances((text, {"max_gen_toks": 9}))) == [expected["generation"]["content"]]
    assert lm.chat_template(True) == ("[INST]" if kind == "infilling" else "<step>")


def test_a_continuation_of_a_dialog_is_scored_behind_its_ids(lm, llama):
    text = lm.apply_chat_template(DIALOG)
    prompt = [*lm._dialogs[text].tokens]
    assert prompt.count(BOS) == 2
    after = TOKENIZER.encode_infilling(" list")
    close(lm.loglikelihood(instances((text, " list")))[0], summed(prompt, after))


def test_the_beginning_of_an_answer_is_continued(lm, llama):
    """lm-eval's gen_prefix: the last message is the assistant's."""
    text = lm.apply_chat_template(
        [*DIALOG, {"role": "assistant", "content": "print"}], add_generation_prompt=False
    )
    prompt = [*lm._dialogs[lm.apply_chat_template(DIALOG)].tokens, *TOKENIZER.encode_infilling(" print")]
    expected = TOKENIZER.decode_infilling(llama.generate([prompt], 7, temperature=0)[0][0])
    assert lm.generate_until(instances((text, {"max_gen_toks": 7}))) == [expected]


def test_what_the_chat_format_cannot_say_is_refused(lm):
    with pytest.raises(DialogError):
        lm.apply_chat_template([{"role": "assistant", "content": "x"}])
    with pytest.raises(UnsafeTagError):
        lm.apply_chat_template([{"role": "user", "content": "[/INST] x"}])
    step = LlamaLM(tiny_llama(kind="step"))
    with pytest.raises(UnsupportedError, match="gen_prefix"):
        step.apply_chat_template(
            [*DIALOG, {"role": "assistant", "content": "x"}], add_generation_prompt=False
        )


def test_a_dialog_of_another_run_is_refused_and_not_read_as_text(lm, llama):
    """lm-eval may keep requests on disk, under a name that holds `tokenizer_name`: no two runs share that."""
    other = LlamaLM(llama)
    assert other.tokenizer_name != lm.tokenizer_name
    lm.apply_chat_template(DIALOG)
    text = other.apply_chat_template(DIALOG[1:2])
    with pytest.raises(EvaluationError, match="cache_requests"):
        lm.loglikelihood(instances((text, " x")))


def test_the_cache_hears_of_every_answer(lm):
    pairs = [("def", " return"), ("", "self")]
    found = lm.loglikelihood(instances(*pairs))
    total = lm.loglikelihood_rolling(instances(("value",)))
    settings = {"max_gen_toks": 3}
    text = lm.generate_until(instances(("def", settings)))
    assert lm.cache_hook.seen == [
        *(("loglikelihood", pair, result) for pair, result in zip(pairs, found, strict=True)),
        ("loglikelihood_rolling", ("value",), total[0]),
        ("generate_until", ("def", settings), text[0]),
    ]


def test_an_interrupted_call_leaves_the_cache_what_is_done(lm, monkeypatch):
    monkeypatch.setattr(scoring, "_CALL_TOKENS", 1)

    def interrupt(kind, args, result, of=lm.cache_hook.add_partial):
        of(kind, args, result)
        raise KeyboardInterrupt

    monkeypatch.setattr(lm.cache_hook, "add_partial", interrupt)
    for ask, args in (
        (lm.loglikelihood, [("def", " return"), ("", "self")]),
        (lm.generate_until, [("def", {"max_gen_toks": 3}), ("def", {"max_gen_toks": 9})]),
    ):
        lm.cache_hook.seen.clear()
        with pytest.raises(KeyboardInterrupt):
            ask(instances(*args))
        assert len(lm.cache_hook.seen) == 1
