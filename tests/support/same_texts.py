"""Compares what rank_script.py's `texts` found on some ranks with what it found elsewhere."""

from __future__ import annotations

from typing import Any

import pytest


def same_texts(found: dict[str, Any], expected: dict[str, Any], within: float = 2e-4) -> None:
    """Texts, tokens and reasons are equal; log-probabilities are close. `found` may be `short_texts`."""
    # Unseeded samples come from the first rank's generator, whatever the other ranks seeded theirs with.
    for name in {"sampled", "many", "unseeded"} & set(found):
        assert found[name] == expected[name]
    assert found.get("drawn", True)
    for name in ("greedy", "scored"):
        assert len(found[name]) == len(expected[name])
        for ours, theirs in zip(found[name], expected[name], strict=True):
            assert ours["generation"] == theirs["generation"]
            assert ours["finish_reason"] == theirs["finish_reason"]
            assert ours["tokens"] == theirs["tokens"]
            assert ours["logprobs"] == pytest.approx(theirs["logprobs"], abs=within)
    for ours, theirs in zip(found["greedy"], expected["greedy"], strict=True):
        for a, b in zip(ours["top_logprobs"], theirs["top_logprobs"], strict=True):
            assert a == pytest.approx(b, abs=within)
