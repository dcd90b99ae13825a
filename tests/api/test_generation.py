"""`Llama`'s calls against transformers, against each other, and against bad input."""

from __future__ import annotations

import array
import copy
import decimal
import fractions
import functools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import ROOT
from tiny_llama import SHAPES, tiny_llama, twin, twin_logits
from tiny_tokenizers import tiny_tokenizer

from llama import Llama
from llama.errors import (
    ConfigError,
    DialogError,
    NumericsError,
    PromptError,
    PromptTooLongError,
    RequestError,
    SamplingError,
    UnsupportedError,
)
from llama.generation import UNSAFE_ERROR
from llama.printable import shown
from llama.prompts import Prompt, chat_prompt, completion_prompt, infilling_prompt

TOKENIZER = tiny_tokenizer()
PROMPTS = [
    "def return self",
    "a b <PRE> c",
    "",
    "    return x(a, b)[0] + 1.5\n",
    "漢字 é 0123456789 class import",
]
NEVER = 10**6  # a stop token that is no id
LIMIT = 128  # max_seq_len of the shared model


@functools.cache
def other(kind="infilling", shape="gqa", max_batch_size=4, seed=None):
    return tiny_llama(shape, kind, max_batch_size=max_batch_size, seed=seed)


def encode(text):
    return TOKENIZER.encode(text, bos=True, eos=False)


def log_softmax(ids, shape="gqa"):
    return torch.log_softmax(twin_logits(ids, shape).double(), dim=-1)


def twin_scores(ids, shape="gqa"):
    """Log-probability of each id but the first, by the twin."""
    return log_softmax(ids, shape)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


# ---- against transformers ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", list(SHAPES))
def test_greedy_is_transformers_generate(shape):
    prompts = [encode(text) for text in PROMPTS]
    got, scores = other(shape=shape).generate(prompts, max_gen_len=40, temperature=0)
    assert scores is None
    for ids, mine in zip(prompts, got, strict=True):
        tensor = torch.tensor([ids])
        theirs = (
            twin(shape)
            .generate(
                tensor,
                attention_mask=torch.ones_like(tensor),
                max_new_tokens=40,
                do_sample=False,
                eos_token_id=TOKENIZER.eos_id,
                pad_token_id=0,
            )[0]
            .tolist()
        )
        assert mine == [token for token in theirs[len(ids) :] if token != TOKENIZER.eos_id]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_log_probabilities_are_the_log_softmax_of_the_twin(llama, temperature):
    prompts = [encode(text) for text in PROMPTS]
    got, scores = llama.generate(prompts, 20, temperature, logprobs=True, seed=4, stop_token=NEVER)
    for ids, mine, values in zip(prompts, got, scores, strict=True):
        assert len(mine) == len(values) == 20
        logs = log_softmax(ids + mine)[len(ids) - 1 : -1]
        assert values == pytest.approx(logs.gather(1, torch.tensor(mine)[:, None])[:, 0].tolist(), abs=2e-3)
        assert all(value < 0 for value in values)
        if temperature == 0:
            assert values == pytest.approx(logs.amax(dim=-1).tolist(), abs=2e-3)


@pytest.mark.parametrize("text", [text for text in PROMPTS if text])
def test_scoring_a_text_is_its_cross_entropy(llama, text):
    """max_gen_len 0 with echo: the log-probabilities sum to minus the cross entropy of the sequence."""
    ids = encode(text)
    (result,) = llama.text_completion([text], max_gen_len=0, echo=True, logprobs=True)
    entropy = torch.nn.functional.cross_entropy(twin_logits(ids)[:-1], torch.tensor(ids[1:]), reduction="sum")
    assert sum(result["logprobs"]) == pytest.approx(-float(entropy), rel=1e-4)
    assert result["logprobs"][0] == 0
    assert result["logprobs"][1:] == pytest.approx(twin_scores(ids).tolist(), abs=2e-3)
    assert result["tokens"] == [TOKENIZER.token_piece(token) for token in ids]
    assert result["generation"] == text
    assert result["finish_reason"] == "length"


def test_echo_scores_prompt_and_generation(llama):
    ids = encode(PROMPTS[0])
    (whole,), (values,) = llama.generate([ids], 10, 0, logprobs=True, echo=True, stop_token=NEVER)
    assert whole[: len(ids)] == ids
    assert len(whole) == len(values) == len(ids) + 10
    assert values[0] == 0
    assert values[1:] == pytest.approx(twin_scores(whole).tolist(), abs=2e-3)
    assert llama.generate([ids], 10, 0, stop_token=NEVER)[0] == [whole[len(ids) :]]


def test_top_alternatives(llama):
    ids = encode(PROMPTS[0])
    (result,) = llama.text_completion(PROMPTS[:1], 0, max_gen_len=6, logprobs=3, echo=True)
    tokens = llama.generate([ids], 6, 0)[0][0]
    logs = log_softmax(ids + tokens)
    assert len(result["top_logprobs"]) == len(result["logprobs"]) == len(ids + tokens)
    assert result["top_logprobs"][0] == {}
    for row, given_ in zip(logs, result["top_logprobs"][1:], strict=False):
        best = row.topk(3)
        assert list(given_) == [TOKENIZER.token_piece(token) for token in best.indices.tolist()]
        assert list(given_.values()) == pytest.approx(best.values.tolist(), abs=2e-3)
    for chosen, top in zip(result["logprobs"][len(ids) :], result["top_logprobs"][len(ids) :], strict=True):
        assert chosen == next(iter(top.values())) == max(top.values())
    assert "top_logprobs" not in llama.text_completion(["a"], 0, max_gen_len=2, logprobs=True)[0]
    assert "top_logprobs" not in llama.text_completion(["a"], 0, max_gen_len=2, logprobs=0)[0]
    assert "logprobs" not in llama.text_completion(["a"], 0, max_gen_len=2, logprobs=0)[0]


