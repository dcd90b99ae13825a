"""What several protocols read in the same way: one text or several, two names of a value, seeds with a sign."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pydantic import Field

from llama.serving.http.bodies import Body, Int, Texts, parse, seed_of
from llama.serving.http.outputs import Output
from llama.serving.http.problems import Problem


class Named(Body):
    """A body in which two fields mean the same."""

    seed: Int | None = None
    random_seed: Int | None = None
    stop: Texts = Field(default_factory=list)


def test_one_text_is_a_list_of_one() -> None:
    assert parse(Named, {"stop": "a"}).stop == parse(Named, {"stop": ["a"]}).stop == ["a"]
    assert parse(Named, {"stop": None}).stop == []
    for wrong in (5, ["a", 5], {"a": 1}):
        with pytest.raises(Problem, match="stop"):
            parse(Named, {"stop": wrong})


def test_names_of_one_value_may_agree_and_not_differ() -> None:
    def seed(**fields: int) -> int | None:
        return parse(Named, dict(fields)).one_of("seed", "random_seed")

    assert seed() is None
    assert seed(seed=0) == seed(random_seed=0) == seed(seed=0, random_seed=0) == 0
    with pytest.raises(Problem, match="seed is 1 and random_seed is 2") as raised:
        seed(seed=1, random_seed=2)
    assert (raised.value.status, raised.value.param) == (400, "random_seed")


def test_a_negative_seed_is_its_bits_without_a_sign() -> None:
    assert seed_of(None) is None
    assert seed_of(-1) is None
    assert [seed_of(0), seed_of(2**64 - 1)] == [0, 2**64 - 1]
    assert seed_of(-5) == 2**64 - 5
    assert seed_of(-5, bits=32) == 2**32 - 5


def test_the_best_of_several_is_judged_by_all_that_was_generated() -> None:
    """The ids that ended a text too: else an empty answer would have no measure."""

    def output(scores: list[float], dropped: list[float]) -> Output:
        ended = SimpleNamespace(dropped=[(2, SimpleNamespace(logprob=each)) for each in dropped])
        return Output(0, 0, None, scores=[SimpleNamespace(logprob=each) for each in scores], sequence=ended)

    assert output([-1.0, -2.0], []).mean_logprob == -1.5
    assert output([-1.0, -2.0], [-6.0]).mean_logprob == -3.0
    assert output([], [-0.5]).mean_logprob == -0.5
    assert Output(0, 0, None).mean_logprob == float("-inf")
