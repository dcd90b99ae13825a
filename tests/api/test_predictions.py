"""Laws of predicted outputs: they change no result, and a right one saves steps."""

from __future__ import annotations

import pytest
from ranks import ROOT

from llama import Llama
from llama.errors import RequestError


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
        options = {"temperature": 0, "max_gen_len": 60, "ignore_eos": True}
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