def test_samples_are_drawn_from_the_distribution_of_the_twin():
    """Chi-square of 3,000 first tokens at temperature 3, top_p 0.8."""
    rounds, llama, ids = 3000, other(max_batch_size=500), encode(PROMPTS[0])
    got, _ = llama.generate([ids], 1, 3.0, 0.8, stop_token=NEVER, n=rounds, seed=1)
    assert len(got) == rounds
    p = torch.softmax(twin_logits(ids)[-1].double() / 3, dim=-1).numpy()
    order = np.argsort(-p)
    kept = order[np.cumsum(p[order]) - p[order] <= 0.8]
    counts = np.bincount([token for (token,) in got], minlength=len(p))
    assert counts[kept].sum() == rounds
    expected = p[kept] / p[kept].sum() * rounds
    some = expected > 5
    assert some.sum() > 10
    statistic = ((counts[kept] - expected)[some] ** 2 / expected[some]).sum()
    assert statistic < some.sum() - 1 + 4 * math.sqrt(2 * (some.sum() - 1))


# ---- seeds and samples ---------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=7),
    st.integers(0, 6),
    st.sampled_from([0, 7, 2**63, 2**200]),
)
def test_a_seed_repeats_whatever_else_is_in_the_batch(prompts, position, seed):
    position %= len(prompts)
    options = {"temperature": 1.2, "max_gen_len": 12, "seed": seed}
    together = other().text_completion(prompts, **options)
    assert together[position] == other().text_completion([prompts[position]], **options)[0]
    assert together == other(max_batch_size=2).text_completion(prompts, **options)


def test_seeds_differ_and_calls_without_one_do_too(llama):
    def tokens(**options):
        return llama.generate([encode("a")], 20, 1.5, 1.0, stop_token=NEVER, **options)[0][0]

    assert len({tuple(tokens(seed=seed)) for seed in range(4)}) == 4
    assert len({tuple(tokens()) for _ in range(4)}) == 4
    same = llama.generate([encode("a")] * 3, 20, 1.5, 1.0, stop_token=NEVER)[0]
    assert len(set(map(tuple, same))) == 3
    listed = llama.generate([encode("a")] * 2, 20, 1.5, 1.0, stop_token=NEVER, seed=[5, 6])[0]
    assert listed == [tokens(seed=5), tokens(seed=6)]


def test_a_seed_of_build_repeats_the_whole_program():
    def program(seed):
        llama = tiny_llama(seed=seed)
        return [llama.text_completion(["a", "b"], 1.5, max_gen_len=10) for _ in range(2)]

    assert program(3) == program(3) != program(4)
    first, second = program(3)
    assert first != second


def test_n_samples_stand_behind_one_another(llama):
    options = {"temperature": 1.2, "max_gen_len": 10, "seed": 9}
    results = llama.text_completion(PROMPTS[:2], n=6, **options)  # more than max_batch_size
    assert len(results) == 12
    assert len({result["generation"] for result in results}) > 6
    assert results == llama.text_completion(PROMPTS[:2], n=6, **options)
    for i, text in enumerate(PROMPTS[:2]):
        for n in (1, 3, 5):
            assert results[6 * i : 6 * i + n] == llama.text_completion([text], n=n, **options)


def test_n_samples_share_one_prefill(llama, monkeypatch):
    seen, hidden = [], llama.model.hidden
    monkeypatch.setattr(
        llama.model, "hidden", lambda tokens, cache: (seen.append(len(tokens)), hidden(tokens, cache))[1]
    )
    ids = encode(PROMPTS[0])
    llama.generate([ids], 5, 1.0, stop_token=NEVER, n=4)
    assert sum(seen) == len(ids) + 4 * 4


# ---- results -------------------------------------------------------------------------------------


def test_keys_of_the_results(llama):
    scores = {"tokens", "logprobs"}
    (plain,) = llama.text_completion(["a"], 0, max_gen_len=3)
    assert set(plain) == {"generation", "finish_reason"}
    assert set(llama.text_completion(["a"], 0, max_gen_len=3, logprobs=True)[0]) == set(plain) | scores
    (filled,) = llama.text_infilling(["a"], ["b"], 0, max_gen_len=3)
    assert set(filled) == {"generation", "full_text", "finish_reason"}
    assert set(llama.text_infilling(["a"], ["b"], 0, max_gen_len=3, logprobs=True)[0]) == set(filled) | scores
    dialog = [{"role": "user", "content": "a"}]
    (chat,) = llama.chat_completion([dialog], 0, max_gen_len=3)
    assert set(chat) == {"generation", "finish_reason"}
    assert set(chat["generation"]) == {"role", "content"}
    assert chat["generation"]["role"] == "assistant"
    assert set(llama.chat_completion([dialog], 0, max_gen_len=3, logprobs=True)[0]) == set(chat) | scores


@pytest.mark.parametrize("text", PROMPTS)
@pytest.mark.parametrize("seed", range(5))
def test_prompt_and_generation_are_the_decoded_whole(llama, text, seed):
    """The first space of a continuation is kept."""
    ids = encode(text)
    options = {"temperature": 1.5, "max_gen_len": 12, "seed": seed}
    (tokens,), _ = llama.generate([ids], **options)
    (result,) = llama.text_completion([text], **options)
    assert text + result["generation"] == TOKENIZER.decode(ids + tokens)
    (echoed,) = llama.text_completion([text], echo=True, **options)
    assert echoed["generation"] == text + result["generation"]


def only(llama, monkeypatch, allowed):
    """Make a model that writes nothing but these ids."""
    plain, mask = llama.model.logits, torch.full((TOKENIZER.n_words,), -1e4)
    mask[list(allowed)] = 0
    monkeypatch.setattr(llama.model, "logits", lambda hidden: plain(hidden) + mask)


