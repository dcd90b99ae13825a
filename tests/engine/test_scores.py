"""Log-probabilities are the model's own, of prompt and output, and the penalty sees both."""

from __future__ import annotations

import pytest
import torch
from engine_requests import PENALIZED, TOKENIZER, alone, ask, ids, model, run
from tiny_llama import twin_logits

from llama.engine import Engine
from llama.sampling import SamplingParams


@pytest.mark.parametrize(("length", "step_tokens"), [(40, 1), (200, 50), (200, 1024)])
def test_prompt_scores_are_the_log_softmax_of_the_twin(length, step_tokens):
    """200 tokens: more than the rows of logits that exist at once."""
    prompt = ids(length)
    engine = Engine(model(4, 256), TOKENIZER, step_tokens=step_tokens)
    request = ask(prompt, 2, score_prompt=True, top=3)
    sequence = run(engine, [request])[0, 0].sequence
    logs = torch.log_softmax(twin_logits([*prompt, *sequence.output], "fused").double(), dim=-1)
    every = [*sequence.prompt_scores, *sequence.scores]
    assert len(every) == length - 1 + 2
    for row, target, score in zip(logs, [*prompt[1:], *sequence.output], every, strict=False):
        assert score.logprob == pytest.approx(float(row[target]), abs=2e-3)
        best = row.topk(3)
        assert [token for token, _ in score.top] == best.indices.tolist()
        assert [value for _, value in score.top] == pytest.approx(best.values.tolist(), abs=2e-3)
    assert [score.logprob for score in sequence.scores] == [score.top[0][1] for score in sequence.scores]


def test_scores_are_of_the_model_not_of_the_limits():
    """Temperature, top-k and penalty choose; the log-probability is still the model's."""
    result = alone(ask(12, 8, PENALIZED, seed=2))
    logs = torch.log_softmax(twin_logits([*ids(12), *result.sequence.output], "fused").double(), dim=-1)[11:]
    for row, token, score in zip(logs, result.sequence.output, result.sequence.scores, strict=False):
        assert score.logprob == pytest.approx(float(row[token]), abs=2e-3)


def test_each_request_gets_the_alternatives_it_asked_for():
    wanted = [ask(ids(6, i), 4, top=i) for i in range(4)]
    for (i, _), result in run(Engine(model(4), TOKENIZER), wanted).items():
        assert [len(score.top) for score in result.sequence.scores] == [i] * 4


@pytest.mark.parametrize("output_only", [{"presence_penalty": 100}, {"frequency_penalty": 100}])
def test_presence_and_frequency_see_the_output_alone(output_only):
    """No id comes twice, and ids of the prompt are as likely as without a penalty."""
    result = alone(ask(20, 15, SamplingParams(temperature=0, **output_only)))
    output = result.sequence.output
    assert len(set(output)) == 15
    logits = twin_logits([*ids(20), *output], "fused")
    for position in range(15):
        row = logits[19 + position].clone()
        row[output[:position]] = -torch.inf
        assert int(row.argmax()) == output[position]
        assert result.sequence.scores[position].logprob == pytest.approx(
            float(torch.log_softmax(logits[19 + position].double(), dim=-1)[output[position]]), abs=2e-3
        )


def test_a_bias_chooses_and_rules_out_and_the_scores_stay_the_models():
    free = alone(ask(20, 6)).sequence.output
    without = alone(ask(20, 6, SamplingParams(temperature=0, logit_bias=dict.fromkeys(free, -100))))
    assert not set(without.sequence.output) & set(free)
    only = alone(ask(20, 6, SamplingParams(temperature=1.0, logit_bias={77: 100}), seed=3, top=1))
    assert only.sequence.output == [77] * 6
    logs = torch.log_softmax(twin_logits([*ids(20), *[77] * 6], "fused").double(), dim=-1)[19:]
    for row, score in zip(logs, only.sequence.scores, strict=False):
        assert score.logprob == pytest.approx(float(row[77]), abs=2e-3)
        assert score.top[0][0] == int(row.argmax())


def test_a_plain_row_is_untouched_by_its_neighbours_bias():
    biased = SamplingParams(temperature=0, logit_bias={77: 100})
    results = run(Engine(model(4), TOKENIZER), [ask(20, 6, biased), ask(20, 6), ask(ids(9, 2), 6)])
    assert results[0, 0].sequence.output == [77] * 6
    for i, request in ((1, ask(20, 6)), (2, ask(ids(9, 2), 6))):
        assert results[i, 0].whole == alone(request).whole


def test_the_penalty_sees_prompt_and_output():
    strong = SamplingParams(temperature=0, repetition_penalty=1e6)
    result = alone(ask(20, 15, strong))
    everything = [*ids(20), *result.sequence.output]
    logits = twin_logits(everything, "fused")
    for position in range(20, 35):
        row = logits[position - 1].clone()
        seen = torch.tensor(sorted(set(everything[:position])))
        row[seen] = torch.where(row[seen] > 0, row[seen] / 1e6, row[seen] * 1e6)
        assert int(row.argmax()) == everything[position]
