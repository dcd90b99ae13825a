"""Laws of ids and scores: what transformers computes with the same weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from api_calls import NEVER, PROMPTS, TOKENIZER, encode, log_softmax, other, twin_scores
from tiny_llama import SHAPES, twin, twin_logits


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