def test_a_leading_space_is_part_of_a_continuation_and_of_no_answer(llama, monkeypatch):
    piece = TOKENIZER.sp_model.piece_to_id("▁def")
    only(llama, monkeypatch, [piece])
    assert llama.text_completion(["a"], 0, max_gen_len=2)[0]["generation"] == " def def"
    assert llama.text_infilling(["a"], ["b"], 0, max_gen_len=2)[0]["full_text"] == "a def defb"
    # Nothing before it: it begins the text, but for the PSM order, in which no middle has a dummy space.
    assert llama.text_completion([""], 0, max_gen_len=2)[0]["generation"] == "def def"
    for suffix_first, wanted in ((True, "def defb"), (False, " def defb")):
        (filled,) = llama.text_infilling([""], ["b"], 0, max_gen_len=2, suffix_first=suffix_first)
        assert filled["full_text"] == wanted
    (chat,) = llama.chat_completion([[{"role": "user", "content": "a"}]], 0, max_gen_len=2)
    assert chat["generation"]["content"] == "def def"


def test_control_ids_give_no_text(llama, monkeypatch):
    control = sorted(TOKENIZER.control_ids - {TOKENIZER.eos_id})
    assert len(control) >= 5
    only(llama, monkeypatch, control)
    dialog = [{"role": "user", "content": "a"}]
    for seed in range(5):
        options = {"temperature": 3.0, "top_p": 1.0, "max_gen_len": 8, "seed": seed}
        assert llama.text_completion(["a"], **options)[0] == {"generation": "", "finish_reason": "length"}
        assert llama.chat_completion([dialog], **options)[0]["generation"]["content"] == ""
        assert llama.text_infilling(["a"], ["b"], **options)[0]["full_text"] == "ab"


@pytest.mark.parametrize("stop", ["eos_id", "eot_id"])
def test_which_control_ids_end_what(llama, monkeypatch, stop):
    """Infilling stops at EOT and at eos, written by hand too; completion and [INST] chat at eos only."""
    only(llama, monkeypatch, [getattr(TOKENIZER, stop)])
    both = "stop" if stop == "eos_id" else "length"
    assert llama.text_infilling(["a"], ["b"], 0, max_gen_len=4)[0]["finish_reason"] == "stop"
    assert llama.text_completion(["a"], 0, max_gen_len=4)[0]["finish_reason"] == both
    (by_hand,) = llama.text_completion([" <PRE> a <SUF> b <MID>"], 0, max_gen_len=4, allow_control=True)
    assert by_hand == {"generation": "", "finish_reason": "stop"}
    (chat,) = llama.chat_completion([[{"role": "user", "content": "a"}]], 0, max_gen_len=4)
    assert chat["finish_reason"] == both


def test_stop_strings_and_stop_ids(llama):
    options = {"temperature": 1.0, "max_gen_len": 20, "seed": 3}
    (free,) = llama.text_completion(["a"], **options)
    text = free["generation"]
    stop = text[5:8]
    (cut,) = llama.text_completion(["a"], stop=stop, logprobs=True, **options)
    assert (cut["generation"], cut["finish_reason"]) == (text[: text.find(stop)], "stop_sequence")
    assert len(cut["tokens"]) == len(cut["logprobs"])
    assert (
        llama.text_completion(["a"], stop=["nowhere", stop], **options)[0]["generation"] == cut["generation"]
    )
    (tokens,), _ = llama.generate([encode("a")], **options)
    (fewer,), _ = llama.generate([encode("a")], stop_ids=[tokens[4]], **options)
    assert fewer == tokens[: tokens.index(tokens[4])]
    (short,), _ = llama.generate([encode("a")], stop_token=tokens[4], **options)
    assert short == fewer


def test_a_stop_token_takes_the_place_of_eos(llama, monkeypatch):
    only(llama, monkeypatch, [TOKENIZER.eos_id])
    assert llama.generate([encode("a")], 5, 0)[0] == [[]]
    assert llama.generate([encode("a")], 5, 0, stop_token=NEVER)[0] == [[TOKENIZER.eos_id] * 5]


# ---- infilling and chat --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix_first", [False, True])
def test_infilling_runs_the_infilling_prompt(llama, suffix_first):
    prefix, suffix = "def a(", "):\n    return <PRE>\r\n"
    prompt = infilling_prompt(TOKENIZER, prefix, suffix, suffix_first=suffix_first)
    (tokens,), _ = llama.generate(
        [list(prompt.tokens)], 15, 0, stop_token=TOKENIZER.eot_id, stop_ids=[TOKENIZER.eos_id]
    )
    (result,) = llama.text_infilling([prefix], [suffix], 0, max_gen_len=15, suffix_first=suffix_first)
    assert result["generation"] == TOKENIZER.decode_infilling(tokens)
    assert result["full_text"] == prefix + result["generation"] + suffix


@pytest.mark.parametrize("mark", ["<FILL>", "<FILL_ME>"])
def test_infilling_of_one_text(llama, mark):
    texts = [f"def a({mark}):\n", f"{mark}x"]
    options = {"temperature": 0.8, "max_gen_len": 9, "seed": 1, "n": 2}
    assert llama.text_infilling(texts, **options) == llama.text_infilling(
        ["def a(", ""], ["):\n", "x"], **options
    )


