"""Laws of the training plan: its order, its learning rate, and an early end."""

from __future__ import annotations

import pytest
from tiny_plan import WARM_UP_STEPS, Plan


def test_the_phases_come_in_order_at_their_shares() -> None:
    plan = Plan.of(100, long=0.25, mix=0.5, decay=0.75)
    phases = [plan.phase(minute) for minute in (0, 24.9, 25, 49.9, 50, 99.9, 100)]
    assert phases == ["short", "short", "plain", "plain", "mix", "mix", "over"]


def test_the_rate_rises_by_steps_stays_and_falls_by_minutes_to_zero() -> None:
    plan = Plan.of(100, long=0.25, mix=0.5, decay=0.75)
    assert plan.scale(0, 0) == 1 / WARM_UP_STEPS
    assert [plan.scale(WARM_UP_STEPS, minute) for minute in (0, 75, 87.5, 100, 101)] == [1, 1, 0.5, 0, 0]


@pytest.mark.parametrize("minute", [10, 60, 90])
def test_a_finish_begins_mix_and_decay_at_once_and_ends_in_time(minute: float) -> None:
    plan = Plan.of(100, long=0.25, mix=0.5, decay=0.75)
    plan.finish(minute, 8)
    assert [plan.phase(at) for at in (minute, minute + 7.9, minute + 8)] == ["mix", "mix", "over"]
    scales = [plan.scale(WARM_UP_STEPS, minute + later) for later in (0, 4, 8)]
    assert scales == pytest.approx([1, 0.5, 0])
