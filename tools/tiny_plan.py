"""When CodeLlama-tiny's training changes over: plain rows of half length, plain rows, the mix, and the decay.

All times are minutes on the run's own clock, which counts processor time divided by threads on a CPU, so that a
run that was stopped, or shared the machine, keeps its plan. (On a GPU it counts wall time.)
"""

from __future__ import annotations

from dataclasses import dataclass

WARM_UP_STEPS = 100


@dataclass
class Plan:
    """The learning rate is constant up to `decay_at` and then falls to zero in a straight line."""

    long_at: float  # before it plain rows are cut in two, which saves attention
    mix_at: float
    decay_at: float
    end_at: float

    @classmethod
    def of(cls, minutes: float, long: float, mix: float, decay: float) -> Plan:
        """A plan of so many minutes whose changes come at these shares of it."""
        return cls(minutes * long, minutes * mix, minutes * decay, minutes)

    def finish(self, minute: float, minutes: float) -> None:
        """From now on train on the mix, decay, and end after so many minutes."""
        self.long_at, self.mix_at = min(self.long_at, minute), min(self.mix_at, minute)
        self.decay_at, self.end_at = minute, minute + minutes

    def phase(self, minute: float) -> str:
        """ "short", "plain", "mix" or "over"."""
        if minute >= self.end_at:
            return "over"
        if minute >= self.mix_at:
            return "mix"
        return "plain" if minute >= self.long_at else "short"

    def scale(self, step: int, minute: float) -> float:
        """What the learning rates are multiplied by."""
        left = (self.end_at - minute) / max(self.end_at - self.decay_at, 1e-9)
        return max(0.0, min((step + 1) / WARM_UP_STEPS, left, 1.0))