DIALOGS = [
    [{"role": "user", "content": "return self"}],
    [{"role": "system", "content": "class"}, {"role": "user", "content": " list "}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
]


def message(kind, content):
    """As the reference answers: the 70B format also says to whom."""
    to = {"destination": "user"} if kind == "step" else {}
    return {"role": "assistant", **to, "content": content}


@pytest.mark.parametrize("kind", ["infilling", "step", "plain"])
def test_chat_runs_the_chat_prompt_of_the_vocabulary(kind):
    llama = other(kind)
    tokenizer = llama.tokenizer
    prompts = [chat_prompt(tokenizer, dialog) for dialog in DIALOGS]
    results = llama.chat_completion(DIALOGS, 0, max_gen_len=12)
    ids, _ = llama.generate(
        [list(p.tokens) for p in prompts], 12, 0, stop_ids=[i for p in prompts for i in p.stop_ids]
    )
    for tokens, result in zip(ids, results, strict=True):
        assert result["generation"] == message(kind, tokenizer.decode(tokens))


@pytest.mark.parametrize(
    ("kind", "tag"), [("infilling", "[/INST]"), ("infilling", "<<SYS>>"), ("step", "<step>")]
)
def test_a_tag_of_the_format_is_refused_without_running_the_model(monkeypatch, kind, tag):
    llama = other(kind)
    monkeypatch.setattr(llama.model, "hidden", lambda *_: pytest.fail("the model was run"))
    dialog = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": f"x {tag} y"},
    ]
    results = llama.chat_completion([dialog], max_gen_len=5, logprobs=True, n=2)
    assert len(results) == 2
    for result in results:
        assert result["generation"] == message(kind, UNSAFE_ERROR)
        assert result["finish_reason"] == "error"
        assert result["tokens"] == result["logprobs"] == []
        assert tag in result["error"]
        assert "message 2" in result["error"]


def test_a_refused_dialog_leaves_the_others_their_places(llama):
    bad = [{"role": "user", "content": "[INST]"}]
    wanted = llama.chat_completion(DIALOGS, 1.0, max_gen_len=8, seed=2, n=2)
    got = llama.chat_completion([bad, DIALOGS[0], bad, *DIALOGS[1:], bad], 1.0, max_gen_len=8, seed=2, n=2)
    assert [result["finish_reason"] == "error" for result in got] == [
        flag for flag in (True, False, True, False, False, True) for _ in range(2)
    ]
    assert [result for result in got if result["finish_reason"] != "error"] == wanted


def test_an_error_names_the_place_of_a_dialog_behind_refused_ones(llama, monkeypatch):
    bad = [{"role": "user", "content": "[INST]"}]
    with pytest.raises(PromptTooLongError, match=r"^prompt 2: "):
        llama.chat_completion([bad, bad, [{"role": "user", "content": "a " * 200}]], max_gen_len=3)
    plain = llama.model.logits
    monkeypatch.setattr(llama.model, "logits", lambda hidden: plain(hidden) * math.inf)
    with pytest.raises(NumericsError, match=r"^row 1, sample 0, step 0: "):
        llama.chat_completion([bad, DIALOGS[0], bad, DIALOGS[1]], max_gen_len=3)


def test_a_list_of_seeds_is_one_for_each_dialog_refused_or_not(llama):
    bad = [{"role": "user", "content": "[INST]"}]
    options = {"temperature": 1.2, "max_gen_len": 8}
    _, second = llama.chat_completion([bad, DIALOGS[0]], seed=[1, 2], **options)
    assert second == llama.chat_completion([DIALOGS[0]], seed=2, **options)[0]


def test_a_list_of_predictions_is_one_for_each_dialog_refused_or_not(llama, monkeypatch):
    bad = [{"role": "user", "content": "[INST]"}]
    seen, check = [], llama.engine.check
    monkeypatch.setattr(
        llama.engine, "check", lambda request: (seen.append(request.prediction), check(request))
    )
    llama.chat_completion([bad, DIALOGS[0], bad, DIALOGS[1]], max_gen_len=1, prediction=["a", "b", "c", "d"])
    assert seen[:2] == [tuple(llama.tokenizer.encode(text, bos=False, eos=False)) for text in "bd"]


def test_step_is_plain_code_for_an_inst_model(llama):
    (result,) = llama.chat_completion([[{"role": "user", "content": "<step>"}]], 0, max_gen_len=2)
    assert result["finish_reason"] != "error"


# ---- stream --------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=6),
    st.integers(0, 14),
    st.integers(1, 5),
    st.sampled_from([(), ("e",), (" a", "re")]),
)
def test_joined_deltas_are_the_generation(prompts, max_gen_len, n, stop):
    options = {"temperature": 1.2, "max_gen_len": max_gen_len, "seed": 3, "n": n, "stop": stop}
    texts, reasons = {}, {}
    for delta in other().stream(prompts, **options):
        key = delta.index, delta.sample
        assert key not in reasons
        texts[key] = texts.get(key, "") + delta.text
        if delta.finish_reason is not None:
            reasons[key] = delta.finish_reason
    wanted = other().text_completion(prompts, **options)
    keys = [(i, j) for i in range(len(prompts)) for j in range(n)]
    assert [{"generation": texts[key], "finish_reason": reasons[key]} for key in keys] == wanted


def test_deltas_come_as_they_are_made(llama):
    """A delta for each token, not all at the end; prompts of other formats too."""
    prompt = infilling_prompt(TOKENIZER, "a", "b")
    free = Prompt(prompt.tokens, frozenset(), start_of_text=False)
    deltas = list(llama.stream([free, "x"], 0, max_gen_len=10, stop_ids=[NEVER]))
    first = [delta for delta in deltas if delta.index == 0]
    assert len(first) == 10
    assert [delta.finish_reason for delta in first] == [None] * 9 + ["length"]
    assert "".join(delta.text for delta in first[:5])


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_leaving_a_stream_early_frees_the_engine(llama, taken):
    stream = llama.stream(["a", "b", "c", "d", "e", "f"], 0, max_gen_len=50, n=2)
    for _ in range(taken):
        next(stream)
    stream.close()
    assert not llama.engine.unfinished
    assert llama.text_completion(["a"], 0, max_gen_len=5) == other().text_completion(["a"], 0, max_gen_len=5)


def test_an_error_in_the_loop_frees_the_engine(llama):
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        for _ in llama.stream(["a", "b"], 0, max_gen_len=50):
            1 / 0  # noqa: B018
    assert not llama.engine.unfinished


