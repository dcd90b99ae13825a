"""Laws of seeds and samples: a seed repeats a result whatever runs beside it; n samples share one prefill."""

from __future__ import annotations

import pytest
from api_calls import NEVER, PROMPTS, encode, other
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_llama

from llama import Llama


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=8)
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


def test_each_sample_echoes_its_own_prompt(llama):
    prompts = PROMPTS[:2]
    found = llama.text_completion(prompts, 1.5, max_gen_len=2, n=2, echo=True, seed=1)
    plain = llama.text_completion(prompts, 1.5, max_gen_len=2, n=2, seed=1)
    wanted = [prompts[i // 2] + each["generation"] for i, each in enumerate(plain)]
    assert [each["generation"] for each in found] == wanted


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


def test_samples_that_the_cache_cannot_hold_together_run_in_turns():
    alone = other(max_batch_size=8)
    small = Llama(alone.model, alone.tokenizer, cache_tokens=60)
    wanted = alone.text_completion(["def"], 1.0, max_gen_len=20, n=5, seed=3)
    assert small.text_completion(["def"], 1.0, max_gen_len=20, n=5, seed=3) == wanted


def test_top_p_0_is_greedy_as_in_the_reference(llama):
    greedy = llama.text_completion(PROMPTS, 0, max_gen_len=8)
    assert llama.text_completion(PROMPTS, 0.8, 0, 8) == llama.text_completion(PROMPTS, 5.0, -0.0, 8) == greedy
