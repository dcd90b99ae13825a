"""Runs programs that nobody has read, shut off from this machine. Knows nothing of models or benchmarks."""

from __future__ import annotations

from .job import Command, Ended, Job, Limits, Outcome, Sandbox

__all__ = ["Command", "Ended", "Job", "Limits", "Outcome", "Sandbox"]