def test_a_call_while_a_stream_is_open():
    """As in a notebook: neither sees the other."""
    llama = tiny_llama()
    wanted = "".join(delta.text for delta in llama.stream(["a b"], 0, max_gen_len=10))
    call = llama.text_completion(["def"], 0, max_gen_len=20)
    text = ""
    for i, delta in enumerate(llama.stream(["a b"], 0, max_gen_len=10)):
        text += delta.text
        if i == 2:
            assert llama.text_completion(["def"], 0, max_gen_len=20) == call
    assert text == wanted


def test_two_streams_side_by_side():
    llama = tiny_llama()
    texts = [["a b"], ["def return"]]
    wanted = ["".join(delta.text for delta in llama.stream(text, 0, max_gen_len=10)) for text in texts]
    streams = [llama.stream(text, 0, max_gen_len=10) for text in texts]
    got = ["", ""]
    while streams[0] or streams[1]:
        for i, stream in enumerate(streams):
            delta = next(stream, None) if stream else None
            got[i] += delta.text if delta else ""
            streams[i] = stream if delta else None
    assert got == wanted


def test_bad_input_raises_at_the_call_of_stream(llama):
    for call in (
        lambda: llama.stream([]),
        lambda: llama.stream("a"),
        lambda: llama.stream(["a"], temperature=-1),
        lambda: llama.stream([5]),
        lambda: llama.stream(["a"] * 2, seed=[1]),
        lambda: llama.stream(["a " * 500]),
    ):
        with pytest.raises(RequestError):
            call()


# ---- lengths -------------------------------------------------------------------------------------


def test_without_a_length_all_the_room_is_used(llama):
    for length in (1, 50, LIMIT - 1):
        (tokens,), _ = llama.generate([[5] * length], None, 0, stop_token=NEVER)
        assert len(tokens) == LIMIT - length
    (tokens,), _ = llama.generate([[5] * 100], 1000, 0, stop_token=NEVER)
    assert len(tokens) == LIMIT - 100
    with pytest.raises(PromptTooLongError):
        llama.generate([[5] * LIMIT], None)


@pytest.mark.parametrize("length", [LIMIT, LIMIT + 1, 3 * LIMIT])
def test_a_prompt_without_room_is_refused_with_the_numbers(llama, length):
    for max_gen_len in (None, 1, 1000):
        with pytest.raises(
            PromptTooLongError, match=f"prompt 1: .* {length} tokens.* max_seq_len is {LIMIT}"
        ):
            llama.generate([[5], [5] * length], max_gen_len)
    assert not llama.engine.unfinished


def test_a_full_prompt_can_be_scored(llama):
    ids = [1] + [7, 8, 9] * 50
    ids = ids[:LIMIT]
    _, (values,) = llama.generate([ids], 0, logprobs=True, echo=True)
    assert values[1:] == pytest.approx(twin_scores(ids).tolist(), abs=2e-3)
    with pytest.raises(PromptTooLongError, match=f"{LIMIT + 1} tokens"):
        llama.generate([[*ids, 7]], 0, logprobs=True, echo=True)


def test_more_prompts_than_places_are_run_in_turns(llama):
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(11)]
    results = llama.text_completion(prompts, 0, max_gen_len=7)
    assert results == [llama.text_completion([text], 0, max_gen_len=7)[0] for text in prompts]


# ---- bad input -----------------------------------------------------------------------------------

