"""Laws of infilling and chat: they run the prompt of their format, and a refused dialog leaves the others alone."""

from __future__ import annotations

import math

import pytest
from api_calls import DIALOGS, TOKENIZER, other

from llama.errors import NumericsError, PromptTooLongError, UnsupportedError
from llama.generation import UNSAFE_ERROR
from llama.prompts import chat_prompt, infilling_prompt


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


def test_infilling_needs_the_pieces():
    with pytest.raises(UnsupportedError, match=r"▁<PRE>.*▁<EOT>"):
        other("plain").text_infilling(["a"], ["b"])


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


def test_step_is_plain_code_for_an_inst_model(llama):
    (result,) = llama.chat_completion([[{"role": "user", "content": "<step>"}]], 0, max_gen_len=2)
    assert result["finish_reason"] != "error"


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
