"""Bias and penalties by hand: what each adds to a row of logits, in which order, and whose ids count."""

from __future__ import annotations

import math

import pytest
import torch
from draws import adjusted as adjusted_row
from draws import penalized
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.kernels.adjust import adjust, changes, joined
from llama.sampling import GREEDY, SamplingParams

ROW = [2.0, -2.0, 0.5, 3.0, -1.0]


def adjusted(prompt=(), output=(), banned=(), **params):
    return adjusted_row(torch.tensor(ROW), SamplingParams(**params), prompt, output, banned).tolist()


def test_presence_counts_an_id_once_frequency_each_time_and_neither_sees_the_prompt():
    output = [0, 3, 0, 0]
    assert adjusted((1, 3), output, presence_penalty=0.5) == [1.5, -2.0, 0.5, 2.5, -1.0]
    assert adjusted((1, 3), output, frequency_penalty=0.25) == [1.25, -2.0, 0.5, 2.75, -1.0]
    both = adjusted((1, 3), output, presence_penalty=-1.0, frequency_penalty=0.5)
    assert both == [1.5, -2.0, 0.5, 3.5, -1.0]
    assert adjusted((1, 3), (), presence_penalty=9, frequency_penalty=9) == ROW


def test_a_bias_is_added():
    assert adjusted(logit_bias={3: -100, 1: 100.0}) == [2.0, 98.0, 0.5, -97.0, -1.0]


def test_the_order_is_bias_then_repetition_then_presence_and_frequency():
    """The bias turns the sign, which decides how the repetition penalty is applied."""
    found = adjusted(
        (1,),
        (4, 4),
        logit_bias={1: 4.0, 4: -1.0},
        repetition_penalty=2.0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
    )
    assert found == [2.0, (-2 + 4) / 2, 0.5, 3.0, (-1 - 1) * 2 - 0.5 - 2 * 0.25]


def test_banned_ids_have_no_probability_and_ids_that_the_row_lacks_are_left_out():
    assert adjusted(banned={0, 3, 10**6}) == [-math.inf, -2.0, 0.5, -math.inf, -1.0]
    assert adjusted(banned={10**6, -1, -(10**6)}) == ROW  # none is counted from the end
    raised = adjusted((), [0, 0], banned={0}, logit_bias={0: 100}, frequency_penalty=-100)
    assert raised[0] == -math.inf


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 8)),
    st.lists(st.integers(0, 8)),
    st.floats(-100, 100),
    st.floats(-100, 100),
    st.dictionaries(st.integers(0, 8), st.floats(-100, 100)),
    st.floats(0.1, 9),
)
def test_a_row_is_what_the_formula_says(prompt, output, presence, frequency, bias, repetition):
    logits = 5 * torch.randn(9, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    params = SamplingParams(
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
    )
    found = adjusted_row(logits, params, prompt, output)
    assert torch.equal(logits, before)
    biased = logits + torch.tensor([bias.get(i, 0.0) for i in range(9)])
    wanted = penalized(biased, [*prompt, *output], repetition).tolist()
    for i, value in enumerate(found.tolist()):
        lowered = presence * (i in output) + frequency * output.count(i)
        assert value == pytest.approx(wanted[i] - lowered, rel=1e-5, abs=1e-4)


def test_a_row_without_bias_and_penalties_is_the_models_own():
    logits = torch.tensor(ROW)
    assert torch.equal(adjusted_row(logits, GREEDY, [1, 2], [3]), logits)
    assert len(changes(GREEDY, [1, 2], [3], (), 5).at) == 0
    assert GREEDY.plain
    assert SamplingParams(logit_bias={3: 0.0}).plain


def test_rows_change_side_by_side_each_by_its_own_numbers():
    """What is repeated to fill up changes nothing more; nor does what stands where no row changes."""
    rows = torch.tensor([ROW] * 4)
    params = {
        0: SamplingParams(logit_bias={0: 1.0, 4: -2.0}),
        2: SamplingParams(repetition_penalty=2.0),
        3: SamplingParams(frequency_penalty=1.5, logit_bias={2: 0.25}),
    }
    prompt, output, banned = (1, 3), [4, 4], (0,)
    of_rows = {row: changes(each, prompt, output, banned, 5) for row, each in params.items()}
    together = joined(of_rows, 5)
    assert len(together.at) == 16
    assert len(set(together.at.tolist())) == sum(len(each.at) for each in of_rows.values()) == 2 + 4 + 3
    found = adjust(rows, *map(torch.from_numpy, together))
    for row, each in params.items():
        assert torch.equal(found[row], adjusted_row(rows[row], each, prompt, output, banned))
    assert torch.equal(found[1], rows[1])
    assert torch.equal(adjust(rows, *map(torch.from_numpy, joined({}, 5))), rows)


def test_a_penalty_leaves_a_logit_of_zero_alone():
    """Also where it overflows float32."""
    assert penalized(torch.tensor([0.0, 1.0]), [0, 1], 1e300).tolist()[0] == 0