USER = {"role": "user", "content": "a"}
SYSTEM = {"role": "system", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "a"}
BAD_CALLS = {
    "no prompts": (lambda m: m.text_completion([]), RequestError, "batch is empty"),
    "no ids": (lambda m: m.generate([], 5), RequestError, "batch is empty"),
    "no prefixes": (lambda m: m.text_infilling([], []), RequestError, "batch is empty"),
    "no dialogs": (lambda m: m.chat_completion([]), RequestError, "batch is empty"),
    "empty ids": (lambda m: m.generate([[1], []], 5), PromptError, "prompt 1: the prompt has no tokens"),
    "id outside": (lambda m: m.generate([[1, 999]], 5), PromptError, "prompt 0: .*id 999, .*0 to 435"),
    "negative id": (lambda m: m.generate([[-1]], 5), PromptError, "id -1"),
    "id of text": (lambda m: m.generate([["a"]], 5), PromptError, r"prompt_tokens\[0\] holds 'a'"),
    "broken id": (lambda m: m.generate([[1, 1.5]], 5), PromptError, r"prompt_tokens\[0\] holds 1\.5"),
    "one list of ids": (lambda m: m.generate([1, 2], 5), RequestError, r"prompt_tokens\[0\] is int"),
    "text for ids": (lambda m: m.generate("abc", 5), RequestError, "list of lists"),
    "texts for ids": (lambda m: m.generate(["abc"], 5), RequestError, r"prompt_tokens\[0\] is str"),
    "truth for ids": (
        lambda m: m.generate(torch.tensor([[True]]), 5),
        PromptError,
        r"prompt_tokens\[0\] holds True",
    ),
    "fractions for ids": (lambda m: m.generate(np.ones((1, 2)), 5), PromptError, r"holds 1\.0"),
    "a lone text": (
        lambda m: m.text_completion("abc"),
        PromptError,
        "prompts must be a list of strings, not str; put it in brackets",
    ),
    "a set": (lambda m: m.text_completion({"a"}), PromptError, "not set; a set has no order"),
    "a mapping": (lambda m: m.text_completion({"a": 1}), PromptError, "list of strings, not dict$"),
    "a number": (lambda m: m.text_completion(5), PromptError, "list of strings, not int$"),
    "an array of one text": (lambda m: m.text_completion(np.array("a")), PromptError, "not ndarray$"),
    "no text": (lambda m: m.text_completion(["a", 5]), PromptError, r"prompts\[1\] is int"),
    "none": (lambda m: m.text_completion(None), PromptError, "NoneType"),
    "bytes": (lambda m: m.text_completion([b"a"]), PromptError, r"prompts\[0\] is bytes"),
    "surrogate": (lambda m: m.text_completion(["\ud800"]), PromptError, "U\\+D800"),
    "more prefixes": (
        lambda m: m.text_infilling(["a", "b"], ["c"]),
        RequestError,
        "2 prefixes, but 1 suffixes",
    ),
    "more suffixes": (
        lambda m: m.text_infilling(["a"], ["c", "d"]),
        RequestError,
        "1 prefixes, but 2 suffixes",
    ),
    "no FILL": (lambda m: m.text_infilling(["a"]), PromptError, "exactly one <FILL>.*found 0"),
    "two FILLs": (lambda m: m.text_infilling(["<FILL> <FILL_ME>"]), PromptError, "found 2"),
    "suffix no text": (lambda m: m.text_infilling(["a"], [None]), PromptError, r"suffixes\[0\] is NoneType"),
    "only system": (lambda m: m.chat_completion([[SYSTEM]]), DialogError, "only a system message"),
    "answer first": (
        lambda m: m.chat_completion([[ASSISTANT]]),
        DialogError,
        "message 0 .*'assistant', expected 'user'",
    ),
    "user twice": (
        lambda m: m.chat_completion([[USER, USER]]),
        DialogError,
        "message 1 .*expected 'assistant'",
    ),
    "system late": (lambda m: m.chat_completion([[USER, SYSTEM]]), DialogError, "message 1 .*'system'"),
    "ends with answer": (
        lambda m: m.chat_completion([[USER, ASSISTANT]]),
        DialogError,
        "message 1, the last",
    ),
    "unknown role": (
        lambda m: m.chat_completion([[{"role": "tool", "content": "a"}]]),
        DialogError,
        "message 0 .*unknown role 'tool'",
    ),
    "no content": (lambda m: m.chat_completion([[{"role": "user"}]]), DialogError, "no 'content'"),
    "empty dialog": (lambda m: m.chat_completion([[]]), DialogError, "dialog is empty"),
    "one dialog": (lambda m: m.chat_completion([USER]), DialogError, "list of messages"),
    "dialog of text": (lambda m: m.chat_completion("hello"), RequestError, "list of lists"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_named(llama, monkeypatch, name):
    monkeypatch.setattr(llama.model, "hidden", lambda *_: pytest.fail("the model was run"))
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call(llama)
    assert not llama.engine.unfinished


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("temperature", -0.1, SamplingError),
        ("temperature", math.nan, SamplingError),
        ("temperature", math.inf, SamplingError),
        ("temperature", "0", SamplingError),
        ("temperature", 10**400, SamplingError),
        ("temperature", np.True_, SamplingError),
        ("top_p", -0.1, SamplingError),
        ("top_p", 1.1, SamplingError),
        ("top_p", math.nan, SamplingError),
        ("top_k", -1, SamplingError),
        ("min_p", 1.5, SamplingError),
        ("repetition_penalty", 0, SamplingError),
        ("max_gen_len", -1, SamplingError),
        ("max_gen_len", 2.0, SamplingError),
        ("max_gen_len", np.float32(2), SamplingError),
        ("n", 0, SamplingError),
        ("n", True, SamplingError),
        ("logprobs", -1, SamplingError),
        ("logprobs", 2.5, SamplingError),
        ("logprobs", 437, RequestError),
        ("stop", "", SamplingError),
        ("stop", ["a", ""], SamplingError),
        ("stop", [5], SamplingError),
        ("stop", 5, SamplingError),
        ("stop_ids", [-1], SamplingError),
        ("stop_ids", ["a"], SamplingError),
        ("stop_ids", 5, SamplingError),
        ("seed", -1, SamplingError),
        ("seed", 1.5, SamplingError),
        ("seed", "5", RequestError),
        ("seed", True, SamplingError),
        ("seed", [1, 2], RequestError),
        ("seed", [], RequestError),
        ("seed", [-3], SamplingError),
    ],
)
@pytest.mark.parametrize(
    "call", ["generate", "text_completion", "text_infilling", "chat_completion", "stream"]
)
def test_bad_options_are_named(llama, call, option, value, error):
    if call == "stream" and option == "logprobs":
        pytest.skip("a stream has no scores")
    arguments = {
        "generate": ([[1, 5]],),
        "text_completion": (["a"],),
        "text_infilling": (["a"], ["b"]),
        "chat_completion": ([[USER]],),
        "stream": (["a"],),
    }[call]
    options = {option: value} if call != "generate" else {"max_gen_len": 3, option: value}
    with pytest.raises(error) as caught:
        getattr(llama, call)(*arguments, **options)
    if option == "seed" and isinstance(value, list) and value != [-3]:
        assert f"{len(value)} seeds for 1 prompts" in str(caught.value)
    elif option == "seed" and value == [-3]:
        assert "seed is -3" in str(caught.value)
    elif option == "stop_ids" and isinstance(value, list):
        assert f"stop_ids is {value[0]!r}" in str(caught.value)
    elif option != "stop" and value != 437:
        assert f"{option} is {shown(value)}" in str(caught.value)
        assert len(str(caught.value)) < 300
    else:
        assert option in str(caught.value) or "437" in str(caught.value)
    assert not llama.engine.unfinished


