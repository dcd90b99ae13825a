"""What the engine reads off a sequence, a score and a random number."""

from __future__ import annotations

from llama.engine.request import FinishReason, Request
from llama.engine.sequence import SequenceState, TokenScore
from llama.sampling import GREEDY


def test_records():
    """What the loop reads off a sequence and a score."""
    sequence = SequenceState(4, Request(tuple(range(5)), 3, GREEDY, n=2), 1, None, list(range(5)))
    assert (sequence.pending, sequence.output, sequence.name()) == (5, [], "row 0, sample 1, step 0")
    sequence.computed = 5
    sequence.tokens.append(9)
    assert (sequence.pending, sequence.output, sequence.name()) == (1, [9], "row 0, sample 1, step 1")
    assert TokenScore(-1.0, ((3, -1.0), (4, -2.0))).best(1) == TokenScore(-1.0, ((3, -1.0),))
    assert [r.value for r in FinishReason] == ["stop", "length", "stop_sequence", "cancelled", "error"]


def test_draws_belong_to_seed_and_sample():
    def draws(seed, sample, first_sample=0):
        r = Request((1,), 1, GREEDY, seed=seed, n=9, first_sample=first_sample)
        sequence = SequenceState(0, r, sample, None, [1])
        late = [sequence.uniform(i) for i in (40, 3, 0)]
        assert late[::-1] == [SequenceState(0, r, sample, None, [1]).uniform(i) for i in (0, 3, 40)]
        return [sequence.uniform(i) for i in range(4)]

    assert draws(3, 1) == draws(3, 1) == draws(3, 0, first_sample=1)
    assert len({tuple(draws(seed, sample)) for seed in (0, 1, 2**40, 2**70) for sample in range(3)}) == 12