NUMBERS = {
    "numpy": (np.int64, np.float32),
    "small numpy": (np.uint8, np.float16),
    "arrays": (np.array, np.array),
    "tensors": (torch.tensor, torch.tensor),
    "fractions": (int, fractions.Fraction),
    "decimals": (int, lambda value: decimal.Decimal(str(value))),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_any_type_are_taken(llama, kind):
    whole, part = NUMBERS[kind]

    def call(whole, part):
        return llama.text_completion(
            ["a", "b"],
            part(0.75),
            part(0.875),
            whole(6),
            logprobs=whole(2),
            top_k=whole(50),
            min_p=part(0.0),
            repetition_penalty=part(1.25),
            stop_ids=[whole(5)],
            seed=whole(7),
            n=whole(2),
        ), llama.generate([[whole(1), whole(9)]], whole(4), part(0.0), stop_token=whole(3))

    assert call(whole, part) == call(int, float)
    assert llama.requests(["a"], part(0.75), seed=whole(7)) == llama.requests(["a"], 0.75, seed=7)


LISTS = {
    "a generator": lambda items: (each for each in items),
    "map": lambda items: map(copy.copy, items),
    "a tuple": tuple,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "an array": np.array,
    "an array of objects": lambda items: np.array(items, dtype=object),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_any_kind_are_taken(llama, kind):
    """And gone through once."""
    made = LISTS[kind]

    def calls(made):
        options = {"temperature": 0.8, "max_gen_len": 5}
        texts = ["a", "def b"]
        return [
            llama.text_completion(
                made(texts), stop=made(["zz", "yy"]), stop_ids=made([5, 6]), seed=made([1, 2]), **options
            ),
            llama.text_completion(made(texts), prediction=made(["x", "y"]), seed=3, **options),
            llama.text_infilling(made(texts), made(["c", "d"]), seed=3, **options),
            [(delta.text, delta.index) for delta in llama.stream(made(texts), seed=3, **options)],
        ]

    assert calls(made) == calls(list)


@pytest.mark.parametrize("made", [tuple, iter, lambda dialogs: map(iter, dialogs)])
def test_dialogs_in_lists_of_any_kind_are_taken(llama, made):
    assert llama.chat_completion(made(DIALOGS), 0, max_gen_len=5) == llama.chat_completion(
        DIALOGS, 0, max_gen_len=5
    )


@pytest.mark.parametrize(
    "made",
    [
        np.array,
        torch.tensor,
        lambda ids: [np.array(row, dtype=np.int32) for row in ids],
        lambda ids: [torch.tensor(row) for row in ids],
        lambda ids: (range(row[0], row[-1] + 1) for row in ids),
        lambda ids: [array.array("l", row) for row in ids],
        lambda ids: [map(np.uint16, row) for row in ids],
    ],
)
def test_ids_of_any_integer_type_are_taken(llama, made):
    ids = [[10, 11, 12], [40, 41, 42]]
    assert llama.generate(made(ids), 4, 0, echo=True) == llama.generate(ids, 4, 0, echo=True)


def test_sizes_of_a_build_may_be_numpys(tiny_checkpoint):
    sizes = {"max_seq_len": np.int64(64), "max_batch_size": np.int16(2), "model_parallel_size": np.uint8(1)}
    with Llama.build(tiny_checkpoint, device="cpu", seed=np.int64(3), cache_memory=2**20, **sizes) as made:
        assert (made.model.params.max_seq_len, made.model.params.max_batch_size) == (64, 2)
        cache_tokens = made.engine.cache_tokens
        got = made.text_completion(["a"], max_gen_len=4)
    with Llama.build(
        tiny_checkpoint, None, 64, 2, device="cpu", seed=3, cache_memory=np.int64(2**20)
    ) as made:
        assert made.engine.cache_tokens == cache_tokens
        assert made.text_completion(["a"], max_gen_len=4) == got
    for name, value in {
        "max_seq_len": np.float64(64),
        "max_batch_size": True,
        "model_parallel_size": 0,
    }.items():
        with pytest.raises(ConfigError, match=re.escape(f"{name} is {value!r}")):
            Llama.build(tiny_checkpoint, device="cpu", **{name: value})


def test_an_array_with_an_axis_is_no_number(llama):
    for value in (np.ones(1), torch.ones(1), np.ones((1, 1)), torch.ones(2)):
        with pytest.raises(SamplingError, match="temperature is "):
            llama.text_completion(["a"], temperature=value)
        with pytest.raises(SamplingError, match="n is "):
            llama.text_completion(
                ["a"], n=value.astype(int) if isinstance(value, np.ndarray) else value.int()
            )


def test_numbers_too_long_to_write_out_are_refused_by_their_size(llama):
    for option in ("n", "seed", "top_k", "max_gen_len", "logprobs", "temperature"):
        for value in (10**5000, -(10**5000)):
            if option == "top_k" and value > 0:
                continue  # all of the vocabulary
            with pytest.raises(SamplingError, match=f"{option} is an integer of 16610 bits"):
                llama.text_completion(["a"], **{option: value})


def test_a_bad_seed_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(SamplingError, match="seed is -1"):
        Llama.build(tmp_path / "nowhere", seed=-1)


def test_the_negative_temperature_of_the_reference_is_explained(llama):
    with pytest.raises(SamplingError, match="the reference takes below 0 too, pass 0"):
        llama.text_completion(["a"], temperature=-1)


def test_top_p_0_is_greedy_as_in_the_reference(llama):
    greedy = llama.text_completion(PROMPTS, 0, max_gen_len=8)
    assert llama.text_completion(PROMPTS, 0.8, 0, 8) == llama.text_completion(PROMPTS, 5.0, -0.0, 8) == greedy


def test_an_unknown_option_is_a_type_error(llama):
    for call in (llama.text_completion, llama.stream):
        with pytest.raises(TypeError, match="temprature"):
            call(["a"], temprature=1)


def test_infilling_needs_the_pieces():
    with pytest.raises(UnsupportedError, match=r"▁<PRE>.*▁<EOT>"):
        other("plain").text_infilling(["a"], ["b"])


def test_one_bad_prompt_runs_none(llama, monkeypatch):
    monkeypatch.setattr(llama.model, "hidden", lambda *_: pytest.fail("the model was run"))
    with pytest.raises(PromptTooLongError, match="prompt 2"):
        llama.text_completion(["a", "b", "c " * 300, "d"], max_gen_len=3)
    assert not llama.engine.unfinished


def test_numbers_that_are_not_finite_raise_and_the_next_call_works(llama, monkeypatch):
    wanted = llama.text_completion(PROMPTS, 0, max_gen_len=6)
    with monkeypatch.context() as patch:
        plain = llama.model.logits
        patch.setattr(llama.model, "logits", lambda hidden: plain(hidden) * math.inf)
        with pytest.raises(NumericsError, match=r"sample 0, step 0: .*torch\.float32"):
            llama.text_completion(PROMPTS, max_gen_len=6)
    assert not llama.engine.unfinished
    assert llama.text_completion(PROMPTS, 0, max_gen_len=6) == wanted


def test_allow_control_lets_a_prompt_be_written_by_hand(llama):
    text = "<PRE> a <SUF> b <MID>"
    tokens = encode(text)
    by_hand = TOKENIZER.encode(text, bos=True, eos=False, allow_control=True)
    assert TOKENIZER.control_ids.isdisjoint(tokens[1:])
    assert not TOKENIZER.control_ids.isdisjoint(by_hand[1:])
    for ids, allow in ((tokens, False), (by_hand, True)):
        (result,) = llama.text_completion(
            [text], 0, max_gen_len=5, allow_control=allow, logprobs=True, echo=True
        )
        assert result["tokens"][: len(ids)] == [TOKENIZER.token_piece(token) for token in ids]
    assert completion_prompt(TOKENIZER, text).tokens == tuple(tokens)


@pytest.mark.parametrize("options", [{"foo": 1}, {"echo": True}])
def test_unknown_options_are_named(llama, options):
    with pytest.raises(TypeError, match=next(iter(options))):
        llama.chat_completion(DIALOGS, **options)


def test_samples_that_the_cache_cannot_hold_together_run_in_turns():
    alone = other(max_batch_size=8)
    small = Llama(alone.model, alone.tokenizer, cache_tokens=60)
    wanted = alone.text_completion(["def"], 1.0, max_gen_len=20, n=5, seed=3)
    assert small.text_completion(["def"], 1.0, max_gen_len=20, n=5, seed=3) == wanted


def test_what_stream_refuses_it_refuses_at_once(llama):
    with pytest.raises(PromptTooLongError):
        llama.stream(["a " * 5000], max_gen_len=1)


@pytest.mark.parametrize("call", ["text_completion", "chat_completion", "text_infilling"])
def test_errors_name_the_place_in_the_call(llama, call):
    bad = {
        "text_completion": (["x", "\ud800"],),
        "chat_completion": ([DIALOGS[0], []],),
        "text_infilling": (["<FILL>", "none"],),
    }
    with pytest.raises(PromptError, match=r"^prompt 1: "):
        getattr(llama, call)(*bad[call])


def test_the_empty_prompt_begins_a_text(llama):
    ids, _ = llama.generate([[TOKENIZER.bos_id]], 8, 0, stop_token=TOKENIZER.eos_id)
    (result,) = llama.text_completion([""], 0, max_gen_len=8)
    assert result["generation"] == TOKENIZER.decode(ids[0])


def test_a_state_dict_goes_out_and_in():
    made = other().model
    before = {name: value.clone() for name, value in made.state_dict().items()}
    assert before["layers.0.attention.wq.weight"].shape == (made.params.dim, made.params.dim)
    made.load_state_dict(before)
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name])


# ---- predictions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_prediction_changes_no_result(llama: Llama, temperature: float) -> None:
    """Right, wrong, for one prompt or all of them, and switched off."""
    prompts = ["def return", "self value list"]
    sampling: dict[str, object] = {"temperature": temperature, "seed": 3, "max_gen_len": 24, "logprobs": 2}
    wanted = llama.text_completion(prompts, speculate=False, **sampling)
    texts = [result["generation"] for result in wanted]
    for options in ({}, {"prediction": texts}, {"prediction": texts[0]}, {"prediction": ["nonsense", ""]}):
        found = llama.text_completion(prompts, **sampling, **options)
        for a, b in zip(found, wanted, strict=True):
            assert (a["generation"], a["tokens"]) == (b["generation"], b["tokens"])
            assert a["logprobs"] == pytest.approx(b["logprobs"], abs=1e-4)


def test_a_right_prediction_saves_steps() -> None:
    """With the bundled model: the text of random weights does not encode to the ids that it was."""
    steps: list[int] = []
    with Llama.build(ROOT / "CodeLlama-tiny", max_seq_len=256, dtype="float32") as llama:
        advance = llama.engine.advance
        llama.engine.advance = lambda: (steps.append(1), advance())[1]
        options = {"temperature": 0, "max_gen_len": 60}
        text = llama.text_completion(["class Stack:\n"], speculate=False, **options)[0]["generation"]
        plain = len(steps)
        steps.clear()
        assert llama.text_completion(["class Stack:\n"], prediction=text, **options)[0]["generation"] == text
    assert len(steps) < plain / 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prediction": ["a"]}, "1 texts for 2 prompts"),
        ({"prediction": 3}, "prediction"),
        ({"prediction": ["a", 3]}, "prediction"),
        ({"speculate": "yes"}, "speculate is 'yes'"),
    ],
)
def test_bad_predictions_are_refused(llama: Llama, options, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        llama.text_completion(["def", "return"], max_gen_len=4, **options)


def test_the_last_delta_of_a_stream_has_counts_and_times(llama: Llama) -> None:
    *before, last = llama.stream(["def return self"], temperature=0, max_gen_len=8)
    assert all(delta.counts is None for delta in before)
    assert last.counts is not None
    assert last.times is not None
    assert last.counts.prompt == len(llama.tokenizer.encode("def return self", bos=True, eos=False))
    assert last.counts.generated == 8
    waited, first, total = last.times.waited, last.times.to_first_token, last.times.total
    assert waited is not None
    assert first is not None
    assert total is not None
    assert 0 <= waited <= first <= total
